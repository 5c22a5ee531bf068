"""Reads a stopped guest's memory over QMP, without a dump.

``dump-guest-memory`` writes a range of a few pages into a memfd, in about a millisecond, and with
each range the guest kernel's note on itself. The command is not detached: QEMU does nothing else
meanwhile, so ranges are small and few. Each range takes a fresh file: QEMU 11.1 was seen to abort
on a file that is used again.

QEMU sends DUMP_COMPLETED for every range, to every monitor, before its answer. Whoever waits for
the end of a dump afterwards takes the session's events first. libvirtd 9.0.0 dies of dumps that it
did not ask for. So for its domains panicd asks libvirt for a dump into a pipe, and takes the note
from the dump's beginning. The human monitor then reads the pages.

Source: QAPI ``dump-guest-memory`` (``qapi/dump.json``); the human monitor's ``xp``
(``hmp-commands.hx``).
"""

import fcntl
import os
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import trio

from panicd.qemu.dump_error import DumpByOther, DumpError
from panicd.qemu.monitor import (
    Command,
    CommandError,
    MonitorError,
    NoReplyError,
    SessionLostError,
)
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.capability import Version
from panicd.rules.guest_memory.dump_file import MAX_NOTES, DumpFile
from panicd.rules.guest_memory.memory import MAX_REQUEST, PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError, Reading, ReadRequest
from panicd.rules.guest_words import GuestWords, read_guest_words
from panicd.rules.qapi import printed

VMCOREINFO_SINCE: Final[Version] = (2, 11, 0)
FD_NAME: Final = "panicd-range"
HEAD: Final = 1 << 14  # bytes; the ELF headers of a range take some 300
ELF: Final = "elf"  # the dump format that has its notes at the beginning
BEGINNING: Final = 64 * 1024  # bytes of a dump to wait for: its headers, and some notes
_WORD: Final = re.compile(r"\b0x([0-9a-f]{16})\b")
T = TypeVar("T")

FIRST: Final = (0, 1 << 30, 1 << 31)
"""Where a guest may have a page, to be asked for with the note: on a PC, on Arm's ``virt``, on
RISC-V's (whose machine is then refused by its name)."""


class NoMemoryThereError(NotReadableError):
    """QEMU refuses a range: the guest has no memory there, if nothing else is wrong."""


class GuestReader(ABC):
    """Reads a stopped guest's memory.

    Attributes:
        deadline: the latest time for reading, on trio's clock.
    """

    deadline: float

    @abstractmethod
    async def notes(self) -> bytes:
        """Return the notes of a dump: QEMU's on each processor, the guest kernel's on itself.

        Raises:
            NotReadableError: the dump has no notes.
            SessionLostError: the session ended.
        """

    @abstractmethod
    def range(
        self, request: ReadRequest
    ) -> AbstractAsyncContextManager[list[tuple[int, int, int]]]:
        """Yield where a range lies: files in memory, and its start and end in each.

        Raises:
            NotReadableError: the range can't be read.
            SessionLostError: the session ended.
        """

    async def read(self, request: ReadRequest) -> bytes:
        """Return a range.

        Raises:
            NotReadableError: the range can't be read.
            SessionLostError: the session ended.
        """
        async with self.range(request) as pieces:
            return b"".join(os.pread(file, end - start, start) for file, start, end in pieces)

    async def beginning(self) -> bytes:
        """Return the beginning of a dump of the whole memory: its headers and its notes.

        Returns:
            Nothing where reading the whole memory is faster than reading parts of it.

        Raises:
            NotReadableError: the beginning can't be read.
            SessionLostError: the session ended.
        """
        return b""

    async def serve(self, reading: Reading[T]) -> T:
        """Give a reading the ranges that it asks for, and return its result.

        Raises:
            NotReadableError: the reading has no result.
            SessionLostError: the session ended.
        """
        try:
            request = next(reading)
            while True:
                try:
                    data = await self.read(request)
                except NotReadableError as error:
                    request = reading.throw(error)
                else:
                    request = reading.send(data)
        except StopIteration as end:
            made: T = end.value
            return made


async def read_words(reader: GuestReader, lines: int) -> GuestWords:
    """Read the end of a Linux guest's log, or a Windows guest's bug check, within ``Limits``.

    Args:
        reader: reads the guest's memory. A log is returned as far as it was read by the deadline.
        lines: how many at most.

    Raises:
        NotReadableError: nothing can be read; the text says why, and may come from the guest.
        SessionLostError: the session ended.
    """
    return await reader.serve(read_guest_words(await reader.notes(), Limits(lines)))


