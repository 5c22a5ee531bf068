"""A dump of a guest's memory, from QEMU through a pipe into a file that panicd owns.

QEMU gets the writing end of a pipe (``getfd``), so it needs no right to the directory; panicd
moves the bytes in a thread of its own, by splice(2), and can give a dump up at any moment: with
the reading end closed, QEMU's next write fails and the dump ends as failed. There is no QMP
command that would cancel one.

Source: QAPI ``dump-guest-memory``, ``DUMP_COMPLETED`` (``qapi/dump.json``).
"""

import errno
import fcntl
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import trio

from panicd.qemu.dump_directory import PARTIAL, dump_path, space
from panicd.qemu.monitor import CommandError, NoReplyError, SessionLostError
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.capability import DETACHED_DUMP_SINCE, DUMP_FORMATS_SINCE
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor

FD_NAME: Final = "panicd-dump"
PIPE_SIZE: Final = 1 << 20  # bytes; the most that an unprivileged process may ask for (pipe(7))
SPACE_CHECK: Final = 64 << 20  # bytes written between two looks at the free space
MAGIC: Final[dict[DumpFormat, bytes]] = {
    DumpFormat.ELF: b"\x7fELF",
    DumpFormat.KDUMP_ZLIB: b"makedumpfile",  # flattened, as QEMU writes every kdump to a pipe
    DumpFormat.KDUMP_LZO: b"makedumpfile",
    DumpFormat.KDUMP_SNAPPY: b"makedumpfile",
}


class DumpFailure(StrEnum):
    """Why there is no dump."""

    NO_SPACE = "no-space"
    UNWRITABLE = "unwritable"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    QEMU = "qemu"
    INCOMPLETE = "incomplete"


