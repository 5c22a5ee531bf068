"""A dump of a guest's memory, from QEMU through a pipe into a file that panicd owns.

QEMU gets the writing end of a pipe (``getfd``), so it needs no right to the directory. A
``DumpWriter`` empties it, in a thread of its own, and can give a dump up at any moment.

Source: QAPI ``dump-guest-memory``, ``query-dump``, ``DUMP_COMPLETED`` (``qapi/dump.json``).
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from panicd.dumps.checks import GuestMemory, check_guest, check_host, is_size
from panicd.dumps.directory import dump_path
from panicd.dumps.feeding import feed_ranges
from panicd.dumps.nearly_empty import (
    NotOfKdumpError,
    else_page_by_page,
    is_freed,
    send_ends,
    suits_kdump,
)
from panicd.dumps.page_selection import MAX_LENGTH, PageSelection, selected_pages
from panicd.dumps.standby import DumpHost
from panicd.dumps.windows import windows_parts
from panicd.dumps.writer import DumpProgress, DumpWriter, enlarge
from panicd.qemu.dump_error import DumpByOther, DumpError, DumpFailure
from panicd.qemu.guest_memory import GuestReader, RangeReader, monitor_reader
from panicd.qemu.monitor import (
    CommandError,
    MonitorError,
    NoReplyError,
    SessionLostError,
    UncertainError,
)
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.capability import DETACHED_DUMP_SINCE, DUMP_FORMATS_SINCE
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.settings import CoredumpSettings, DumpFormat

__all__ = ["DumpError", "DumpFailure", "DumpProgress", "FinishedDump", "dump_guest_memory"]

FD_NAME: Final = "panicd-dump"
PROGRESS_CHECK: Final = 1.0  # seconds between two looks at how far a dump is
LOOKING: Final = 30.0
"""Seconds that the search for pages to leave out may take, besides what ``LOOKING_RATE`` gives."""
LOOKING_RATE: Final = 6.25 * 2**30  # bytes of guest memory a second: a tenth of the speed seen here
LOOKING_SHARE: Final = 1 / 4  # the search takes at most this part of a dump's own time
OTHERWISE: Final = DumpFormat.ELF_ZSTD
"""The format of a dump that leaves out no pages. With all pages it is faster and smaller than a
kdump, and other systems' tools read it."""
NO_WINDOWS: Final = "the guest is no Windows that tells of itself"
ALL_OF_WINDOWS: Final = "of a Windows all pages are kept that are not empty"
NOT_BY_OTHERS: Final = "libvirt gives the memory from its beginning to its end only"
CLEARING: Final = 5.0  # seconds to wait for QEMU's next write, with which an abandoned dump ends
NOT_DONE: Final = "QEMU was not done in time"


@dataclass(frozen=True, slots=True)
class FinishedDump:
    """A complete dump.

    Attributes:
        path: where it lies.
        size: in bytes.
        selection: what it leaves out; None if the dump was there already.
    """

    path: Path
    size: int
    selection: PageSelection | None = None


async def dump_guest_memory(
    session: Session,
    settings: CoredumpSettings,
    domain: str,
    incident: str,
    kind: DumpFormat,
    *,
    progress: DumpProgress | None = None,
    by_other: DumpByOther | None = None,
    reader: Callable[[float], GuestReader] | None = None,
    host: DumpHost = DumpHost(),  # noqa: B008 - it is frozen
) -> FinishedDump:
    """Write the memory of a stopped guest to a file.

    The guest must be stopped: QEMU would stop a running one, and a reset during its dump aborts
    QEMU.

    Args:
        session: the VM.
        settings: the directory and the limits; ``timeout`` in seconds.
        domain: its name, for the folder.
        incident: the incident's id, for the file.
        kind: the format, one that this QEMU can write.
        progress: kept up to date meanwhile.
        by_other: has QEMU dump; None: panicd does, by the monitor.
        reader: reads the guest's memory until a moment of trio's clock, if ``by_other``'s side can
            read it in parts as well.
        host: what the dump owes to it, and has of it.

    Raises:
        DumpError: no dump could be made, or panicd did not try.
        UncertainError: the session ended, or QEMU said nothing.
    """
    for each in DumpFormat:
        path = dump_path(settings, session.peer.uid, domain, incident, each)
        if path.exists():
            # It is complete, though panicd was interrupted before it could say so.
            return FinishedDump(path, path.stat().st_size)
    progress = progress or DumpProgress()
    progress.began = trio.current_time()
    check = partial(_check_not_let_go, session, session.vm.times_let_go)
    make = partial(_make, session, settings, domain, incident, kind, progress=progress, check=check)
    make = partial(make, by_other=by_other, reader=reader, host=host)
    try:
        return await make(may_be_of_kdump=by_other is None)
    except NotOfKdumpError as error:
        if not await is_freed(session):
            raise error.why from error
        return await make(may_be_of_kdump=False)


