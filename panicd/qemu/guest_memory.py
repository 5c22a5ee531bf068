"""The kernel log of a stopped guest, over QMP and without a dump.

``dump-guest-memory`` writes a range of a few pages into a memfd, in under a millisecond, and with
each the guest kernel's note on itself. Not detached: QEMU does nothing else meanwhile, so ranges
are small and few. Each takes a fresh file: QEMU 11.1 was seen to abort on one that is used again.

QEMU sends DUMP_COMPLETED for every range, to every monitor, before its answer: whoever waits for
the end of a dump afterwards takes the session's events first. A libvirtd of 9.0.0 dies of dumps
that it did not ask for: there, this must not be called.

Source: QAPI ``dump-guest-memory`` (``qapi/dump.json``).
"""

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from panicd.qemu.monitor import CommandError, NoReplyError
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.capability import Version
from panicd.rules.guest_memory.dump_file import MAX_NOTES, DumpFile, find_vmcoreinfo
from panicd.rules.guest_memory.memory import MAX_REQUEST, PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo
from panicd.rules.kernel_log import KernelLog, read_log

VMCOREINFO_SINCE: Final[Version] = (2, 11, 0)
FD_NAME: Final = "panicd-range"
HEAD: Final = 1 << 14  # bytes; the ELF headers of a range take some 300
FIRST: Final = ReadRequest(0, PAGE)  # any page will do for the note; a PC has this one


async def read_kernel_log(session: Session, *, lines: int, timeout: float) -> KernelLog:
    """Read the last lines of a stopped guest's kernel log, within ``Limits``.

    Whoever reads the session's events finds a DUMP_COMPLETED for each range among them.

    Args:
        session: the VM. Its guest must be stopped: a running one QEMU would stop and resume.
        lines: how many at most.
        timeout: seconds for all of it. What was read until then is returned.

    Raises:
        NotReadableError: there is no log to be had; the text says why, and may be the guest's.
        SessionLostError: the session ended.
    """
    ranges = RangeReader(session, trio.current_time() + timeout, MAX_REQUEST)
    reader = read_log(Vmcoreinfo.parse(await ranges.vmcoreinfo()), Limits(lines))
    try:
        request = next(reader)
        while True:
            try:
                data = await ranges.read(request)
            except NotReadableError as error:
                request = reader.throw(error)
            else:
                request = reader.send(data)
    except StopIteration as end:
        log: KernelLog = end.value
        return log


class RangeReader:
    """Reads ranges of a stopped guest's memory.

    Args:
        session: the VM. Its guest must be stopped: a running one QEMU would stop and resume.
        deadline: until when it may be done, on trio's clock.
        longest: bytes of a range.

    Attributes:
        deadline: the same.

    Raises:
        NotReadableError: this QEMU or this guest gives none.
    """

    def __init__(self, session: Session, deadline: float, longest: int) -> None:
        self.deadline = deadline
        self._session = session
        self._file_size = HEAD + MAX_NOTES + longest

    async def vmcoreinfo(self) -> bytes:
        """Return the guest kernel's note on itself.

        Raises:
            NotReadableError: there is none.
            SessionLostError: the session ended.
        """
        if self._session.capability.version < VMCOREINFO_SINCE:
            raise NotReadableError("this QEMU has no vmcoreinfo device")
        if self._session.run_state.executes:
            raise NotReadableError("the guest is running")
        # Who does not answer this at once does not answer what follows.
        deadline = min(self.deadline, trio.current_time() + ANSWER_TIMEOUT)
        with _open_file(self._file_size) as file:
            dump = await _write_range(self._session, file, FIRST, deadline)
            return find_vmcoreinfo(os.pread(file, dump.notes.length, dump.notes.offset))

    async def read(self, request: ReadRequest) -> bytes:
        """Return a range.

        Raises:
            NotReadableError: it can't be had.
            SessionLostError: the session ended.
        """
        async with self.range(request) as pieces:
            return b"".join(os.pread(file, end - start, start) for file, start, end in pieces)

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        """Yield where a range lies: files in memory, and from where to where in them.

        Raises:
            NotReadableError: it can't be had.
            SessionLostError: the session ended.
        """
        with _open_file(self._file_size) as file:
            dump = await _write_range(self._session, file, request, self.deadline)
            pieces = dump.locate(request.physical, request.length)
            yield [(file, piece.offset, piece.offset + piece.length) for piece in pieces]


async def _write_range(
    session: Session, file: int, request: ReadRequest, deadline: float
) -> DumpFile:
    """Have QEMU write a range into a file, and return where in it lies what."""
    arguments: dict[str, object] = {
        "paging": False,
        "protocol": f"fd:{FD_NAME}",
        "begin": request.physical,
        "length": request.length,
    }
    try:
        await session.monitor.send_fd(file, FD_NAME, timeout=_left(deadline))
        await session.execute("dump-guest-memory", arguments, _left(deadline))
    except CommandError as error:
        raise NotReadableError(f"QEMU gives no memory: {error.description}") from error
    except NoReplyError as error:
        raise NotReadableError("the time is over") from error
    return DumpFile.parse(os.pread(file, HEAD, 0))


def _left(deadline: float) -> float:
    left = deadline - trio.current_time()
    if left <= 0:
        raise NotReadableError("the time is over")
    return left


@contextmanager
def _open_file(size: int) -> Iterator[int]:
    """Make a file in memory that can't grow beyond ``size`` bytes, whatever QEMU writes."""
    file = os.memfd_create("panicd-range", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield file
    finally:
        os.close(file)