class DumpError(Exception):
    """No dump was made; no partial file is left.

    Attributes:
        failure: why, in one word.
    """

    def __init__(self, failure: DumpFailure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure


@dataclass(frozen=True, slots=True)
class FinishedDump:
    """A complete dump; ``size`` in bytes."""

    path: Path
    size: int


async def dump_guest_memory(
    session: Session, settings: CoredumpSettings, domain: str, incident: str, kind: DumpFormat
) -> FinishedDump:
    """Write the memory of a stopped guest to a file.

    The guest must be stopped: of a running one QEMU would stop it, and a reset during its dump
    aborts QEMU. An incident is dumped once: a dump that is complete, though panicd was interrupted
    before it could say so, is taken as it is.

    Args:
        session: the VM.
        settings: where to, and within which limits; ``timeout`` in seconds.
        domain: its name, for the folder.
        incident: the incident's id, for the file.
        kind: the format, one that this QEMU offers.

    Raises:
        DumpError: no dump could be made.
        UncertainError: the session ended, or QEMU said nothing.
    """
    path = dump_path(settings, domain, incident, kind)
    if path.exists():
        return FinishedDump(path, path.stat().st_size)
    with _partial_file(path) as file:
        size = await _write(session, settings, kind, file)
        await trio.to_thread.run_sync(_finish, file, path, kind)
    return FinishedDump(path, size)


class _Copy:
    """Moves bytes from a pipe to a file, in a thread, until the pipe's end or ``stop``.

    The thread owns its descriptors, so nobody need wait for one that a stuck disk holds.

    Attributes:
        size: bytes moved so far.
        error: what ended it early.
        ended: set when it has ended.
    """

    def __init__(self, pipe: int, file: int, floor: FreeSpaceFloor) -> None:
        self.size = 0
        self.error: DumpError | None = None
        self.ended = trio.Event()
        self._pipe = pipe
        self._file = os.dup(file)
        self._floor = floor
        self._stop = os.eventfd(0)
        self._stop_lock = threading.Lock()
        self._trio = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._run, name="coredump", daemon=True).start()

    def stop(self) -> None:
        """Have it end at once. With the pipe closed, QEMU's next write and its dump fail."""
        with self._stop_lock:
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)

    def _run(self) -> None:
        try:
            self._move()
        except DumpError as error:
            self.error = error
        except OSError as error:
            self.error = _dump_error(error)
        finally:
            os.close(self._pipe)
            os.close(self._file)
            with self._stop_lock:
                os.close(self._stop)
                self._stop = -1
            with suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self.ended.set)

    def _move(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        next_check = 0
        while self._stop not in dict(poll.poll()):
            if self.size >= next_check:
                self._check_space()
                next_check = self.size + SPACE_CHECK
            moved = os.splice(self._pipe, self._file, PIPE_SIZE)
            if moved == 0:
                return
            self.size += moved

    def _check_space(self) -> None:
        left = space(self._file).above(self._floor)
        if left <= 0:
            raise DumpError(DumpFailure.NO_SPACE, f"{-left} bytes below min_free")


async def _write(session: Session, settings: CoredumpSettings, kind: DumpFormat, file: int) -> int:
    """Have QEMU dump into the file; return the bytes written."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    copy = _Copy(reading, file, settings.min_free)
    try:
        try:
            with suppress(NoReplyError):  # QEMU refuses the dump, if it has not got the pipe
                await session.monitor.send_fd(writing, FD_NAME, timeout=ANSWER_TIMEOUT)
        finally:
            os.close(writing)
        await _run_dump(session, kind, settings.timeout)
        with trio.fail_after(ANSWER_TIMEOUT):
            await copy.ended.wait()
    except (DumpError, CommandError, trio.TooSlowError) as error:
        raise copy.error or _dump_error(error) from error
    finally:
        copy.stop()
    if copy.error:
        raise copy.error
    return copy.size


async def _run_dump(session: Session, kind: DumpFormat, timeout: float) -> None:
    """Start the dump and wait for its end."""
    session.seen.forget_dump()
    version = session.capability.version
    arguments: dict[str, object] = {"paging": False, "protocol": f"fd:{FD_NAME}"}
    if version >= DUMP_FORMATS_SINCE:
        arguments["format"] = kind.value
    if version < DETACHED_DUMP_SINCE:
        await session.execute("dump-guest-memory", arguments, timeout)
        return
    with suppress(NoReplyError):  # the event tells, if it comes
        await session.execute("dump-guest-memory", {**arguments, "detach": True})
    if not await session.observe(lambda: session.seen.dump is not None, timeout):
        if session.ended:
            raise SessionLostError("dump-guest-memory: the session ended before the dump did")
        raise DumpError(DumpFailure.TIMEOUT, f"not complete after {timeout:g} s")
    if session.seen.dump and not session.seen.dump.completed:
        raise DumpError(DumpFailure.QEMU, session.seen.dump.error)


@contextmanager
def _partial_file(path: Path) -> Iterator[int]:
    """Open a fresh file beside ``path``, and remove it unless it got its name in the end.

    A domain is dumped once at a time, so a partial file that is there was left by a panicd that was
    killed.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in path.parent.glob(f"*{PARTIAL}"):
            left.unlink()
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _dump_error(error) from error
    try:
        yield file
    finally:
        os.close(file)
        partial.unlink(missing_ok=True)


def _finish(file: int, path: Path, kind: DumpFormat) -> None:
    """Check a dump, make it durable and give it its name."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("rb") as start:
            if not start.read(16).startswith(MAGIC[kind]):
                raise DumpError(DumpFailure.INCOMPLETE, f"the file does not begin as {kind} does")
        os.fsync(file)
        partial.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _dump_error(error) from error


def _dump_error(error: Exception) -> DumpError:
    match error:
        case DumpError():
            return error
        case CommandError():
            return DumpError(DumpFailure.REFUSED, error.description)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return DumpError(DumpFailure.NO_SPACE, str(error))
        case trio.TooSlowError():
            return DumpError(DumpFailure.UNWRITABLE, "the file system takes no more")
        case _:
            return DumpError(DumpFailure.UNWRITABLE, str(error))
