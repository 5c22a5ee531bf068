"""Writes a dump's bytes from QEMU's pipe to its file, in a thread that owns both.

This thread does all that may hang on a slow or dead disk: it makes the file, writes it, makes it
durable and removes it. So nobody else waits for the disk. An abandoned dump leaves nothing behind
as soon as the disk lets go.

::

    elf         QEMU ── pipe ──► head repaired, the rest by splice(2) ──► file
    elf-zstd    QEMU ── pipe ──► the same ── pipe ──► filter.elf_filter ──► file; so elf of level 1
                the core's ends, then QEMU's kdump ── pipe ──► the same ──► file
    kdump-zlib  QEMU ── pipe ──► the same ── pipe ──► filter.page_filter ──► file
                QEMU ── files in memory, a range each ── pipe, frames ──► the same filter ──► file
    win-dmp     QEMU ── pipe ──► the same ── pipe ──► filter.windows_filter
                ── pipe ──► filter.elf_filter ──► file
    kdump-*     QEMU ── pipe ──► pieces to their places ──► file, then its head repaired

QEMU writes the last one to a pipe in makedumpfile's flattened format. That is a row of pieces, each
with its place in the real file. In their places they make the file that all tools read. Few tools
read the flattened format.

Sources: splice(2), pipe(7), flock(2); makedumpfile(8), ``-F``; QEMU ``dump/dump.c``.
"""

import errno
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

from panicd.dumps import repair as dump_repair
from panicd.dumps.directory import give_name, partial_file, remove_abandoned, space
from panicd.dumps.filter.core_stream import FRAMED
from panicd.dumps.filter.elf_filter import KDUMP
from panicd.dumps.page_selection import PageSelection
from panicd.dumps.standby import ELF_FILTER, DumpHost, Filter
from panicd.evidence.bundle_store import allocated
from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.threads import NoThreadError, needing_a_thread
from panicd.rules.settings import CoredumpSettings, DumpFormat

CHUNK: Final = 1 << 20  # bytes moved at once, and in the pipe: the most that pipe(7) lets users ask
LITTLE: Final = CHUNK // 4
GATHERING: Final = 0.0003
"""Seconds for which more of a kdump may come, if it came in less than ``LITTLE`` bytes. QEMU writes
an empty guest's in pieces of 16 KiB, and loses a tenth of its time if each wakes two processes."""
SPACE_CHECK: Final = 64 << 20  # bytes written between two looks at the free space
WINDOWS_FILTER: Final = "panicd.dumps.filter.windows_filter"
PAGE_FILTER: Final = "panicd.dumps.filter.page_filter"

PATIENCE: Final = 60.0
"""Seconds that a dump may wait for QEMU, besides those that ``LEAST_RATE`` gives it."""

LEAST_RATE: Final = 256 << 10
"""Bytes a second that QEMU has to write on average; a guest wholly on a slow swap comes faster."""

LEAST_KDUMP_RATE: Final = 4 << 10
"""The same for a kdump, which has 24 bytes for a page full of zeros."""

_POLL_AT_MOST: Final = (1 << 31) - 1
"""Milliseconds; poll(2) takes an int, and a guest of a terabyte is given longer."""

_FLAT_HEADER_SIZE: Final = 4096
_FLAT_SIGNATURE: Final = b"makedumpfile\0"
_PIECE: Final = struct.Struct(">qq")  # a piece's place and size; both -1 at the end
_MAX_PIECE: Final = dump_repair.MAX_HEAD
_MAX_GAPS: Final = (
    1 << 20
)  # bytes: what QEMU leaves out between the pieces is less than some blocks
_ELF_START: Final = 64  # bytes that tell where the tables are


@dataclass(slots=True)
class DumpProgress:
    """How far a dump is; up to date while the dump goes on.

    Attributes:
        began: when, on trio's clock; None before.
        total: bytes of guest memory to read; None if QEMU doesn't tell.
        completed: bytes of guest memory dumped, from ``query-dump``; 0 before QEMU 2.6.
        received: bytes that came from QEMU so far, in its own format.
        left_out: bytes of guest memory that the dump leaves out, empty pages apart.
        expected: about how many bytes the file will take, known before it is written; None if
            unknown.
        written: bytes that the file takes so far.
    """

    began: float | None = None
    total: int | None = None
    completed: int = 0
    received: int = 0
    left_out: int = 0
    expected: int | None = None
    written: int = 0


