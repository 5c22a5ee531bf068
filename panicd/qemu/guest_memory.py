"""What a stopped guest's memory says, over QMP and without a dump.

``dump-guest-memory`` writes a range of a few pages into a memfd, in about a millisecond, and with
each the guest kernel's note on itself. Not detached: QEMU does nothing else meanwhile, so ranges
are small and few. Each takes a fresh file: QEMU 11.1 was seen to abort on one that is used again.

QEMU sends DUMP_COMPLETED for every range, to every monitor, before its answer: whoever waits for
the end of a dump afterwards takes the session's events first. A libvirtd of 9.0.0 dies of dumps
that it did not ask for. Of its domains libvirt itself is asked for the note: for a dump into a
pipe, of which the beginning is taken. The pages are then read by the human monitor.

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
from panicd.qemu.monitor import Command, CommandError, MonitorError, NoReplyError
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.capability import Version
from panicd.rules.guest_memory.dump_file import MAX_NOTES, DumpFile
from panicd.rules.guest_memory.memory import MAX_REQUEST, PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError, Reading, ReadRequest
from panicd.rules.guest_words import GuestWords, read_guest_words

VMCOREINFO_SINCE: Final[Version] = (2, 11, 0)
FD_NAME: Final = "panicd-range"
HEAD: Final = 1 << 14  # bytes; the ELF headers of a range take some 300
ELF: Final = "elf"  # the format of which the beginning has the notes
BEGINNING: Final = 64 * 1024  # bytes of a dump that are waited for: its headers, and some notes
_WORD: Final = re.compile(r"\b0x([0-9a-f]{16})\b")
T = TypeVar("T")

FIRST: Final = (0, 1 << 30, 1 << 31)
"""Where a page may be that a guest has, of which one is asked for to get the note: a PC's, that of
Arm's ``virt``, that of RISC-V's (whose machine is then refused by its name)."""


class NoMemoryThereError(NotReadableError):
    """QEMU refuses a range: the guest has no memory there, if nothing else is wrong."""


class GuestReader(ABC):
    """Reads a stopped guest's memory.

    Attributes:
        deadline: until when it may be done, on trio's clock.
    """

    deadline: float

    @abstractmethod
    async def notes(self) -> bytes:
        """Return the notes of a dump: QEMU's on each processor, the guest kernel's on itself.

        Raises:
            NotReadableError: there are none.
            SessionLostError: the session ended.
        """

    @abstractmethod
    def range(
        self, request: ReadRequest
    ) -> AbstractAsyncContextManager[list[tuple[int, int, int]]]:
        """Yield where a range lies: files in memory, and from where to where in them.

        Raises:
            NotReadableError: it can't be had.
            SessionLostError: the session ended.
        """

    async def read(self, request: ReadRequest) -> bytes:
        """Return a range.

        Raises:
            NotReadableError: it can't be had.
            SessionLostError: the session ended.
        """
        async with self.range(request) as pieces:
            return b"".join(os.pread(file, end - start, start) for file, start, end in pieces)

    async def beginning(self) -> bytes:
        """Return how a dump of the whole memory begins: its headers and its notes.

        Returns:
            Nothing where the whole memory comes faster than parts of it.

        Raises:
            NotReadableError: it can't be had.
            SessionLostError: the session ended.
        """
        return b""

    async def serve(self, reading: Reading[T]) -> T:
        """Give a reading what it asks for; return what it makes of it.

        Raises:
            NotReadableError: it makes nothing of it.
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
    """Read the end of a Linux' log, or a Windows' bug check, within ``Limits``.

    Args:
        reader: of the guest's memory. What was read of a log until its deadline is returned.
        lines: how many at most.

    Raises:
        NotReadableError: there is nothing to be had; the text says why, and may be the guest's.
        SessionLostError: the session ended.
    """
    return await reader.serve(read_guest_words(await reader.notes(), Limits(lines)))


def monitor_reader(
    session: Session, timeout: float, by_other: DumpByOther | None = None
) -> GuestReader:
    """Return what reads a stopped guest's memory by the monitor, in small ranges.

    Whoever reads the session's events finds a DUMP_COMPLETED for each range among them.

    Args:
        session: the VM. Its guest must be stopped: a running one QEMU would stop and resume.
        timeout: seconds for all of it.
        by_other: who has QEMU dump, where others may not; None: panicd, by the monitor.
    """
    deadline = trio.current_time() + timeout
    if by_other is None:
        return RangeReader(session, deadline, MAX_REQUEST)
    return WordReader(session, deadline, by_other)


def _check_readable(session: Session) -> None:
    """See that a guest's kernel can have left a note, and its memory may be read.

    Raises:
        NotReadableError: not so.
    """
    if session.capability.version < VMCOREINFO_SINCE:
        raise NotReadableError("this QEMU has no vmcoreinfo device")
    if session.run_state.executes:
        raise NotReadableError("the guest is running")


@dataclass(frozen=True, slots=True)
class Beginning:
    """The beginning of a dump.

    Attributes:
        file: where in the dump lies what.
        notes: of it.
    """

    file: DumpFile
    notes: bytes