def monitor_reader(
    session: Session, timeout: float, by_other: DumpByOther | None = None
) -> GuestReader:
    """Return a reader of a stopped guest's memory, by the monitor, in small ranges.

    The session's events then have a DUMP_COMPLETED for each range.

    Args:
        session: the VM. Its guest must be stopped: QEMU would stop and resume a running one.
        timeout: seconds for all reading.
        by_other: has QEMU dump where panicd may not; None: panicd does, by the monitor.
    """
    deadline = trio.current_time() + timeout
    if by_other is None:
        return RangeReader(session, deadline, MAX_REQUEST)
    return WordReader(session, deadline, by_other)


def _check_readable(session: Session) -> None:
    """Check that the guest's kernel can have left a note, and its memory may be read.

    Raises:
        NotReadableError: no note is possible, or the memory may not be read.
    """
    if session.capability.version < VMCOREINFO_SINCE:
        raise NotReadableError("this QEMU has no vmcoreinfo device")
    if session.run_state.executes:
        raise NotReadableError("the guest is running")


@dataclass(frozen=True, slots=True)
class Beginning:
    """The beginning of a dump.

    Attributes:
        file: the places of the parts in the dump.
        notes: the dump's notes.
    """

    file: DumpFile
    notes: bytes


async def beginning_of_dump(dump: DumpByOther, timeout: float) -> Beginning:
    """Return the beginning of a dump that another program makes; then give up the dump.

    Args:
        dump: has QEMU dump into a path.
        timeout: seconds for the whole call.

    Raises:
        NotReadableError: no dump came, or not in time.
        SessionLostError: the session ended.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    why = ""
    lost: SessionLostError | None = None  # not in a group of the nursery's

    async def have_dumped() -> None:
        nonlocal why, lost
        try:
            await dump(Path(f"/proc/{os.getpid()}/fd/{writing}"), ELF, timeout)
            why = why or "it ended early"
        except DumpError as error:
            why = why or str(error)
        except SessionLostError as error:
            lost = error
        finally:
            os.close(writing)

    beginning = None
    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(have_dumped)
            async with trio.lowlevel.FdStream(reading) as stream:
                try:
                    beginning = await _read_beginning(stream)
                except NotReadableError as error:
                    why = str(error)
            # Closing the pipe ends the dump. Wait for this end: QEMU makes one dump at a time.
    if lost is not None:
        raise lost
    if beginning is None:
        raise NotReadableError(f"no dump's notes: {why or 'the time is over'}")
    return beginning


async def _read_beginning(stream: trio.lowlevel.FdStream) -> Beginning | None:
    """Read a dump's beginning; return None where the dump ends too early."""
    came = b""
    while data := await stream.receive_some(BEGINNING):
        came += data
        if len(came) >= BEGINNING:
            file = DumpFile.parse(came)
            end = file.notes.offset + file.notes.length
            if len(came) >= end:
                return Beginning(file, came[file.notes.offset : end])
    return None


class WordReader(GuestReader):
    """Reads a stopped guest's memory by the human monitor, which prints it in words of eight bytes.

    Args:
        session: the VM.
        deadline: the latest time for reading, on trio's clock.
        dump: has QEMU dump; the dump's beginning has the notes.
    """

    def __init__(self, session: Session, deadline: float, dump: DumpByOther) -> None:
        self.deadline = deadline
        self._session = session
        self._dump = dump

    async def notes(self) -> bytes:
        """Return the notes of a dump; see ``GuestReader``."""
        _check_readable(self._session)
        return (await beginning_of_dump(self._dump, _left(self.deadline))).notes

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        """Yield where a range lies; see ``GuestReader``."""
        with memory_file(request.length) as file:
            os.pwrite(file, await self.read(request), 0)
            yield [(file, 0, request.length)]

    async def read(self, request: ReadRequest) -> bytes:
        """Return a range; see ``GuestReader``."""
        count = request.length // 8
        command = {"command-line": f"xp /{count}gx {request.physical:#x}"}
        left = _left(self.deadline)
        try:
            answer = await self._session.execute("human-monitor-command", command, left)
        except CommandError as error:
            raise NotReadableError(f"QEMU gives no memory: {error.description}") from error
        except NoReplyError as error:
            raise NotReadableError("the time is over") from error
        words = [int(word, 16) for word in _WORD.findall(printed(answer))]
        if len(words) != count:
            raise NotReadableError(f"no guest memory at {request.physical:#x}")
        return struct.pack(f"<{count}Q", *words)


