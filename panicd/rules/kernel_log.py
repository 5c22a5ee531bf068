"""A guest kernel's last log lines, read from the newest on, and the line that tells the cause.

Source: ``panicd.rules.guest_memory`` for the log, ``panicd.rules.panic_text`` for its words.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.memory import Limits, PhysicalMemory, kernel_memory
from panicd.rules.guest_memory.printk import Record, open_ring
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo
from panicd.rules.last_words import words_of_log
from panicd.rules.panic_text.cause import CAUSE_WITHIN
from panicd.rules.panic_text.line import LogLine, printable

__all__ = [
    "CAUSE_WITHIN",
    "KernelLog",
    "LogLine",
    "NotReadableError",
    "panic_line",
    "printable",
    "read_log",
]

BLOCK: Final = 512  # records read together at most: some 100 KiB
LEAST: Final = 32  # records that are tried together where more can't be read


@dataclass(frozen=True, slots=True)
class KernelLog:
    """The readable part of a log.

    Attributes:
        lines: the newest lines, oldest first.
        complete: they are all that the buffer holds.
        release: the kernel's, as ``uname -r`` says it.
    """

    lines: tuple[LogLine, ...]
    complete: bool
    release: str


def read_log(info: Vmcoreinfo, limits: Limits) -> Reading[KernelLog]:
    """Read the last lines of the log.

    At a limit, or when ``NotReadableError`` is thrown in, it returns the lines read so far.

    Args:
        info: the guest kernel's note on itself.
        limits: how much the reading may cost.

    Raises:
        NotReadableError: not one line could be read; the text says why.
    """
    memory = kernel_memory(PhysicalMemory(limits), info)
    ring = yield from open_ring(memory, info)
    available = min(ring.count, limits.records)
    lines: list[LogLine] = []
    done, block = 0, BLOCK
    while done < available and len(lines) < limits.lines:
        count = min(block, limits.lines - len(lines), available - done)
        try:
            records = yield from ring.read(done, count)
        except NotReadableError:
            if lines:
                break
            if block == LEAST:
                raise
            block = max(LEAST, block // 2)  # the newest may be readable, older ones not
            continue
        lines = [line for record in records for line in _lines(record)] + lines
        done += count
    if not lines:
        raise NotReadableError("no record was written whole")
    complete = done == ring.count and not ring.lost and len(lines) <= limits.lines
    return KernelLog(tuple(lines[-limits.lines :]), complete, info.release)


def panic_line(lines: Iterable[LogLine]) -> str:
    """Return the line that says why the kernel panicked, cut at ``MAX_TEXT``; empty: none does.

    Args:
        lines: the log's last lines, oldest first. Those not written by the kernel don't count.
    """
    return words_of_log(lines).line


def _lines(record: Record) -> list[LogLine]:
    return [
        LogLine(
            record.seq,
            record.timestamp_ns / 1e9,
            record.level,
            record.caller,
            printable(line),
            by_kernel=record.facility == 0,
        )
        for line in record.text.split(b"\n")
    ]