async def beginning_of_dump(dump: DumpByOther, timeout: float) -> Beginning:
    """Return the beginning of a dump that somebody else makes, which is then given up.

    Args:
        dump: has QEMU dump into a path.
        timeout: seconds for all of it.

    Raises:
        NotReadableError: no dump came, or not in time.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    why = ""

    async def have_dumped() -> None:
        nonlocal why
        try:
            await dump(Path(f"/proc/{os.getpid()}/fd/{writing}"), ELF, timeout)
            why = "it ended early"
        except DumpError as error:
            why = str(error)
        finally:
            os.close(writing)

    beginning = None
    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(have_dumped)
            async with trio.lowlevel.FdStream(reading) as stream:
                beginning = await _read_beginning(stream)
            # The pipe is closed now, and the dump ends with that: it is waited for, for QEMU makes
            # one at a time.
    if beginning is None:
        raise NotReadableError(f"no dump's notes: {why or 'the time is over'}")
    return beginning


async def _read_beginning(stream: trio.lowlevel.FdStream) -> Beginning | None:
    """Return a dump's beginning as it comes; None where it ends before."""
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
        deadline: until when it may be done, on trio's clock.
        dump: who has QEMU dump; the dump's beginning has the notes.
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
            printed = await self._session.execute("human-monitor-command", command, left)
        except CommandError as error:
            raise NotReadableError(f"QEMU gives no memory: {error.description}") from error
        except NoReplyError as error:
            raise NotReadableError("the time is over") from error
        words = [int(word, 16) for word in _WORD.findall(str(printed))]
        if len(words) != count:
            raise NotReadableError(f"no guest memory at {request.physical:#x}")
        return struct.pack(f"<{count}Q", *words)


class RangeReader(GuestReader):
    """Reads ranges of a stopped guest's memory, each by a dump of it.

    Args:
        session: the VM. Its guest must be stopped: a running one QEMU would stop and resume.
        deadline: until when it may be done, on trio's clock.
        longest: bytes of a range.

    Raises:
        NotReadableError: this QEMU or this guest gives none.
    """

    def __init__(self, session: Session, deadline: float, longest: int) -> None:
        self.deadline = deadline
        self._session = session
        self._file_size = HEAD + MAX_NOTES + longest

    async def notes(self) -> bytes:
        """Return the notes of a dump: QEMU's, and the guest kernel's on itself.

        Raises:
            NotReadableError: there are none.
            SessionLostError: the session ended.
        """
        _check_readable(self._session)
        # Who does not answer this at once does not answer what follows.
        deadline = min(self.deadline, trio.current_time() + ANSWER_TIMEOUT)
        with memory_file(self._file_size) as file:
            dump = await self._any_range(file, deadline)
            return os.pread(file, dump.notes.length, dump.notes.offset)

    async def beginning(self) -> bytes:
        """Return how a dump of the whole memory begins; see ``GuestReader``.

        The file is full soon after. QEMU says that it failed to write on, which is what is wanted.
        """
        _check_readable(self._session)
        with memory_file(HEAD + MAX_NOTES) as file:
            await _write_part(self._session, file, {}, self.deadline)
            head = os.pread(file, HEAD, 0)
            notes = DumpFile.parse(head).notes
            return os.pread(file, notes.offset + notes.length, 0)

    async def _any_range(self, file: int, deadline: float) -> DumpFile:
        """Have QEMU write a page, whichever it is."""
        *tries, last = (ReadRequest(place, PAGE) for place in FIRST)
        for request in tries:
            with suppress(NoMemoryThereError):
                return await _write_range(self._session, file, request, deadline)
        return await _write_range(self._session, file, last, deadline)

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        """Yield where a range lies: files in memory, and from where to where in them.

        Raises:
            NotReadableError: it can't be had.
            SessionLostError: the session ended.
        """
        with memory_file(self._file_size) as file:
            dump = await _write_range(self._session, file, request, self.deadline)
            pieces = dump.locate(request.physical, request.length)
            yield [(file, piece.offset, piece.offset + piece.length) for piece in pieces]


async def _write_range(
    session: Session, file: int, request: ReadRequest, deadline: float
) -> DumpFile:
    """Have QEMU write a range into a file, and return where in it lies what."""
    part = {"begin": request.physical, "length": request.length}
    refused = await _write_part(session, file, part, deadline)
    if refused is not None:
        raise NoMemoryThereError(f"QEMU gives no memory: {refused.description}") from refused
    return DumpFile.parse(os.pread(file, HEAD, 0))


async def _write_part(
    session: Session, file: int, part: Mapping[str, object], deadline: float
) -> CommandError | None:
    """Have QEMU dump into a file; return the error where it says that it did not."""
    arguments = {"paging": False, "protocol": f"fd:{FD_NAME}", **part}
    commands: list[Command] = [("getfd", {"fdname": FD_NAME}), ("dump-guest-memory", arguments)]
    answers = await session.qmp.execute_all_with_fd(commands, file, timeout=_left(deadline))
    for answer in answers:
        match answer:
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
