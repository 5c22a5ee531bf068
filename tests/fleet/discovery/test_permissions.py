import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from panicd.fleet.discovery import Appeared, Discovery, Readable, Unreadable, Vanished
from tests.fleet.discovery.sockets import bind, nothing_more, take
from tests.parts.nobody import NOBODY, needs_root


@contextlib.contextmanager
def nobody(base: Path) -> Iterator[None]:
    os.chown(base, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@needs_root
@pytest.mark.parametrize("name", ["vm", "*"])
async def test_an_unreadable_directory_is_told_and_looked_at_again(base: Path, name: str) -> None:
    with nobody(base):
        directory = base / "vm"
        directory.mkdir()
        path = bind(directory / "a.qmp")
        directory.chmod(0)
        with Discovery(f"{base}/{name}/*.qmp") as discovery:
            assert await take(discovery, 1) == [Unreadable(directory, "Permission denied")]
            directory.chmod(0o100)  # still: and not told again
            directory.chmod(0o700)
            assert await take(discovery, 2) == [Appeared(path), Readable(directory)]
            await nothing_more(discovery, directory)
            directory.chmod(0o300)
            assert await take(discovery, 1) == [Unreadable(directory, "Permission denied")]
            path.unlink()  # what was watched still is
            assert await take(discovery, 1) == [Vanished(path)]
            directory.chmod(0o700)
            assert await take(discovery, 1) == [Readable(directory)]
            await nothing_more(discovery, directory)


@needs_root
async def test_a_directory_that_may_be_read_and_not_entered(base: Path) -> None:
    with nobody(base):
        directory = base / "vm"
        directory.mkdir()
        path = bind(directory / "a.qmp")
        directory.chmod(0o600)
        with Discovery(f"{directory}/*.qmp") as discovery:
            assert await take(discovery, 1) == [Unreadable(directory, "Permission denied")]
            directory.chmod(0o700)
            assert await take(discovery, 2) == [Appeared(path), Readable(directory)]


@needs_root
async def test_a_directory_above_need_not_be_readable(base: Path) -> None:
    with nobody(base):
        above = base / "home"
        directory = above / "qemu"
        directory.mkdir(parents=True)
        above.chmod(0o300)
        with Discovery(f"{directory}/*.qmp") as discovery:
            await nothing_more(discovery, directory)
            directory.rmdir()  # now nothing would tell when it is made again
            assert await take(discovery, 1) == [Unreadable(above, "Permission denied")]
            above.chmod(0o700)
            directory.mkdir()
            assert await take(discovery, 1) == [Readable(above)]
            await nothing_more(discovery, directory)
