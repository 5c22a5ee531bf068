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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from panicd.qemu.monitor import Command, CommandError, MonitorError, NoReplyError
from panicd.qemu.session import Session
from panicd.rules.capability import Version
from panicd.rules.guest_memory.dump_file import MAX_NOTES, DumpFile, find_vmcoreinfo
from panicd.rules.guest_memory.memory import MAX_REQUEST, PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo
from panicd.rules.kernel_log import KernelLog, read_log

VMCOREINFO_SINCE: Final[Version] = (2, 11, 0)
FD_NAME: Final = "panicd-range"
HEAD: Final = 1 << 14  # bytes; the ELF headers of a range take some 300
MAX_FILE: Final = HEAD + MAX_NOTES + MAX_REQUEST  # bytes that QEMU may write for a range
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
    if session.capability.version < VMCOREINFO_SINCE:
        raise NotReadableError("this QEMU has no vmcoreinfo device")
    if session.run_state.executes:
        raise NotReadableError("the guest is running")
    deadline = trio.current_time() + timeout
    with _open_file() as file:
        dump = await _write_range(session, file, FIRST, deadline)
        notes = os.pread(file, dump.notes.length, dump.notes.offset)
    reader = read_log(Vmcoreinfo.parse(find_vmcoreinfo(notes)), Limits(lines))
    try:
        request = next(reader)
        while True:
            try:
                data = await _read_range(session, request, deadline)
            except NotReadableError as error:
                request = reader.throw(error)
            else:
                request = reader.send(data)
    except StopIteration as end:
        log: KernelLog = end.value
        return log


async def _read_range(session: Session, request: ReadRequest, deadline: float) -> bytes:
    with _open_file() as file:
        dump = await _write_range(session, file, request, deadline)
        pieces = dump.locate(request.physical, request.length)
        return b"".join(os.pread(file, piece.length, piece.offset) for piece in pieces)


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
    # Both at once: QEMU takes them in their order, and one round trip is enough.
    commands: list[Command] = [("getfd", {"fdname": FD_NAME}), ("dump-guest-memory", arguments)]
    answers = await session.monitor.execute_all_with_fd(commands, file, timeout=_left(deadline))
    for answer in answers:
        match answer:
            case CommandError():
                raise NotReadableError(f"QEMU gives no memory: {answer.description}") from answer
            case NoReplyError():
                raise NotReadableError("the time is over") from answer
            case MonitorError():
                raise answer
    return DumpFile.parse(os.pread(file, HEAD, 0))


def _left(deadline: float) -> float:
    left = deadline - trio.current_time()
    if left <= 0:
        raise NotReadableError("the time is over")
    return left


@contextmanager
def _open_file() -> Iterator[int]:
    """Make a file in memory that can't grow beyond ``MAX_FILE``, whatever QEMU writes."""
    file = os.memfd_create("panicd-range", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, MAX_FILE)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield file
    finally:
        os.close(file)
