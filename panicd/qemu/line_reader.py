"""Reads the lines of all monitors in one trio task, and hands over each at once by a plain call.

With a task for each monitor, trio would have to wake one for each line, which takes as long as
parsing the line. So one task waits for all sockets by its own epoll(7). It registers a socket with
the kernel once, not for each line. It also sends what a socket could not take at once.
"""

import errno
import math
import os
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
AT_ONCE: Final = 64  # sockets to look at before other tasks have their turn
MANY: Final = 8  # sockets; so many take longer than a QEMU's answer
LOOKS: Final = 3  # for a QEMU's answers, out of turn
LINES: Final = 8  # of a monitor, whose work is accounted for at once
WAKEUP: Final = 25e-6
"""Seconds that a wakeup and a receive cost: the whole cost of a line that never ends."""

Take = Callable[[bytes], bool]
End = Callable[[BaseException | None], None]


class Stream:
    """One monitor's socket: lines in, bytes out. Must be made inside ``streams()``.

    Lines are first fetched one by one (``fetch``), then all handed over as they come
    (``hand_over``), and after that fetched again. Nothing is received that nobody waits for.

    Args:
        sock: connected and non-blocking.
        limit: most bytes of a line.
        pace: limits the processor time for the lines that are handed over.

    Attributes:
        sender: the number of the process that sent the last fetched line; None where several
            did, or it is unknown (``other_end.show_senders``).
        unsent: bytes that the socket did not take yet.
    """

    __slots__ = ("_end", "_limit", "_looked_at", "_pace", "_poller", "_read", "_take", "_tell",
                 "_waits", "number", "sender", "sock", "unsent", "wanted")  # fmt: skip

    def __init__(self, sock: socket.socket, limit: int, pace: Pace) -> None:
        self.sock = sock
        self.number = sock.fileno()
        self.sender: int | None = None
        self.unsent = b""
        self.wanted = 0  # of epoll(7)
        self._poller = _POLLER.get()
        self._limit = limit
        self._pace = pace
        self._read = bytearray()
        self._looked_at = 0
        self._tell: Callable[[], None] | None = None  # somebody waits to fetch
        self._take: Take | None = None  # lines are handed over
        self._end: End = _nobody
        self._waits = False  # to be handed over in a later turn

    def fetch(self) -> bytes | None:
        """Return the next line with its end, None before it is there, empty at the end.

        The end may be missing from the last line.

        Raises:
            OSError: the connection failed.
            ValueError: the line is too long.
        """
        while not self._has_line():
            if len(self._read) > self._limit:
                raise ValueError(f"a line has more than {self._limit} bytes")
            try:
                received, sender = receive(self.sock, CHUNK)
            except BlockingIOError:
                return None
            if not received:
                self._looked_at = len(self._read) - 1
                break
            self.sender = sender if not self._read or sender == self.sender else None
            self._read += received
        end, self._looked_at = self._looked_at + 1, 0
        line = bytes(self._read[:end])
        del self._read[:end]
        return line

    def tell_readable(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once there is more to fetch."""
        self._tell = tell
        self._poller.want(self, select.EPOLLIN)

    def hand_over(self, take: Take, end: End) -> None:
        """Hand over all lines from now on, until one is not taken, or is too long, or none is left.

        Args:
            take: called with a line, without its end; returns False if it refuses the line, which
                can then be fetched.
            end: called when no more lines are handed over, with the bug of ``take`` if there is
                one.
        """
        self._take, self._end = take, end
        self._poller.want(self, select.EPOLLIN)
        if self._read:
            self._later()

    def send(self, data: bytes) -> None:
        """Send bytes, now or when the socket takes them.

        Raises:
            OSError: the connection failed.
        """
        if not self.unsent:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                self._poller.asked(self)
                return
            data = data[sent:]
        self.unsent += data
        self._poller.want(self, select.EPOLLOUT)

    def send_fd(self, fd: int, data: bytes) -> None:
        """Send bytes with a copy of a file descriptor, which goes with the first of them.

        Raises:
            OSError: nothing of it can be sent now, or earlier bytes wait.
        """
        if self.unsent:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        rest = data[socket.send_fds(self.sock, [data], [fd]) :]
        self._poller.asked(self)
        if rest:
            self.send(rest)

    def close(self) -> None:
        """Read and send no more. The socket stays open."""
        self._poller.forget(self)
        self.number = -1
        self._take = self._tell = None
        self._end = _nobody  # breaks a cycle

    def look(self, events: int) -> None:
        """Do what the socket's readiness allows."""
        if self.wanted & select.EPOLLOUT and events & ~select.EPOLLIN:
            self._send_on()
        if self._tell is not None:
            tell, self._tell = self._tell, None
            tell()
        elif self._take is None:
            self._poller.want_no_more(self, select.EPOLLIN)
        elif not self._waits and self.wanted & select.EPOLLIN:
            self._step(self._receive)

    @property
    def is_awaited(self) -> bool:
        """True while an answer is awaited."""
        return self._pace.hurried

    def take_again(self) -> None:
        """Go on with what was received before."""
        self._waits = False
        self._step(self._take_all)

    def _send_on(self) -> None:
        try:
            self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            return
        except OSError:  # it is read to its end too, which tells
            self.unsent = b""
        if not self.unsent:
            self._poller.want_no_more(self, select.EPOLLOUT)

    def _has_line(self) -> bool:
        end = self._read.find(b"\n", self._looked_at)
        self._looked_at = len(self._read) if end < 0 else end
        return end >= 0

    def _step(self, step: Callable[[], float | None]) -> None:
        if self._take is None:
            return
        bug = None
        try:
            pause = step()
        except BaseException as error:  # noqa: BLE001 - raised where its lines are waited for
            bug, pause = error, math.inf
        if pause is None or self._take is None:
            return
        if pause == 0.0:  # after the others' turn
            self._later()
            return
        self._poller.want_no_more(self, select.EPOLLIN)
        if pause == math.inf:
            end = self._end
            self._take, self._end = None, _nobody
            end(bug)
        else:
            self._poller.after(pause, self._go_on)

    def _go_on(self) -> None:
        if self._take is not None:
            self._poller.want(self, select.EPOLLIN)
            self._later()

    def _later(self) -> None:
        self._waits = True
        self._poller.later(self)

    def _receive(self) -> float | None:
        """Receive once, and hand over what came; see ``_take_all``."""
        try:
            received = self.sock.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        if not received:
            return math.inf
        self._read += received
        return self._take_all(WAKEUP)

    def _take_all(self, spent: float = 0.0) -> float | None:
        """Hand over the received lines.

        Args:
            spent: seconds that were spent on them before.

        Returns:
            Seconds to wait before going on; None: wait until more is received.
        """
        read, take, start, lines = self._read, self._take, 0, 0
        assert take is not None
        began = time.perf_counter() - spent
        try:
            while (end := read.find(b"\n", start or self._looked_at)) >= 0:
                self._looked_at = 0
                if not take(bytes(read[start:end])):
                    return math.inf
                start = end + 1
                if self._take is not take:  # the stream was closed
                    return None
                lines += 1
                if lines == LINES:
                    now = time.perf_counter()
                    if (pause := self._pace.pause(began, now, lines)) is not None:
                        return pause
                    began, lines = now, 0
        finally:
            del read[:start]
        self._looked_at = len(read)
        pause = self._pace.pause(began, time.perf_counter(), lines)
        return math.inf if self._looked_at > self._limit else pause


class _Poller:
    """Waits for all sockets."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._again: list[Stream] = []
        self._asked: dict[Stream, int] = {}  # how often their answers are looked for
        self._is_wanted = trio.Event()
        self._nursery: trio.Nursery

    def want(self, stream: Stream, events: int) -> None:
        """Wait for a stream's socket, for these events too."""
        self._set(stream, stream.wanted | events)

    def want_no_more(self, stream: Stream, events: int) -> None:
        """Wait for these events of a stream's socket no longer."""
        self._set(stream, stream.wanted & ~events)

    def _set(self, stream: Stream, wanted: int) -> None:
        before = stream.wanted
        if before == wanted or stream.number < 0:  # it was closed
            return
        stream.wanted = wanted
        if not wanted:
            del self._streams[stream.number]
            self._epoll.unregister(stream.number)
        elif not before:
            self._streams[stream.number] = stream
            self._epoll.register(stream.number, wanted)
        else:
            self._epoll.modify(stream.number, wanted)

    def forget(self, stream: Stream) -> None:
        """Wait no longer for a stream's socket."""
        self._set(stream, 0)

    def asked(self, stream: Stream) -> None:
        """Have a stream's answers read before others' events, if many come at once."""
        self._asked[stream] = LOOKS

    def later(self, stream: Stream) -> None:
        """Have a stream take again, after the others' turn."""
        self._again.append(stream)
        self._is_wanted.set()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call a function after some seconds."""
        self._nursery.start_soon(_call_after, seconds, call)

    async def run(self) -> None:
        """Look at sockets, until this is cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._look_at_all)
                while True:
                    await self._is_wanted.wait()
                    self._is_wanted = trio.Event()
                    await trio.lowlevel.checkpoint()
                    again, self._again = self._again, []
                    for stream in again:
                        stream.take_again()
        finally:
            self._epoll.close()

    async def _look_at_all(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            ready = self._epoll.poll(0, AT_ONCE)
            for number, events in ready:
                stream = self._streams.get(number)
                if stream is not None:
                    stream.look(events)
            if len(ready) >= MANY:
                self._look_for_answers()
            else:
                self._asked.clear()

    def _look_for_answers(self) -> None:
        """Read the answers to what was just sent, before others' events.

        So what has begun is finished first, and an answer is still true when it is used.
        """
        asked, self._asked = self._asked, {}
        late = {}
        for stream, times in asked.items():
            stream.look(select.EPOLLIN)
            if times and stream.is_awaited and stream not in self._asked:
                late[stream] = times - 1
        self._asked = late


async def _call_after(seconds: float, call: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    call()


def _nobody(_bug: BaseException | None) -> None:
    """Tell nobody."""


_POLLER: Final = trio.lowlevel.RunVar[_Poller]("the poller of all monitors")


@asynccontextmanager
async def streams() -> AsyncIterator[None]:
    """Run the task that looks at the sockets of all streams."""
    poller = _Poller()
    token = _POLLER.set(poller)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            yield
            nursery.cancel_scope.cancel()
    finally:
        _POLLER.reset(token)
