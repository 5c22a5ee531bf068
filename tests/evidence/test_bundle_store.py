"""Bundles on the disk, and what is left of one that was removed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from panicd.evidence.bundle import read_manifest
from panicd.evidence.bundle_store import remove, sizes

LIST = {"panic_line": "Oops", "files": {"a": "x"}, "problems": {}, "facts": {}, "host": {"x": "y"}}


def bundle(root: Path, name: str) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "bundle.json").write_text(json.dumps(LIST))
    (directory / "kernel.log").write_bytes(b"x" * 100)
    (directory / "screen.png").write_bytes(b"x" * 50)
    return directory


def test_removed_bundle_says_so_and_takes_no_more_space(tmp_path: Path) -> None:
    first, second = bundle(tmp_path, "i1"), bundle(tmp_path, "i2")
    (tmp_path / "link").symlink_to(second)
    assert sizes(tmp_path).keys() == {"i1", "i2"}
    remove(first, "one too many", 5.0)
    assert sizes(tmp_path).keys() == {"i2"}
    assert [path.name for path in first.iterdir()] == ["bundle.json"]
    assert stat.S_IMODE((first / "bundle.json").stat().st_mode) == 0o600
    left = read_manifest(first)
    assert left is not None
    assert left["removed"] == {"at": 5.0, "why": "one too many"}
    assert (left["panic_line"], left["files"]) == ("Oops", {})
    assert "host" not in left


def test_half_a_removal_is_completed(tmp_path: Path) -> None:
    directory = bundle(tmp_path, "i1")
    remove(directory, "first", 5.0)
    (directory / "screen.png").write_bytes(b"x")  # as after a crash between list and files
    assert sizes(tmp_path).keys() == {"i1"}
    remove(directory, "second", 6.0)
    assert sizes(tmp_path) == {}


def test_what_is_taken_on_the_disk_counts_and_no_hole(tmp_path: Path) -> None:
    directory = bundle(tmp_path, "i1")
    with (directory / "screen.png").open("r+b") as screen:
        screen.truncate(8 << 40)
    (directory / "registers.txt").write_bytes(b"x" * 100_000)
    assert 100_000 <= sizes(tmp_path)["i1"] < 200_000


NO_LISTS = ("[", "[" * 5000, "[" * 600 + "]" * 600, json.dumps({**LIST, "facts": 1e999}))


@pytest.mark.parametrize("damaged", NO_LISTS, ids=range(len(NO_LISTS)))
def test_broken_list_does_not_keep_a_bundle(tmp_path: Path, damaged: str) -> None:
    directory = bundle(tmp_path, "i1")
    (directory / "bundle.json").write_text(damaged)
    assert read_manifest(directory) is None
    remove(directory, "one too many", 5.0)
    assert (read_manifest(directory) or {})["removed"]["why"] == "one too many"


def test_nothing_there_is_nothing(tmp_path: Path) -> None:
    assert sizes(tmp_path / "none") == {}