class RangeReader(GuestReader):
    """Reads ranges of a stopped guest's memory, each by a dump of it.

    Args:
        session: the VM. Its guest must be stopped: QEMU would stop and resume a running one.
        deadline: the latest time for reading, on trio's clock.
        longest: most bytes of a range.

    Raises:
        NotReadableError: this QEMU or this guest gives no ranges.
    """

    def __init__(self, session: Session, deadline: float, longest: int) -> None:
        self.deadline = deadline
        self._session = session
        self._file_size = HEAD + MAX_NOTES + longest

    async def notes(self) -> bytes:
        """Return the notes of a dump: QEMU's, and the guest kernel's on itself.

        Raises:
            NotReadableError: the dump has no notes.
            SessionLostError: the session ended.
        """
        _check_readable(self._session)
        # A QEMU that does not answer this at once will not answer the next commands.
        deadline = min(self.deadline, trio.current_time() + ANSWER_TIMEOUT)
        with memory_file(self._file_size) as file:
            dump = await self._any_range(file, deadline)
            return os.pread(file, dump.notes.length, dump.notes.offset)

    async def beginning(self) -> bytes:
        """Return the beginning of a dump of the whole memory; see ``GuestReader``.

        The file is soon full. QEMU then reports that writing failed, as intended.
        """
        _check_readable(self._session)
        for size in (BEGINNING, HEAD + MAX_NOTES):
            with memory_file(size) as file:
                await _write_part(self._session, file, {}, self.deadline)
                notes = DumpFile.parse(os.pread(file, HEAD, 0)).notes
                beginning = os.pread(file, notes.offset + notes.length, 0)
            if notes.offset + notes.length <= size:
                break  # else a guest of many processors
        return beginning

    async def _any_range(self, file: int, deadline: float) -> DumpFile:
        """Have QEMU write any one page."""
        *tries, last = (ReadRequest(place, PAGE) for place in FIRST)
        for request in tries:
            with suppress(NoMemoryThereError):
                return await _write_range(self._session, file, request, deadline)
        return await _write_range(self._session, file, last, deadline)

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        """Yield where a range lies: files in memory, and its start and end in each.

        Raises:
            NotReadableError: the range can't be read.
            SessionLostError: the session ended.
        """
        with memory_file(self._file_size) as file:
            dump = await _write_range(self._session, file, request, self.deadline)
            pieces = dump.locate(request.physical, request.length)
            yield [(file, piece.offset, piece.offset + piece.length) for piece in pieces]


async def _write_range(
    session: Session, file: int, request: ReadRequest, deadline: float
) -> DumpFile:
    """Have QEMU write a range into a file; return the places of the file's parts."""
    part = {"begin": request.physical, "length": request.length}
    refused = await _write_part(session, file, part, deadline)
    if refused is not None:
        raise NoMemoryThereError(f"QEMU gives no memory: {refused.description}") from refused
    return DumpFile.parse(os.pread(file, HEAD, 0))


async def _write_part(
    session: Session, file: int, part: Mapping[str, object], deadline: float
) -> CommandError | None:
    """Have QEMU dump into a file; return QEMU's error if it reports one."""
    arguments = {"paging": False, "protocol": f"fd:{FD_NAME}", **part}
    commands: list[Command] = [("getfd", {"fdname": FD_NAME}), ("dump-guest-memory", arguments)]
    answers = await session.qmp.execute_all_with_fd(commands, file, timeout=_left(deadline))
    for number, answer in enumerate(answers):
        match answer:
            case CommandError() if number == 0:
                raise NotReadableError(f"QEMU takes no file: {answer.description}") from answer
            case CommandError():
                return answer
            case NoReplyError():
                raise NotReadableError("the time is over") from answer
            case MonitorError():
                raise answer
    return None


def _left(deadline: float) -> float:
    left = deadline - trio.current_time()
    if left <= 0:
        raise NotReadableError("the time is over")
    return left


@contextmanager
def memory_file(size: int) -> Iterator[int]:
    """Make a file in memory that can't grow beyond ``size`` bytes, whatever QEMU writes."""
    file = os.memfd_create("panicd-range", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield file
    finally:
        os.close(file)
