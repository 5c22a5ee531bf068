"""Filters a full dump while it is exported: ``panicd export --level``.

This runs in the process of whoever asks, not in the daemon, because a large dump takes minutes. A
packed dump is unpacked in memory: once or a few times to find the page structures, and once more to
filter it.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from panicd.dumps.facts import dump_facts
from panicd.dumps.filter.page_bitmap import read_bitmap
from panicd.dumps.filter.page_filter import filter_core
from panicd.dumps.page_selection import PageSelection
from panicd.dumps.reader import feed, open_dump
from panicd.rules.guest_memory.page_layout import DumpLevel
from panicd.rules.guest_memory.reading import NotReadableError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK: Final = 1 << 20  # bytes


def leaves_out(path: Path, level: int) -> bool:
    """Return whether a dump already lacks everything that a level leaves out.

    Raises:
        OSError: it can't be read.
    """
    own = dump_facts(path).level
    return own is not None and own & level == level


def write_filtered(path: Path, level: int, target: IO[bytes]) -> None:
    """Make a kdump of a full dump. Blocking, perhaps for minutes.

    Args:
        path: the dump, packed or not.
        level: makedumpfile's dump level.
        target: a new file.

    Raises:
        NotReadableError: it can't be filtered; the text says why, and may be the guest's.
        OSError: one of the files can't be read or written.
    """
    if path.suffix == ".kdump":
        raise NotReadableError(f"only ELF cores are filtered here: makedumpfile -l -d {level}")
    kept, left_out = _bitmap(path, level) if level > 1 else (None, {})
    about = PageSelection(level, left_out=left_out).about().encode()
    with _core(path) as core:
        filter_core(
            core,
            target.fileno(),
            level=level,
            about=about,
            kept=kept,
            at=path.stat().st_mtime,
        )


def _bitmap(path: Path, level: int) -> tuple[bytes, dict[str, int]]:
    with open_dump(path) as dump:
        bitmap = feed(read_bitmap(dump.vmcoreinfo, dump.size, DumpLevel(level)), dump)
    return bitmap.bits, bitmap.left_out


@contextmanager
def _core(path: Path) -> Iterator[int]:
    """Yield a file from which the core is read, from its beginning."""
    if path.suffix != ".zst":
        with path.open("rb", buffering=0) as file:
            yield file.fileno()
        return
    reading, writing = os.pipe()
    unpacker = threading.Thread(target=_unpack, args=(path, writing), daemon=True)
    unpacker.start()
    try:
        yield reading
    finally:
        os.close(reading)
        unpacker.join()


def _unpack(path: Path, target: int) -> None:
    """Write the content of a packed core to a pipe; a damaged one ends early."""
    with (
        os.fdopen(target, "wb", buffering=0) as pipe,
        suppress(BrokenPipeError, zstd.ZstdError, EOFError, OSError),
        zstd.open(path, "rb") as core,
    ):
        while block := core.read(BLOCK):
            rest = memoryview(block)
            while rest:
                rest = rest[pipe.write(rest) :]