class _StoppedError(Exception):
    """The dump is to be given up."""


class DumpWriter:
    """Writes one dump, from its beginning to a finished file, or to nothing.

    Args:
        pipe: the reading end, which the writer owns once it is made. It closes the pipe however the
            writing ends: QEMU's next write and its dump then fail. No QMP command would cancel a
            dump.
        path: the finished file.
        kind: QEMU's format, and the file's.
        settings: for ``directory`` and ``min_free``.
        selection: the pages to leave out.
        least: bytes that the file will probably take at least.
        most: bytes that QEMU may write; None: as many as there is space for.
        progress: kept up to date.
        host: what the dump owes to it, and has of it.

    Raises:
        DumpError: no thread is left for it.
        OSError: no file descriptor is left for it.

    Attributes:
        ready: set when the file is there and has space, or at the end.
        begun: set when bytes have come through the pipe.
        ended: set at the end.
        error: why there is no dump.
        size: the finished file's, in bytes; None before.
    """

    def __init__(
        self,
        pipe: int,
        path: Path,
        kind: DumpFormat,
        *,
        settings: CoredumpSettings,
        selection: PageSelection,
        least: int,
        most: int | None,
        progress: DumpProgress,
        host: DumpHost,
    ) -> None:
        self.ready = trio.Event()
        self.begun = trio.Event()
        self.ended = trio.Event()
        self.error: DumpError | None = None
        self.size: int | None = None
        self._pipe = pipe
        self._path = path
        self._kind = kind
        self._settings = settings
        self._selection = selection
        self._least = least
        self._most = most
        self._waited = 0.0  # seconds, for QEMU
        self._progress = progress
        self._host = host
        self._next_check = SPACE_CHECK
        self._filters: list[subprocess.Popen[bytes] | Filter] = []
        self._stop_lock = threading.Lock()
        self._trio = trio.lowlevel.current_trio_token()
        given = [selection.bitmap, selection.windows]
        with ExitStack() as on_failure:
            # A descriptor of its own: the thread may outlive the giver's.
            self._given = next((os.dup(each) for each in given if each is not None), None)
            if self._given is not None:
                on_failure.callback(os.close, self._given)
            self._stop = os.eventfd(0)
            on_failure.callback(os.close, self._stop)
            try:
                with needing_a_thread():
                    threading.Thread(target=self._run, name="coredump", daemon=True).start()
            except NoThreadError as error:
                raise DumpError(DumpFailure.NO_MEMORY, str(error)) from error
            on_failure.pop_all()

    def stop(self) -> None:
        """End the writing, and leave nothing behind, as soon as the disk allows."""
        with self._stop_lock:
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)
            for process in self._filters:
                process.kill()

    def _run(self) -> None:
        try:
            self._make_dump()
        except DumpError as error:
            self.error = error
        except OSError as error:
            self.error = DumpError.of(error)
        except _StoppedError:
            self.error = DumpError(DumpFailure.INCOMPLETE, "given up")
        finally:
            os.close(self._pipe)
            if self._given is not None:
                os.close(self._given)
            with self._stop_lock:
                os.close(self._stop)
                self._stop = -1
            self._tell(self.ready)
            self._tell(self.ended)
        self._host.renew()

    def _tell(self, event: trio.Event) -> None:
        with suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(event.set)

    def _make_dump(self) -> None:
        remove_abandoned(self._settings.directory)
        if self._path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._path)
        with partial_file(self._path) as file:
            self._check_space(file, self._least)
            self._tell(self.ready)
            about = [str(self._selection.level), self._selection.about()]
            given = [] if self._given is None else [str(self._given)]
            kdump = [KDUMP] if self._selection.of_kdump else []
            match self._kind:
                case DumpFormat.ELF if self._selection.level == 0:
                    self._copy_elf(file, file)
                case DumpFormat.ELF:
                    self._filter_elf(file, [ELF_FILTER, "plain", *about, *kdump])
                case DumpFormat.ELF_ZSTD:
                    self._filter_elf(file, [ELF_FILTER, "zstd", *about, *kdump])
                case DumpFormat.KDUMP_ZLIB:
                    framed = [FRAMED] if self._selection.ranges else []
                    self._filter_elf(file, [PAGE_FILTER, *about, *given, *framed])
                case DumpFormat.WIN_DMP:
                    first = [WINDOWS_FILTER, *given]
                    self._filter_elf(file, first, [ELF_FILTER, "plain", *about])
                case DumpFormat.WIN_DMP_ZSTD:
                    first = [WINDOWS_FILTER, *given]
                    self._filter_elf(file, first, [ELF_FILTER, "zstd", *about])
                case _:
                    self._place_pieces(file)
                    self._repair_kdump(file)
            os.fsync(file)
            self._check_stopped(select.poll(), 0)
            give_name(self._path)
            self.size = self._note_written(file).st_size

    def _check_space(self, file: int, least: int) -> None:
        left = space(file).above(self._settings.min_free)
        if left <= 0:
            raise DumpError(DumpFailure.NO_SPACE, f"{-left} bytes below min_free")
        if left < least:
            room = f"room for {left} of the {least} bytes that it takes at least"
            raise DumpError(DumpFailure.NO_SPACE, room)

    def _wait(self) -> None:
        """Wait for bytes to read, and for the turn to read them."""
        self._host.give_way()
        is_elf = self._selection.qemus_format(self._kind) == DumpFormat.ELF.value
        least = LEAST_RATE if is_elf else LEAST_KDUMP_RATE
        patience = PATIENCE + self._progress.received / least - self._waited
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        began = time.monotonic()
        is_there = self._check_stopped(poll, max(0, min(int(patience * 1000), _POLL_AT_MOST)))
        self._waited += time.monotonic() - began
        if not is_there:
            raise DumpError(
                DumpFailure.TOO_SLOW,
                f"QEMU wrote {self._progress.received} bytes in {self._waited:.0f} s of waiting",
            )

    def _check_stopped(self, poll: select.poll, timeout: int) -> bool:
        """Wait at most ``timeout`` milliseconds for a registered event, or to be told to stop.

        Returns:
            Whether a registered event came.
        """
        poll.register(self._stop, select.POLLIN)
        found = dict(poll.poll(timeout))
        if self._stop in found:
            raise _StoppedError
        return bool(found)

    def _count(self, size: int, file: int) -> int:
        if self._progress.received == 0 < size:
            self._tell(self.begun)
        self._progress.received += size
        self._note_written(file)
        self._check_size(self._progress.received)
        if self._progress.received >= self._next_check:
            self._check_space(file, 0)
            self._next_check += SPACE_CHECK
        return size

    def _note_written(self, file: int) -> os.stat_result:
        status = os.fstat(file)
        self._progress.written = allocated(status)
        return status

    def _check_size(self, size: int) -> None:
        if self._most is not None and size > self._most:
            raise DumpError(
                DumpFailure.TOO_LARGE, f"a guest with its memory takes {self._most} bytes at most"
            )

    def _read(self, size: int, file: int) -> bytes:
        """Read at most ``size`` bytes; none are there only at the end."""
        self._wait()
        data = os.read(self._pipe, size)
        self._count(len(data), file)
        return data

    def _read_until(self, size: int, file: int, data: bytes = b"") -> bytes:
        """Read on until there are ``size`` bytes."""
        while len(data) < size:
            more = self._read(size - len(data), file)
            if not more:
                raise DumpError(DumpFailure.INCOMPLETE, "QEMU's dump ends in its header")
            data += more
        return data

    def _copy(self, target: int, file: int) -> None:
        """Move what comes to the first of the programs."""
        if self._selection.of_kdump:
            self._move(target, file, 0)  # the program sees whether the kdump is complete
        elif self._selection.ranges:
            self._copy_ranges(target, file)
        else:
            self._copy_elf(target, file)

    def _copy_elf(self, target: int, file: int) -> None:
        """Move an ELF core to ``target``, its head repaired; the core ends up in ``file``."""
        head = self._read_until(_ELF_START, file)
        elf = dump_repair.ElfHead.read(head)
        if elf is None:
            raise DumpError(DumpFailure.QEMU, "what QEMU writes does not begin as an ELF core")
        head = self._read_until(elf.size, file, head)
        _write(target, elf.repaired(head[: elf.size]) + head[elf.size :])
        self._move(target, file, elf.content_end(head))

    def _copy_ranges(self, target: int, file: int) -> None:
        """Move to ``target`` the memory's ranges, as ``feeding`` gives them."""
        self._move(target, file, self._selection.stream_size)

    def _move(self, target: int, file: int, expected: int) -> None:
        """Move the rest to ``target``: ``expected`` bytes must have come at the end."""
        while True:
            self._wait()
            moved = self._count(os.splice(self._pipe, target, CHUNK), file)
            if not moved:
                break
            if self._selection.of_kdump and moved < LITTLE:
                time.sleep(GATHERING)
        missing = expected - self._progress.received
        if missing > 0:
            raise DumpError(DumpFailure.INCOMPLETE, f"QEMU's dump is {missing} bytes short")

    def _filter_elf(self, file: int, *programs: Sequence[str]) -> None:
        """Send the core through one or several programs; the last one writes the file."""
        with ExitStack() as stack:
            first = self._start_filters(file, programs, stack)
            try:
                self._copy(first.fileno(), file)
                first.close()
            except BrokenPipeError:
                pass  # an exit status says why
            except (DumpError, OSError, _StoppedError):
                for process in self._filters:
                    process.kill()
                raise
            statuses = [process.wait() for process in self._filters]
        # A program that finds the next one's pipe closed is not the cause: the last failed one is.
        status = next(filter(None, reversed(statuses)), 0)
        if status:
            self._check_stopped(select.poll(), 0)
        if status > 1:
            raise OSError(status, os.strerror(status), str(self._path))
        if status:
            raise DumpError(DumpFailure.UNWRITABLE, f"the filter ended with status {status}")

    def _start_filters(
        self, file: int, programs: Sequence[Sequence[str]], stack: ExitStack
    ) -> IO[bytes]:
        """Start the programs, the last first; return the first one's input."""
        target: int | IO[bytes] = file
        with self._stop_lock:
            for program in reversed(programs):
                process = self._host.start(program, target, self._given)
                if not isinstance(target, int):
                    target.close()  # the program has it now
                stack.enter_context(process)
                self._filters.insert(0, process)
                assert process.stdin is not None
                enlarge(process.stdin.fileno())
                target = process.stdin
        assert not isinstance(target, int)
        return target

    def _place_pieces(self, file: int) -> None:
        """Put the pieces of a flattened kdump in their places in the file."""
        start = self._read_until(_FLAT_HEADER_SIZE, file)
        if not start.startswith(_FLAT_SIGNATURE):
            raise DumpError(DumpFailure.QEMU, "what QEMU writes is no flattened kdump")
        waiting = bytearray()
        end = 0
        while True:
            at = 0
            while len(waiting) >= at + _PIECE.size:
                place, size = _PIECE.unpack_from(waiting, at)
                if (place, size) == (-1, -1):
                    self._check_gaps(end)
                    return
                if place < 0 or not 0 <= size <= _MAX_PIECE:
                    raise DumpError(DumpFailure.QEMU, "a piece of QEMU's kdump belongs nowhere")
                if len(waiting) < at + _PIECE.size + size:
                    break
                at += _PIECE.size
                self._check_size(place + size)
                _write(file, waiting[at : at + size], place)
                at += size
                end = max(end, place + size)
            del waiting[:at]
            more = self._read(CHUNK, file)
            if not more:
                raise DumpError(DumpFailure.INCOMPLETE, "QEMU's kdump has no end mark")
            waiting += more

    def _check_gaps(self, end: int) -> None:
        if end > self._progress.received + _MAX_GAPS:
            raise DumpError(DumpFailure.INCOMPLETE, "pieces of QEMU's kdump are missing")

    def _repair_kdump(self, file: int) -> None:
        size = dump_repair.kdump_head_size(os.pread(file, dump_repair.KDUMP_START, 0))
        head = os.pread(file, size, 0)
        if size and len(head) == size:
            _write(file, dump_repair.repaired_kdump(head), 0)


def enlarge(pipe: int) -> None:
    """Make a pipe hold ``CHUNK`` bytes, so that as many are moved at once."""
    with suppress(PermissionError):  # a user who has many pipes gets small ones: slower, no more
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)


def _write(file: int, data: bytes | bytearray, place: int | None = None) -> None:
    """Write all bytes; a pipe or a nearly full disk may take fewer at once."""
    rest = memoryview(data)
    while rest:
        written = os.write(file, rest) if place is None else os.pwrite(file, rest, place)
        rest = rest[written:]
        place = None if place is None else place + written
