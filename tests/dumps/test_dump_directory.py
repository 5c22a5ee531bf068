"""Where dumps lie: safe names, unfinished files, and which finished ones are kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from panicd.dumps.directory import (
    LOOP,
    Space,
    dump_path,
    folder_name,
    give_name,
    partial_file,
    remove_abandoned,
    retire,
)
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor

NOW = 1_800_000_000.0
KIB = 1024


@pytest.fixture
def settings(tmp_path: Path) -> CoredumpSettings:
    return CoredumpSettings(tmp_path / "coredumps")


def dumped(
    settings: CoredumpSettings,
    seconds: float,
    *,
    owner: int = 0,
    domain: str = "vm",
    kind: DumpFormat = DumpFormat.ELF_ZSTD,
    size: int = 4 * KIB,
) -> Path:
    """A finished dump, made at that time."""
    path = dump_path(settings, owner, domain, f"2027{int(seconds):08d}-abc", kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (NOW + seconds, NOW + seconds))
    return path


def kept(settings: CoredumpSettings) -> set[Path]:
    return {path for path in settings.directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("domain", "folder"),
    [
        ("db-1", "db-1"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("..", "%2E."),
        ("", "%00"),
        ("a/b\0c", "a%2Fb%00c"),
        ("x" * 500, "x" * 128),
        ("\ud800", "%ED%A0%80"),
    ],
)
def test_folder_is_safe_whatever_the_domain_is_called(domain: str, folder: str) -> None:
    assert folder_name(domain) == folder


def test_no_more_than_the_floor_leaves() -> None:
    space = Space(total=1000, available=300)
    assert space.above(FreeSpaceFloor(size=100)) == 200
    assert space.above(FreeSpaceFloor(size=100, fraction=0.25)) == 50
    assert space.above(FreeSpaceFloor(fraction=0.5)) == -200


def test_partial_file_is_gone_unless_it_got_its_name(tmp_path: Path) -> None:
    path = tmp_path / "vm" / "1.elf"
    with partial_file(path):
        (unfinished,) = path.parent.iterdir()
        assert unfinished.name == "1.elf.partial"
        assert unfinished.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == []
    with partial_file(path):
        give_name(path)
    assert list(path.parent.iterdir()) == [path]


def test_only_partial_files_that_nobody_writes_are_removed(tmp_path: Path) -> None:
    abandoned = tmp_path / "vm" / "1.elf.partial"
    abandoned.parent.mkdir()
    abandoned.touch()
    finished = tmp_path / "vm" / "0.elf"
    finished.touch()
    with partial_file(tmp_path / "vm" / "2.elf"):
        assert remove_abandoned(tmp_path) == [abandoned]
        assert {path.name for path in finished.parent.iterdir()} == {"0.elf", "2.elf.partial"}


def test_directory_that_is_not_there_holds_nothing_abandoned(tmp_path: Path) -> None:
    assert remove_abandoned(tmp_path / "none") == []


def test_a_domain_keeps_its_newest(settings: CoredumpSettings) -> None:
    days = [dumped(settings, number * (LOOP + 1)) for number in range(4)]
    other = dumped(settings, 0, domain="other")
    assert set(retire(settings, days[-1])) == set(days[:2])
    assert kept(settings) == {*days[2:], other}


def test_of_two_made_in_one_second_the_newest_is_kept(settings: CoredumpSettings) -> None:
    newest, older = (settings.directory / "0" / "vm" / f"20270101T000000-{end}.elf" for end in "ab")
    newest.parent.mkdir(parents=True)
    for path, at in ((older, NOW), (newest, NOW + 0.1)):
        path.touch()
        os.utime(path, (at, at))
    assert retire(replace(settings, keep=1), newest) == [older]


def test_the_first_of_a_crash_loop_is_kept(settings: CoredumpSettings) -> None:
    first = dumped(settings, 0)
    for number in range(1, 10):
        newest = dumped(settings, number * 600.0)
        retire(settings, newest)
        assert kept(settings) == {first, newest}


def test_first_of_a_loop_makes_way_for_that_of_the_next(settings: CoredumpSettings) -> None:
    first, last = dumped(settings, 0), dumped(settings, 600)
    next_first = dumped(settings, LOOP + 1)
    retire(settings, next_first)
    assert kept(settings) == {last, next_first}
    newest = dumped(settings, LOOP + 601)
    retire(settings, newest)
    assert kept(settings) == {next_first, newest}
    assert not first.exists()


def test_all_are_kept_while_they_are_few(settings: CoredumpSettings) -> None:
    old, newest = dumped(settings, 0), dumped(settings, LOOP * 3)
    assert retire(replace(settings, keep=3), newest) == []
    assert kept(settings) == {old, newest}


def test_with_one_to_keep_it_is_the_newest(settings: CoredumpSettings) -> None:
    dumped(settings, 0)
    newest = dumped(settings, 600)
    retire(replace(settings, keep=1), newest)
    assert kept(settings) == {newest}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_newest_is_kept_whatever_the_clock_says(settings: CoredumpSettings, keep: int) -> None:
    settings = replace(settings, keep=keep)
    for seconds in (10 * LOOP, 11 * LOOP, 0, 60, 120, 12 * LOOP, 180):  # ahead, back, ahead, back
        newest = dumped(settings, seconds)
        retire(settings, newest)
        assert newest.exists()
        assert len(kept(settings)) <= keep


def test_formats_are_counted_together(settings: CoredumpSettings) -> None:
    dumps = [
        dumped(settings, number * (LOOP + 1), kind=kind) for number, kind in enumerate(DumpFormat)
    ]
    retire(settings, dumps[-1])
    assert kept(settings) == set(dumps[-2:])


def test_the_host_keeps_so_many_bytes_and_always_the_newest(settings: CoredumpSettings) -> None:
    old = dumped(settings, 0, domain="other")
    older = dumped(settings, 10, domain="third")
    newest = dumped(settings, 20)
    assert retire(replace(settings, max_total=9 * KIB), newest) == [old]
    assert retire(replace(settings, max_total=1), newest) == [older]
    assert kept(settings) == {newest}


def test_nobody_s_dumps_make_room_for_another_user_s(settings: CoredumpSettings) -> None:
    only = dumped(settings, 0, owner=1, domain="db")
    flood = [dumped(settings, 10 + n, owner=2, domain=f"db-{n}", size=400 * KIB) for n in range(5)]
    limit = replace(settings, max_total=1000 * KIB)
    assert retire(limit, flood[-1]) == flood[:3]
    assert only.exists()
    alike = dumped(settings, 20, owner=1, domain="db-4")
    assert retire(replace(limit, keep=1), alike) == []
    assert kept(settings) == {only, *flood[3:], alike}


def test_share_of_a_user_is_his_whatever_others_take(settings: CoredumpSettings) -> None:
    others = [dumped(settings, n, owner=2, domain=f"{n}", size=400 * KIB) for n in range(5)]
    mine = [dumped(settings, 10 + n, owner=1, domain=f"{n}", size=100 * KIB) for n in range(8)]
    # 2 users: 500 KiB each.
    assert retire(replace(settings, max_total=1000 * KIB), mine[-1]) == mine[:3]
    assert all(path.exists() for path in others)


def test_dumps_of_nobody_go_first(settings: CoredumpSettings) -> None:
    old = settings.directory / "vm" / "20260101T000000-abc.elf"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(4 * KIB))
    of_user = dumped(settings, 0, owner=1, domain="other")
    newest = dumped(settings, 20, owner=1)
    assert retire(replace(settings, max_total=9 * KIB), newest) == [old]
    assert of_user.exists()


def test_holes_in_a_file_count_for_nothing(settings: CoredumpSettings) -> None:
    other = dumped(settings, 0, domain="other")
    newest = dumped(settings, 20)
    for sparse in (other, newest):
        os.truncate(sparse, 1 << 40)
    assert retire(replace(settings, max_total=64 * KIB), newest) == []
    assert other.exists()