async def _make(
    session: Session,
    settings: CoredumpSettings,
    domain: str,
    incident: str,
    kind: DumpFormat,
    *,
    progress: DumpProgress,
    check: Callable[[], None],
    by_other: DumpByOther | None,
    reader: Callable[[float], GuestReader] | None,
    host: DumpHost,
    may_be_of_kdump: bool,
) -> FinishedDump:
    """Write the memory to a file; see ``dump_guest_memory``.

    ``check`` raises if somebody has let the guest go. With ``may_be_of_kdump`` an ELF core may be
    made of QEMU's kdump.

    Raises:
        NotOfKdumpError: that failed; the memory is still to be dumped.
    """
    memory = await check_guest(session)
    progress.total = memory.size
    progress.completed = progress.received = progress.written = 0
    assert progress.began is not None
    deadline = progress.began + settings.timeout
    async with AsyncExitStack() as stack:
        choosing = _chosen(session, settings, kind, memory, by_other=by_other, reader=reader)
        made, selection = await stack.enter_async_context(choosing)
        if may_be_of_kdump and suits_kdump(session, memory, made, selection):
            stack.enter_context(else_page_by_page())
            selection = replace(selection, of_kdump=True)
        check()
        if selection.reason and settings.level_required:
            raise DumpError(DumpFailure.UNFILTERED, selection.reason)
        _foretell(progress, memory, made, selection)
        path = dump_path(settings, session.peer.uid, domain, incident, made)
        least = memory.least_dump(made, selection.level, progress.left_out)
        start = partial(DumpWriter, path=path, kind=made, settings=settings, selection=selection)
        start = partial(start, least=least, most=memory.most_dump(), progress=progress)
        writer, writing = _started(partial(start, host=host))
        asked = False
        try:
            if selection.ranges:
                guest = RangeReader(session, deadline, MAX_LENGTH)
                run = partial(_feed, guest, writer, writing, selection, check)
            elif by_other is None:
                guest = RangeReader(session, _looking_until(settings, memory), MAX_LENGTH)
                ends = partial(send_ends, writing, guest, memory) if selection.of_kdump else None
                await _hand_over(session, writer, writing, ends)
                check()
                _check_time(deadline)
                run = partial(_run_dump, session, selection.qemus_format(made), deadline, progress)
            else:
                left = deadline - trio.current_time()
                run = partial(_have_dumped, by_other, writer, writing, made, left)
            asked = True
            await _while_it_is_written(writer, run)
            size = await _await_end(writer, deadline)
        except (DumpError, CommandError) as error:
            if isinstance(error, DumpError) and error.failure is DumpFailure.TIMEOUT:
                writer.stop()
                if asked:
                    await _await_clear(session)
            raise _cause(error, writer.error) from error
        finally:
            writer.stop()
            with trio.move_on_after(CLEARING, shield=True):
                await writer.ended.wait()
        return FinishedDump(path, size, selection)


