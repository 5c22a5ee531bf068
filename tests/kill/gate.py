"""The test's side of a gated daemon: lets it pass, writes down where it was, or keeps it there."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import trio

from tests.kill.gated import SOCKET
from tests.parts.background import background

_RECEIVE_SIZE = 4096


class Gate:
    """Where a gated daemon asks to go on.

    Attributes:
        passed: The points that were asked for since :meth:`watch`, each with its number.
    """

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._kept_at: str | None = None
        self._reached = trio.Event()
        self._numbers: Counter[str] = Counter()
        self._watching = False
        self._released = trio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[Self]:
        """Answer the daemons whose configuration is in this directory."""
        gate = cls()
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
            await listener.bind(str(directory / SOCKET))
            listener.listen(1)
            async with background() as nursery:
                nursery.start_soon(gate._serve, listener, nursery)
                yield gate

    def watch(self, keep_at: str | None) -> None:
        """Write points down from here on, and keep the daemon when it comes to one of them.

        Args:
            keep_at: The point, with its number: ``sent cont #1``; None: keep it nowhere.
        """
        self._watching, self._kept_at = True, keep_at

    async def wait_reached(self) -> None:
        """Wait until the daemon stands at the point where it is to be kept."""
        await self._reached.wait()

    @property
    def has_reached(self) -> bool:
        """Whether the daemon stands at the point where it is to be kept."""
        return self._reached.is_set()

    def go_on(self, keep_at: str | None = None) -> None:
        """Let the daemon go on, and keep it again at another point, or nowhere."""
        self._kept_at = keep_at
        self._reached, released, self._released = trio.Event(), self._released, trio.Event()
        released.set()

    def ignore(self) -> None:
        """Let whoever asks from here on pass, and write nothing down."""
        self._watching, self._kept_at = False, None

    async def _serve(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            sock, _address = await listener.accept()
            nursery.start_soon(self._answer, sock)

    async def _answer(self, sock: trio.socket.SocketType) -> None:
        with sock:
            pending = b""
            while data := await _receive(sock):
                *points, pending = (pending + data).split(b"\n")
                for point in points:
                    await self._pass(point.decode())
                    try:
                        await sock.send(b"\n")
                    except (BrokenPipeError, ConnectionResetError):
                        return  # it was killed

    async def _pass(self, point: str) -> None:
        if not self._watching:
            return
        self._numbers[point] += 1
        numbered = f"{point} #{self._numbers[point]}"
        self.passed.append(numbered)
        if numbered == self._kept_at:
            self._reached.set()
            await self._released.wait()


async def _receive(sock: trio.socket.SocketType) -> bytes:
    try:
        return await sock.recv(_RECEIVE_SIZE)
    except ConnectionResetError:
        return b""
