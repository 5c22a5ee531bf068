"""Has QEMU write a nearly empty guest's memory as a kdump, of which an ELF core is made.

QEMU writes an ELF core 4 KiB at a time, empty or not, and of a kdump 24 bytes for an empty page.
What is not empty it packs with zlib on one core, which is slower than all that panicd does with an
ELF core. So this is for guests of which the host holds next to nothing: those that panic as they
boot, before they can tell of their memory's use.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Final

import trio

from panicd.dumps.checks import GuestMemory
from panicd.dumps.filter.kdump_stream import START
from panicd.dumps.page_selection import PageSelection
from panicd.dumps.repair import ElfHead
from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.guest_memory import GuestReader
from panicd.qemu.monitor_error import CommandError, NoReplyError
from panicd.qemu.session import Session
from panicd.rules.capability import Version
from panicd.rules.guest_memory.dump_file import DumpFile
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.settings import DumpFormat

PERHAPS_OURS: Final = frozenset(
    {DumpFailure.QEMU, DumpFailure.REFUSED, DumpFailure.INCOMPLETE, DumpFailure.UNWRITABLE}
)
"""Failures that a kdump may have and an ELF core may not."""


NAMES: Final = b"\0.shstrtab\0"
"""The sections' names, the only section of QEMU's that has any content (7.1 and later)."""


BLOCKERS_SINCE: Final[Version] = (6, 0, 0)  # ``blocked-reasons`` of ``query-migrate``
BLOCKER: Final = "dump-guest-memory"
FREEING: Final = 5.0  # seconds


class NotOfKdumpError(Exception):
    """What QEMU wrote could not be made an ELF core; the error says why."""

    def __init__(self, why: DumpError) -> None:
        super().__init__(str(why))
        self.why = why


def suits_kdump(
    session: Session, memory: GuestMemory, kind: DumpFormat, selection: PageSelection
) -> bool:
    """Tell whether a dump is to be made so.

    Args:
        session: the VM.
        memory: the guest's.
        kind: the file's format.
        selection: what is left out.
    """
    if kind is DumpFormat.ELF and not selection.level:
        return False  # empty memory is to be in the file as it is
    if session.capability.version < BLOCKERS_SINCE:
        return False  # whether a second dump is safe could not be told
    qemus = DumpFormat.KDUMP_ZLIB in session.capability.dump_formats
    return memory.is_nearly_empty and kind.is_elf and qemus


async def is_freed(session: Session) -> bool:
    """Wait until QEMU has freed a dump's state, but not for ever; tell whether it has.

    A new dump shares that state, and QEMU tells of a dump's end before it frees it. The last thing
    that it then does is to allow migrations again (``dump/dump.c``, ``dump_cleanup``).

    Raises:
        SessionLostError: the session ended.
    """
    with trio.move_on_after(FREEING):
        while True:
            try:
                answer = await session.execute("query-migrate")
            except (CommandError, NoReplyError):
                return False
            reasons = answer.get("blocked-reasons", ()) if isinstance(answer, dict) else ()
            if not any(BLOCKER in str(reason) for reason in reasons):
                return True
            await trio.sleep(FREEING / 100)
    return False


@contextmanager
def else_page_by_page() -> Iterator[None]:
    """Tell the failures of a kdump from those that an ELF core would have too.

    Raises:
        NotOfKdumpError: the dump failed, but may succeed as an ELF core.
    """
    try:
        yield
    except NotReadableError as error:
        raise NotOfKdumpError(DumpError(DumpFailure.QEMU, str(error))) from error
    except DumpError as error:
        if error.failure in PERHAPS_OURS:
            raise NotOfKdumpError(error) from error
        raise


async def send_ends(pipe: int, reader: GuestReader, memory: GuestMemory) -> None:
    """Write into a pipe what the core has before and behind its memory; a kdump is to follow.

    Args:
        pipe: the writing end.
        reader: of the stopped guest's memory.
        memory: its size.

    Raises:
        NotReadableError: the core can't be foretold, or the time is over.
        SessionLostError: the session ended.
        DumpError: nobody reads the pipe any more.
    """
    ends = foretold(await reader.beginning(), memory.most_dump() or 0)
    with trio.move_on_at(reader.deadline):
        async with trio.lowlevel.FdStream(os.dup(pipe)) as stream:
            try:
                await stream.send_all(ends)
            except trio.BrokenResourceError as error:
                raise DumpError(DumpFailure.INCOMPLETE, "given up") from error
        return
    raise NotReadableError("the time is over")


def foretold(beginning: bytes, most: int) -> bytes:
    """Return what a core has before its memory, its head repaired, and what it has behind it.

    It begins with the sizes of the three (``START``).

    Args:
        beginning: the former, as QEMU writes it.
        most: bytes that the core may have.

    Raises:
        NotReadableError: that, and the memory in the order of addresses, is not the whole core.
    """
    memory = DumpFile.parse(beginning).memory
    head = ElfHead.read(beginning)
    *offsets, end = accumulate((piece.length for piece in memory), initial=len(beginning))
    if head is None or head.size > len(beginning):
        raise NotReadableError("its tables are not understood")
    if [piece.offset for piece in memory] != offsets:
        raise NotReadableError("its memory does not lie behind its notes")
    if end > most:
        raise NotReadableError("its memory is more than the guest can have")
    if sorted(memory, key=lambda piece: piece.physical) != list(memory):
        raise NotReadableError("its memory does not lie in the order of addresses")
    match [section for section in head.sections(beginning) if section[1]]:
        case []:
            behind = b""
        case [(offset, size)] if (offset, size) == (end, len(NAMES)):
            behind = NAMES
        case _:
            raise NotReadableError("it has sections that are not known")
    start = START.pack(len(beginning), end - len(beginning), len(behind))
    return start + head.repaired(beginning[: head.size]) + beginning[head.size :] + behind
