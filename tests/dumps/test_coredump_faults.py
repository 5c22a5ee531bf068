"""Dumps of any QEMU's making, and of one that fails at the worst time: shown by fakes."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from panicd.dumps import coredump
from panicd.dumps import writer as dump_writer
from panicd.dumps.coredump import (
    DumpError,
    DumpFailure,
    DumpProgress,
    FinishedDump,
    dump_guest_memory,
)
from panicd.dumps.directory import PARTIAL, dump_path
from panicd.dumps.queue import DumpTurn, dump_status
from panicd.qemu.monitor import SessionLostError
from panicd.qemu.session import Session
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.parts.background import background
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after, patience
from tests.parts.profile import QEMU_1_7, QEMU_2_5, QEMU_7_2, Profile, RunState
from tests.parts.sessions import open_session

INCIDENT = "20260101T000000-0123abcd"
MEMORY = 3 << 20
"""Bytes of guest memory: more than a pipe holds."""


@pytest.fixture
def settings(tmp_path: Path) -> CoredumpSettings:
    return CoredumpSettings(directory=tmp_path / "dumps", min_free=FreeSpaceFloor(size=0))


def fake(socket_dir: Path, profile: Profile = QEMU_7_2) -> FakeQemu:
    return FakeQemu(
        socket_dir / "vm.qmp", profile=profile, memory=MEMORY, state=RunState.GUEST_PANICKED
    )


async def dump(
    session: Session, settings: CoredumpSettings, kind: DumpFormat = DumpFormat.ELF
) -> FinishedDump:
    return await dump_guest_memory(session, settings, "vm", INCIDENT, kind)


def with_lzo(profile: Profile) -> Profile:
    """A QEMU that was built with it."""
    return replace(profile, dump_formats=("elf", "kdump-lzo"))


def files(settings: CoredumpSettings) -> list[str]:
    return [path.name for path in settings.directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("profile", "kind", "magic"),
    [
        (QEMU_1_7, DumpFormat.ELF, b"\x7fELF"),
        (QEMU_2_5, DumpFormat.ELF_ZSTD, b"\x28\xb5\x2f\xfd"),
        (with_lzo(QEMU_2_5), DumpFormat.KDUMP_LZO, b"KDUMP   "),
        (QEMU_7_2, DumpFormat.ELF, b"\x7fELF"),
        (QEMU_7_2, DumpFormat.ELF_ZSTD, b"\x28\xb5\x2f\xfd"),
        (with_lzo(QEMU_7_2), DumpFormat.KDUMP_LZO, b"KDUMP   "),
    ],
)
async def test_dump_of_every_version_is_complete(
    socket_dir: Path, settings: CoredumpSettings, profile: Profile, kind: DumpFormat, magic: bytes
) -> None:
    async with open_session(fake(socket_dir, profile)) as session:
        finished = await dump(session, settings, kind)
    assert finished.path == dump_path(settings, os.geteuid(), "vm", INCIDENT, kind)
    content = finished.path.read_bytes()
    assert content.startswith(magic)
    assert len(content) == finished.size
    assert finished.size > MEMORY or kind is not DumpFormat.ELF
    assert stat.S_IMODE(finished.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(finished.path.parent.stat().st_mode) == 0o700
    assert len(files(settings)) == 1


async def test_dump_bears_another_name_until_it_is_complete(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    vm = fake(socket_dir)
    async with open_session(vm) as session, background() as nursery:
        vm.hold_dumps()
        done = trio.Event()

        async def dump_and_tell() -> None:
            await dump(session, settings)
            done.set()

        nursery.start_soon(dump_and_tell)
        await vm.wait_command("dump-guest-memory")
        assert files(settings) == [f"{INCIDENT}.elf{PARTIAL}"]
        vm.release_dumps()
        await done.wait()
        assert files(settings) == [f"{INCIDENT}.elf"]


async def test_dump_that_takes_too_long_is_given_up(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    vm = fake(socket_dir)
    async with open_session(vm) as session:
        vm.hold_dumps()
        with pytest.raises(DumpError) as caught:
            await dump(session, replace(settings, timeout=0.05))
        assert caught.value.failure is DumpFailure.TIMEOUT
        assert files(settings) == []


async def test_cancelled_dump_leaves_nothing(socket_dir: Path, settings: CoredumpSettings) -> None:
    vm = fake(socket_dir)
    async with open_session(vm) as session:
        vm.hold_dumps()
        async with background() as nursery:
            nursery.start_soon(dump, session, settings)
            await vm.wait_command("dump-guest-memory")
        assert files(settings) == []


@pytest.mark.parametrize("command", ["getfd", "dump-guest-memory"])
async def test_refused_dump_says_why(
    socket_dir: Path, settings: CoredumpSettings, command: str
) -> None:
    vm = fake(socket_dir)
    async with open_session(vm) as session:
        vm.refuse(command, "no dumps today")
        with pytest.raises(DumpError, match="no dumps today") as caught:
            await dump(session, settings)
        assert caught.value.failure is DumpFailure.REFUSED
        assert files(settings) == []


@pytest.mark.parametrize("command", ["getfd", "dump-guest-memory"])
async def test_session_that_ends_meanwhile_leaves_nothing(
    socket_dir: Path, settings: CoredumpSettings, command: str
) -> None:
    vm = fake(socket_dir)
    async with open_session(vm) as session:
        vm.cut_before(command)
        with pytest.raises(SessionLostError):
            await dump(session, settings)
        assert files(settings) == []


async def test_dump_ends_where_space_is_to_stay_free(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    async with open_session(fake(socket_dir)) as session:
        with pytest.raises(DumpError, match="below min_free") as caught:
            await dump(session, replace(settings, min_free=FreeSpaceFloor(size=1 << 60)))
        assert caught.value.failure is DumpFailure.NO_SPACE
        assert files(settings) == []


async def test_directory_that_is_none_is_unwritable(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    settings.directory.touch()
    async with open_session(fake(socket_dir)) as session:
        with pytest.raises(DumpError) as caught:
            await dump(session, settings)
        assert caught.value.failure is DumpFailure.UNWRITABLE


async def test_what_a_killed_daemon_left_is_replaced(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    path = dump_path(settings, os.geteuid(), "vm", INCIDENT, DumpFormat.ELF)
    path.parent.mkdir(parents=True)
    path.with_name(path.name + PARTIAL).write_bytes(b"half of it")
    async with open_session(fake(socket_dir)) as session:
        finished = await dump(session, settings)
    assert finished.path.read_bytes()[:4] == b"\x7fELF"
    assert files(settings) == [path.name]


async def test_incident_is_dumped_once(socket_dir: Path, settings: CoredumpSettings) -> None:
    vm = fake(socket_dir)
    async with open_session(vm) as session:
        first = await dump(session, settings)
        assert await dump(session, settings) == replace(first, selection=None)
    assert vm.commands.count("dump-guest-memory") == 1


async def test_guest_writes_no_more_than_it_has(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    vm = fake(socket_dir)
    vm.machine.memory, vm.machine.dumps = 1 << 20, 100 << 20
    async with open_session(vm) as session:
        with pytest.raises(DumpError) as caught:
            await dump(session, settings)
        assert caught.value.failure is DumpFailure.TOO_LARGE
        assert files(settings) == []


@pytest.mark.parametrize("profile", [QEMU_2_5, QEMU_7_2])
async def test_qemu_that_neither_writes_nor_gives_up_keeps_no_turn(
    socket_dir: Path,
    settings: CoredumpSettings,
    monkeypatch: pytest.MonkeyPatch,
    profile: Profile,
) -> None:
    monkeypatch.setattr(dump_writer, "PATIENCE", patience(0.5))
    monkeypatch.setattr(coredump, "CLEARING", 0.05)
    vm = fake(socket_dir, profile)
    async with open_session(vm) as session:
        vm.hold_dumps(stubborn=True)
        with fail_after(30), pytest.raises(DumpError) as caught:
            await dump(session, settings)
        assert caught.value.failure is DumpFailure.TOO_SLOW
        assert "dump-guest-memory" in vm.commands
        assert files(settings) == []


@pytest.mark.parametrize("total", [10**400, -1, True, 1.5, "all"])
async def test_progress_that_makes_no_sense_is_none(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch, total: object
) -> None:
    monkeypatch.setattr(coredump, "PROGRESS_CHECK", 0.01)
    vm, progress = fake(socket_dir), DumpProgress()
    monkeypatch.setattr(
        vm.machine, "query_dump", lambda: {"status": "active", "completed": 1, "total": total}
    )
    async with open_session(vm) as session, background() as nursery:
        vm.hold_dumps()
        make = partial(dump_guest_memory, session, settings, "vm", INCIDENT, DumpFormat.ELF)
        nursery.start_soon(partial(make, progress=progress))
        await vm.wait_command("query-dump", count=2)
        turn = DumpTurn(lambda: None, DumpFormat.ELF, 0, 0.0, has_come=True, progress=progress)
        assert dump_status(turn, 1.0).total == MEMORY
        vm.release_dumps()
