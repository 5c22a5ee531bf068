"""Makes a kdump of an ELF core: a program, run in a process of its own.

Standard input is what QEMU writes, standard output the dump's file. Its arguments are the dump's
level, what panicd's own note says, the descriptor of the bitmap of the pages that are kept, if
there is one: a file in memory, and ``FRAMED``, if only parts of the core come: its headers and
notes, then the parts, each with a ``FRAME`` before it. Exit status: 0 done, else the errno of what
failed; 1, with a traceback, for anything else.
"""

import mmap
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Final

from panicd.dumps.filter.core_stream import BLOCK, CUT_OFF, FRAMED, HEAD, CoreStream
from panicd.rules.guest_memory.dump_file import MAX_NOTES, DumpFile
from panicd.rules.guest_memory.kdump_head import kdump_head
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError

NICENESS: Final = 10  # nice(1): guests and panicd go first where processors are short
MAX_PAGES: Final = 1 << 31  # of 8 TiB: the bitmaps of more would take too much memory


def main(arguments: list[str]) -> int:
    """Filter until the core ends; return the exit status."""
    with suppress(OSError):  # a filter of system calls may refuse it
        os.nice(NICENESS)
    level, about, *more = arguments
    try:
        filter_core(
            0,
            1,
            level=int(level),
            about=about.encode(),
            kept=_mapped(int(more[0])) if more else None,
            at=time.time(),
            framed=FRAMED in more,
        )
    except OSError as error:
        return error.errno or 1
    except NotReadableError as error:
        print(f"panicd: no kdump can be made of this: {error}", file=sys.stderr)
        return 1
    return 0


def filter_core(
    source: int,
    target: int,
    *,
    level: int,
    about: bytes,
    kept: bytes | None,
    at: float,
    framed: bool = False,
) -> None:
    """Write a kdump of an ELF core of a guest of 64-bit x86 or Arm, and of any other core a copy.

    Args:
        source: what is read from its beginning to its end: a pipe or a file.
        target: a new file.
        level: that the dump is said to have.
        about: what panicd's own note says.
        kept: a bit for each page that is kept, the lowest first; None: all are.
        at: when the dump was made, in seconds since the epoch.
        framed: not all of the memory comes, and what comes does in frames.

    Raises:
        NotReadableError: the core's pieces don't follow on one another, or what is framed can't be
            filtered.
        ImportError, RuntimeError: what is framed can't be filtered.
        OSError: the target can't be written; ENODATA: not all came that is kept.
    """
    stream = CoreStream(source)
    try:
        # Here, so that numpy's that don't load (on an old processor) cost the filter, not the dump.
        from panicd.dumps.filter.kdump_writer import FAST, SMALL, KdumpWriter  # noqa: PLC0415 - see above

        layout = _checked(DumpFile.parse(stream.peek(HEAD)))
    except (NotReadableError, ImportError, RuntimeError) as error:
        if framed:
            raise
        print(f"panicd: kept as it is, no kdump can be made of it: {error}", file=sys.stderr)
        stream.copy(target)
        return
    notes_end = layout.notes.offset + layout.notes.length
    notes = stream.peek(notes_end)[layout.notes.offset :]
    pages = max(piece.end for piece in layout.memory) // PAGE
    there = _bitmap(layout)
    chosen = there if kept is None else _both(there, kept)
    head = kdump_head(notes, machine=layout.machine, pages=pages, level=level, about=about, at=at)
    writer = KdumpWriter(target, head, there, chosen, FAST if kept is None else SMALL)
    buffer = memoryview(bytearray(BLOCK))
    for physical, length in stream.frames(notes_end) if framed else stream.pieces(layout.memory):
        for start in range(0, length, BLOCK):
            block = buffer[: min(BLOCK, length - start)]
            stream.fill(block)
            writer.add((physical + start) // PAGE, block)
            os.sched_yield()  # where niceness can't be had
    if writer.missing:
        raise OSError(CUT_OFF, "the core does not have all that is kept")
    stream.drain(buffer)


def _checked(layout: DumpFile) -> DumpFile:
    """Return what of a core goes into a kdump.

    Its end must be memory that the kernel knows of: makedumpfile fails to filter a kdump again that
    ends in a device's, and leaves that out itself.

    Raises:
        NotReadableError: the core is none that a kdump can be made of.
    """
    memory = layout.kernels()
    if layout.notes.offset + layout.notes.length > HEAD + MAX_NOTES:
        raise NotReadableError("its notes lie too far behind")
    if any((piece.physical | piece.length) % PAGE for piece in memory):
        raise NotReadableError("its memory does not begin and end where pages do")
    if not memory or memory[-1].end > MAX_PAGES * PAGE:
        raise NotReadableError("it has no memory, or too much")
    if any(one.end > another.physical for one, another in pairwise(memory)):
        raise NotReadableError("its pieces lie on one another")
    return replace(layout, memory=tuple(memory))


def _bitmap(layout: DumpFile) -> bytes:
    """Return a bit for each page that there is."""
    bits = bytearray(-(-max(piece.end for piece in layout.memory) // (8 * PAGE)))
    for piece in layout.memory:
        first, end = piece.physical // PAGE, piece.end // PAGE
        whole = range(-(-first // 8), end // 8)
        bits[whole.start : whole.stop] = b"\xff" * len(whole)
        for page in {
            *range(first, min(whole.start * 8, end)),
            *range(max(first, whole.stop * 8), end),
        }:
            bits[page // 8] |= 1 << page % 8
    return bytes(bits)


def _both(there: bytes, kept: bytes) -> bytes:
    """Return the pages that are there and kept; those that the bitmap does not reach are."""
    mask = int.from_bytes(kept[: len(there)].ljust(len(there), b"\xff"), "little")
    return (int.from_bytes(there, "little") & mask).to_bytes(len(there), "little")


def _mapped(file: int) -> bytes:
    with mmap.mmap(file, 0, prot=mmap.PROT_READ) as mapping:
        return mapping[:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
