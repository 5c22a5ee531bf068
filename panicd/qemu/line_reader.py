"""Reads the lines of all monitors in one trio task, and hands over each at once by a plain call.

With a task for each monitor, trio would have to wake one for each line, which takes as long as
parsing the line. So one task waits for all sockets by its own epoll(7). It registers a socket with
the kernel once, not for each line.
"""

import math
import select
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from panicd.qemu.other_end import receive
from panicd.qemu.pace import Pace

CHUNK: Final = 1 << 16  # bytes received at once
AT_ONCE: Final = 64  # sockets to receive from before other tasks have their turn
WAKEUP: Final = 25e-6
"""Seconds that a wakeup and a receive cost: the whole cost of a line that never ends."""

Take = Callable[[bytes, int | None], bool]


class _Reading:
    """One socket, while its lines are being taken."""

    __slots__ = ("bug", "ended", "limit", "looked_at", "pace", "read", "sender", "shown", "sock",
                 "take", "waits")  # fmt: skip

    def __init__(
        self, sock: socket.socket, head: bytes, take: Take, limit: int, pace: Pace
    ) -> None:
        self.sock = sock
        self.take = take
        self.limit = limit
        self.pace = pace
        self.read = bytearray(head)
        self.looked_at = 0
        self.sender: int | None = None
        self.shown = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED))
        self.waits = True  # True while nothing more is to be received
        self.ended = trio.Event()
        self.bug: BaseException | None = None

    def hand_over(self) -> float | None:
        """Hand over the received lines.

        Returns:
            Seconds to wait before going on; None: wait until more is received.
        """
        read = self.read
        began = time.perf_counter()
        while (end := read.find(b"\n", self.looked_at)) >= 0:
            if not self.take(bytes(read[:end]), self.sender):
                return math.inf
            del read[: end + 1]
            self.looked_at = 0
            now = time.perf_counter()
            pause = self.pace.pause(began, now)
            if pause is not None:
                return pause
            began = now
        self.looked_at = len(read)
        return math.inf if self.looked_at > self.limit else None

    def receive(self) -> float | None:
        """Receive once, and hand over what came; see ``hand_over``."""
        try:
            if self.shown:
                received, self.sender = receive(self.sock, CHUNK)
            else:
                received = self.sock.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        if not received:
            return math.inf
        self.read += received
        now = time.perf_counter()
        return self.pace.pause(now - WAKEUP, now) or self.hand_over()


class _Reader:
    """Reads from all sockets; ``math.inf`` stands for the end of one."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readings: dict[int, _Reading] = {}
        self._again: list[_Reading] = []
        self._is_wanted = trio.Event()

    def add(self, reading: _Reading) -> None:
        """Read from a socket, until its reading has ended."""
        self._readings[reading.sock.fileno()] = reading
        self._epoll.register(reading.sock, select.EPOLLIN)
        self._hand_over_later(reading)

    def _hand_over_later(self, reading: _Reading) -> None:
        reading.waits = True
        self._again.append(reading)
        self._is_wanted.set()

    def remove(self, reading: _Reading) -> None:
        """Read no more from a socket."""
        number = reading.sock.fileno()
        if self._readings.pop(number, None) is not None:
            self._epoll.unregister(number)

    async def run(self) -> None:
        """Read, until this is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive_all, nursery)
                while True:
                    await self._is_wanted.wait()
                    self._is_wanted = trio.Event()
                    await trio.lowlevel.checkpoint()
                    again, self._again = self._again, []
                    for reading in again:
                        reading.waits = False
                        self._step(reading, reading.hand_over, nursery)
        finally:
            self._epoll.close()

    async def _receive_all(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0, AT_ONCE):
                reading = self._readings.get(number)
                if reading is not None and not reading.waits:
                    self._step(reading, reading.receive, nursery)

    def _step(
        self, reading: _Reading, step: Callable[[], float | None], nursery: trio.Nursery
    ) -> None:
        if reading.ended.is_set():
            return
        try:
            pause = step()
        except BaseException as bug:  # noqa: BLE001 - raised where its lines are waited for
            reading.bug, pause = bug, math.inf
        if pause is None:
            return
        if pause == 0.0:  # after the others' turn
            self._hand_over_later(reading)
            return
        self.remove(reading)
        if pause == math.inf:
            reading.ended.set()
        else:
            nursery.start_soon(self._after, reading, pause)

    async def _after(self, reading: _Reading, pause: float) -> None:
        await trio.sleep(pause)
        if not reading.ended.is_set():
            self.add(reading)


_READER: Final = trio.lowlevel.RunVar[_Reader]("the reader of all monitors")


@asynccontextmanager
async def lines_read() -> AsyncIterator[None]:
    """Run the task that reads the lines for ``read_lines``."""
    reader = _Reader()
    token = _READER.set(reader)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            yield
            nursery.cancel_scope.cancel()
    finally:
        _READER.reset(token)


async def read_lines(sock: socket.socket, head: bytes, take: Take, limit: int, pace: Pace) -> bytes:
    """Hand over a socket's lines until one is not taken, is too long, or nothing more comes.

    Must run inside ``lines_read()``.

    Args:
        sock: connected and non-blocking.
        head: bytes that were read from the socket before.
        take: called with a line, without its end, and the number of the process that sent its end,
            None where unknown (``other_end.show_senders``); returns False if it refuses the line.
        limit: most bytes of a line.
        pace: limits the processor time for reading.

    Returns:
        The bytes that were read and not taken, from the beginning of a line on.
    """
    reader, reading = _READER.get(), _Reading(sock, head, take, limit, pace)
    reader.add(reading)
    try:
        await reading.ended.wait()
    finally:
        reading.ended.set()
        reader.remove(reading)
    if reading.bug is not None:
        raise reading.bug
    return bytes(reading.read)
