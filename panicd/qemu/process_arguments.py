"""Reads processes' command lines (argv), which nobody on the event loop may wait for.

The kernel reads argv under a lock of the process's memory (mmap_lock). The lock is held while a
page of that memory is awaited. The page may be on storage that hangs, or that the process's user
has made hang. Then whoever reads hangs too, as ps(1) does. So a thread reads, and panicd gives it
some time. Nothing else is read of such a process until then, and one user's processes hold a few
threads at most.
"""

from collections import defaultdict
from typing import Final

import trio

from panicd.qemu.process_identity import read_of, start_time_of, uids_of
from panicd.qemu.threads import in_thread

MOST: Final = 1 << 20  # bytes of a command line; libvirt's longest are some 20 KiB
READ_WITHIN: Final = 5.0  # seconds; it takes some microseconds
READERS: Final = 8  # threads that read of one user's processes


class ArgumentsHangError(Exception):
    """Whoever reads a process's command line hangs."""


class _Reading:
    """A thread that reads one command line."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.goes_on = False

    def read(self) -> bytes | None:
        self.goes_on = True
        try:
            return read_of(self._pid, "cmdline", MOST + 1)
        finally:
            self.goes_on = False


class _OfOneUser:
    """The readings of one user's processes."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(READERS)
        self._hang: dict[tuple[int, int | None], _Reading] = {}

    async def read(self, pid: int) -> bytes | None:
        self._hang = {process: each for process, each in self._hang.items() if each.goes_on}
        process = pid, start_time_of(pid)
        if process not in self._hang and len(self._hang) < READERS:
            reading = _Reading(pid)
            with trio.move_on_after(READ_WITHIN):
                return await in_thread(reading.read, self._limiter)
            if reading.goes_on:
                self._hang[process] = reading
        raise ArgumentsHangError(f"/proc/{pid}/cmdline is read without end")


_READINGS: Final = trio.lowlevel.RunVar[defaultdict[int, _OfOneUser]]("who reads command lines")


async def read_arguments(pid: int) -> bytes | None:
    r"""Return a process's argv, each with ``\0`` after it; None if it can't be read or is too long.

    Raises:
        ArgumentsHangError: it can't be read in time.
        NoThreadError: no thread is left.
    """
    try:
        readings = _READINGS.get()
    except LookupError:
        readings = defaultdict(_OfOneUser)
        _READINGS.set(readings)
    text = await readings[max(uids_of(pid) or {0})].read(pid)
    return text if text is None or len(text) <= MOST else None