def _started(start: Callable[[int], DumpWriter]) -> tuple[DumpWriter, int]:
    """Return a writer, and its pipe's writing end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    enlarge(reading)
    try:
        return start(reading), writing
    except BaseException:
        os.close(reading)
        os.close(writing)
        raise


@asynccontextmanager
async def _chosen(
    session: Session,
    settings: CoredumpSettings,
    kind: DumpFormat,
    memory: GuestMemory,
    *,
    by_other: DumpByOther | None,
    reader: Callable[[float], GuestReader] | None,
) -> AsyncIterator[tuple[DumpFormat, PageSelection]]:
    """Find out which format the dump has, and what it leaves out."""
    level = kind.level(settings.level)
    if kind.is_elf:
        yield kind, PageSelection(level)
        return
    deadline = _looking_until(settings, memory)
    if reader is not None:
        guest = reader(deadline)
    elif by_other is not None:
        guest = monitor_reader(session, deadline - trio.current_time(), by_other)
    else:
        guest = RangeReader(session, deadline, MAX_LENGTH)
    async with AsyncExitStack() as stack:
        parts, why_not = None, NO_WINDOWS if kind.is_of_windows else ""
        try:
            looking = windows_parts(session, guest, memory.size or 0)
            parts = await stack.enter_async_context(looking)
        except NotReadableError as error:
            why_not = str(error)
        if parts is not None:
            windows = kind if kind.is_of_windows else DumpFormat.WIN_DMP_ZSTD
            reason = ALL_OF_WINDOWS if level > 1 else ""
            yield windows, PageSelection(level & 1, reason=reason, windows=parts)
        elif why_not:
            yield OTHERWISE, PageSelection(level & 1, reason=why_not)
        elif kind is not DumpFormat.KDUMP_ZLIB:
            yield kind, PageSelection(level)
        elif by_other is not None and reader is None:
            yield OTHERWISE, PageSelection(level & 1, reason=NOT_BY_OTHERS)
        else:
            selecting = selected_pages(guest, level, memory.size)
            selection = await stack.enter_async_context(selecting)
            yield OTHERWISE if selection.reason else kind, selection


def _looking_until(settings: CoredumpSettings, memory: GuestMemory) -> float:
    """Return until when panicd may look at a guest's memory before the dump."""
    timeout = LOOKING + (memory.size or 0) / LOOKING_RATE
    return trio.current_time() + min(timeout, settings.timeout * LOOKING_SHARE)


async def _while_it_is_written(writer: DumpWriter, dump: Callable[[], Awaitable[None]]) -> None:
    """Wait for a dump's end, but not much longer than for its writer's end.

    If the writer has failed, QEMU notices with its next write. If not, the dump is complete: as
    many bytes have come as its headers say. If QEMU does not tell of the end, the dump's turn ends.
    """

    async def cut_off(scope: trio.CancelScope) -> None:
        await writer.ended.wait()
        await trio.sleep(CLEARING)
        scope.cancel()

    await _beside(cut_off, dump)


async def _beside(
    aside: Callable[[trio.CancelScope], Awaitable[None]], dump: Callable[[], Awaitable[None]]
) -> None:
    """Run ``aside`` while a dump goes on; ``aside`` may end the dump."""
    problem: DumpError | MonitorError | OSError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(aside, nursery.cancel_scope)
        try:
            await dump()
        except (DumpError, MonitorError, OSError) as error:
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


def _foretell(
    progress: DumpProgress, memory: GuestMemory, kind: DumpFormat, selection: PageSelection
) -> None:
    """Note the dump's expected size.

    Raises:
        DumpError: the host has too little memory for it.
    """
    read = sum(each.length for each in selection.ranges) or None
    check_host(memory, read)
    progress.total = read or memory.size
    progress.left_out = sum(selection.left_out.values()) * PAGE
    progress.expected = memory.expected_dump(
        kind, selection.level, progress.left_out, selection.structures
    )


def _check_time(deadline: float) -> None:
    if trio.current_time() >= deadline:
        raise DumpError(DumpFailure.TIMEOUT, "the time was over before QEMU was asked")


async def _hand_over(
    session: Session, writer: DumpWriter, pipe: int, ends: Callable[[], Awaitable[None]] | None
) -> None:
    """Give QEMU the pipe's writing end, as soon as the dump's file is there.

    ``ends`` writes what comes before QEMU's bytes.
    """
    try:
        if ends is not None:
            await ends()
        await _await_file(writer)
        with suppress(NoReplyError):  # QEMU refuses the dump if it lacks the pipe
            await session.qmp.send_fd(pipe, FD_NAME, timeout=ANSWER_TIMEOUT)
    finally:
        os.close(pipe)


async def _have_dumped(
    by_other: DumpByOther, writer: DumpWriter, pipe: int, kind: DumpFormat, timeout: float
) -> None:
    """Have ``by_other`` dump into the pipe, under the pipe's name in proc(5).

    panicd closes its own end once bytes come. So the writer sees the end, though nobody tells it.
    """
    ours = [pipe]

    async def let_go(_scope: trio.CancelScope) -> None:
        await writer.begun.wait()
        os.close(ours.pop())

    try:
        await _await_file(writer)
        path = Path(f"/proc/{os.getpid()}/fd/{pipe}")
        await _beside(let_go, partial(by_other, path, kind.of_qemu, timeout))
    finally:
        for each in ours:
            os.close(each)


