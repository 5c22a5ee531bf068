"""Reads processes' command lines (argv), which nobody on the event loop may wait for.

The kernel reads argv under a lock of the process's memory (mmap_lock). The lock is held while a
page of that memory is awaited. The page may be on storage that hangs, or that the process's user
has made hang. Then whoever reads hangs too, as ps(1) does. So threads read, and panicd gives them
some time. Nothing else is read of such a process until then, and one user's processes hold a few
threads at most.

To start a thread for each process takes longer than all else that is asked about it. So one thread
reads for all who ask in one turn of the event loop, and another one takes over when it hangs. The
loop stands aside while that thread reads: otherwise each would get the interpreter from the other
after every system call, and all would take half as long again.
"""

import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from panicd.qemu.limits import after
from panicd.qemu.process_identity import read_of, start_time_of, uids_of
from panicd.qemu.threads import NoThreadError, needing_a_thread

MOST: Final = 1 << 20  # bytes of a command line; libvirt's longest are some 20 KiB
READ_WITHIN: Final = 5.0  # seconds; it takes some microseconds
TAKEN_OVER_AFTER: Final = 0.1  # seconds since the last thread was started
READERS: Final = 8  # threads that read of one user's processes
STANDS_ASIDE: Final = 0.001  # seconds at most; a process that hangs takes them once


class ArgumentsHangError(Exception):
    """Whoever reads a process's command line hangs."""


class _Asked:
    """A process whose command line is awaited."""

    __slots__ = ("bug", "goes_on", "is_over", "pid", "text", "turn")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.goes_on = False
        self.is_over = False
        self.turn = trio.Event()  # when it is over, or another thread may be needed
        self.text: bytes | None = None
        self.bug: BaseException | None = None

    def end(self) -> None:
        """Tell who asked."""
        self.is_over = True
        self.turn.set()

    def read(self) -> None:
        """Read it; in a thread."""
        self.goes_on = True
        try:
            self.text = read_of(self.pid, "cmdline", MOST + 1)
        except BaseException as bug:  # noqa: BLE001 - raised where it is awaited
            self.bug = bug
        self.goes_on = False


class _OfOneUser:
    """The readings of one user's processes."""

    def __init__(self) -> None:
        self._asked: deque[_Asked] = deque()  # not yet begun
        self._read: deque[_Asked] = deque()  # not yet told
        self._is_told = False  # by the event loop itself, or soon
        self._is_begun = False  # soon
        self._threads = 0
        self._started = -math.inf  # the last of them
        self._hang: dict[tuple[int, int | None], _Asked] = {}
        self._token = trio.lowlevel.current_trio_token()

    async def read(self, pid: int) -> bytes | None:
        self._hang = {process: each for process, each in self._hang.items() if each.goes_on}
        is_known = bool(self._hang) and (pid, start_time_of(pid)) in self._hang
        if not is_known and len(self._hang) < READERS:
            asked = _Asked(pid)
            if await self._is_read(asked):
                if asked.bug is not None:
                    raise asked.bug
                return asked.text
            if asked.goes_on:
                self._hang[pid, start_time_of(pid)] = asked
        raise ArgumentsHangError(f"/proc/{pid}/cmdline is read without end")

    async def _is_read(self, asked: _Asked) -> bool:
        """Have a process's command line read; return whether it was read in time."""
        self._asked.append(asked)
        give_up = trio.current_time() + READ_WITHIN
        try:
            if self._threads <= len(self._hang) and not self._is_begun:
                self._is_begun = True
                trio.lowlevel.spawn_system_task(self._begin)
            while (now := trio.current_time()) < give_up:
                limit = after(min(TAKEN_OVER_AFTER, give_up - now), asked.turn.set)
                try:
                    await asked.turn.wait()
                finally:
                    limit.cancel()
                if asked.is_over:
                    return True
                asked.turn = trio.Event()
                if trio.current_time() - self._started >= TAKEN_OVER_AFTER:
                    self._start_thread()
        finally:
            if not asked.is_over:
                with suppress(ValueError):  # a thread has begun with it
                    self._asked.remove(asked)
        return False

    async def _begin(self) -> None:
        """Read for all who ask in this turn."""
        await trio.lowlevel.checkpoint()
        self._is_begun = False
        self._stand_aside()

    def _stand_aside(self) -> None:
        """Start a thread, and leave the interpreter to it while it reads."""
        is_told, self._is_told = self._is_told, True
        try:
            with suppress(NoThreadError):  # raised to those who ask, when they have waited
                if (idle := self._start_thread()) is not None:
                    idle.acquire(timeout=STANDS_ASIDE)
        finally:
            self._is_told = is_told
        if not is_told:
            self._tell()

    def _start_thread(self) -> "threading.Lock | None":
        """Start a thread if one is needed; return a lock that it releases when it has read all."""
        if not self._asked or self._threads >= READERS:
            return None
        idle = threading.Lock()
        idle.acquire()
        with needing_a_thread():
            trio.lowlevel.start_thread_soon(lambda: self._read_all(idle), self._ended)
        self._threads += 1
        self._started = trio.current_time()
        return idle

    def _read_all(self, idle: threading.Lock) -> None:
        """Read until nobody asks any more; in a thread."""
        while True:
            try:
                asked = self._asked.popleft()
            except IndexError:
                idle.release()
                return
            asked.read()
            self._read.append(asked)
            if not self._is_told:
                self._is_told = True
                self._call(self._tell)

    def _tell(self) -> None:
        self._is_told = False
        while self._read:
            self._read.popleft().end()

    def _ended(self, _outcome: object) -> None:
        """Note a thread's end; in the thread."""
        self._call(self._note_end)

    def _note_end(self) -> None:
        self._threads -= 1
        self._stand_aside()  # somebody may have asked meanwhile

    def _call(self, call: Callable[[], None]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)


_READINGS: Final = trio.lowlevel.RunVar[defaultdict[int, _OfOneUser]]("who reads command lines")


async def read_arguments(pid: int, users: set[int] | None = None) -> bytes | None:
    r"""Return a process's argv, each with ``\0`` after it; None if it can't be read or is too long.

    Args:
        pid: the process's number.
        users: those that the process is or may become; None: to be read.

    Raises:
        ArgumentsHangError: it can't be read in time.
        NoThreadError: no thread is left.
    """
    try:
        readings = _READINGS.get()
    except LookupError:
        readings = defaultdict(_OfOneUser)
        _READINGS.set(readings)
    text = await readings[max(users or uids_of(pid) or {0})].read(pid)
    return text if text is None or len(text) <= MOST else None
