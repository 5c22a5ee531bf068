"""Sockets as QEMU makes them, and what a discovery tells of them."""

import socket
from pathlib import Path

from panicd.fleet.discovery import Appeared, Change, Discovery, Vanished
from tests.parts.patience import fail_after

LIMIT = 20  # seconds a test may take before it counts as hung


def bind(path: Path) -> Path:
    """Make a socket as a QEMU does, and leave it behind as a killed one does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


async def take(discovery: Discovery, count: int) -> list[Change]:
    with fail_after(LIMIT):
        return [await anext(discovery) for _ in range(count)]


async def told(discovery: Discovery, directory: Path) -> list[Change]:
    """Return what was left to tell: what is done now is told next."""
    mark = bind(directory / "mark.qmp")
    changes = []
    while (change := (await take(discovery, 1))[0]) != Appeared(mark):
        changes.append(change)
    mark.unlink()
    assert await take(discovery, 1) == [Vanished(mark)]
    return changes


async def nothing_more(discovery: Discovery, directory: Path) -> None:
    """Assert that nothing was left to tell."""
    assert await told(discovery, directory) == []