def _check_not_let_go(session: Session, times: int) -> None:
    if session.vm.times_let_go > times:
        why = "the guest was reset or resumed before its memory was read"
        raise DumpError(DumpFailure.OVERTAKEN, why)


async def _feed(
    guest: GuestReader,
    writer: DumpWriter,
    pipe: int,
    selection: PageSelection,
    check: Callable[[], None],
) -> None:
    """Give the writer the memory, a range at a time."""
    async with trio.lowlevel.FdStream(pipe) as stream:
        await _await_file(writer)
        with trio.move_on_at(guest.deadline):
            try:
                await feed_ranges(stream, selection, guest, check)
            except NotReadableError as error:
                check()
                if trio.current_time() < guest.deadline:
                    raise DumpError(DumpFailure.QEMU, str(error)) from error
            except trio.BrokenResourceError as error:
                raise DumpError(DumpFailure.INCOMPLETE, "given up") from error
            else:
                return
        raise DumpError(DumpFailure.TIMEOUT, NOT_DONE)


async def _await_file(writer: DumpWriter) -> None:
    """Wait until the dump's file is there."""
    with trio.move_on_after(ANSWER_TIMEOUT):
        await writer.ready.wait()
    if writer.error is not None:
        raise writer.error
    if not writer.ready.is_set():
        raise DumpError(DumpFailure.UNWRITABLE, "the file system does not answer")


async def _run_dump(session: Session, kind: str, deadline: float, progress: DumpProgress) -> None:
    """Start the dump and wait for its end."""
    session.forget_dump()
    version = session.capability.version
    arguments: dict[str, object] = {"paging": False, "protocol": f"fd:{FD_NAME}"}
    if version >= DUMP_FORMATS_SINCE:
        arguments["format"] = kind
    left = max(0.0, deadline - trio.current_time())
    if version < DETACHED_DUMP_SINCE:
        try:
            await session.execute("dump-guest-memory", arguments, left)
        except NoReplyError as error:
            raise DumpError(DumpFailure.TIMEOUT, NOT_DONE) from error
        return
    with suppress(NoReplyError):  # the event tells, if it comes
        await session.execute("dump-guest-memory", {**arguments, "detach": True})
    while not _dump_ended(session):
        left = deadline - trio.current_time()
        if left <= 0:
            raise DumpError(DumpFailure.TIMEOUT, NOT_DONE)
        await session.observe(lambda: _dump_ended(session), min(left, PROGRESS_CHECK))
        if not _dump_ended(session):
            await _note_progress(session, progress)
    if session.dump is None:
        raise SessionLostError("dump-guest-memory: the session ended before the dump did")
    if not session.dump.completed:
        raise DumpError(DumpFailure.QEMU, session.dump.error)


async def _await_clear(session: Session) -> None:
    """Wait until an abandoned dump has ended in QEMU too, though not for ever.

    Until then QEMU refuses a ``cont``. Before 2.6 it answers nothing at all, and its next answer
    tells that the dump is over.
    """
    if session.capability.version < DETACHED_DUMP_SINCE:
        with suppress(UncertainError):
            await session.query_status(CLEARING)
    else:
        await session.observe(lambda: _dump_ended(session), CLEARING)


def _dump_ended(session: Session) -> bool:
    return session.dump is not None or session.ended


async def _note_progress(session: Session, progress: DumpProgress) -> None:
    """Ask QEMU how far the dump is."""
    try:
        answer = await session.execute("query-dump")
    except (CommandError, NoReplyError):
        return  # it is a hint; an event tells of the dump's end
    if isinstance(answer, dict):
        completed, total = answer.get("completed"), answer.get("total")
        if is_size(completed) and is_size(total):
            progress.completed, progress.total = completed, total


async def _await_end(writer: DumpWriter, deadline: float) -> int:
    """Wait until the dump is a durable file; return its size in bytes."""
    with trio.move_on_at(deadline):
        await writer.ended.wait()
    if writer.error is not None:
        raise writer.error
    if writer.size is None:
        raise DumpError(DumpFailure.TIMEOUT, "the file system was not done in time")
    return writer.size


def _cause(error: DumpError | CommandError, of_writer: DumpError | None) -> DumpError:
    """Return why there is no dump: the writer's error, unless it is that too few bytes came."""
    if of_writer is not None and of_writer.failure is not DumpFailure.INCOMPLETE:
        return of_writer
    if isinstance(error, CommandError):
        return DumpError(DumpFailure.REFUSED, error.description)
    return error
