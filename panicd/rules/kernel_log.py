"""The last lines of a guest kernel's log, the newest read first, and the one that says why.

``Kernel panic - not syncing:`` says why, but for the panics that only follow from something said
before, such as ``Fatal exception`` after an oops.

Source: ``panicd.rules.guest_memory`` for the log; for its words Linux: the calls of ``panic()``,
``arch/x86/mm/fault.c``, ``kernel/watchdog.c``, ``kernel/hung_task.c``, ``kernel/rcu/tree_stall.h``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from panicd.rules.guest_memory.memory import KernelMemory, Limits, PhysicalMemory
from panicd.rules.guest_memory.printk import Record, open_ring
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo
from panicd.rules.qapi import MAX_TEXT

__all__ = ["KernelLog", "LogLine", "NotReadableError", "panic_line", "printable", "read_log"]

BLOCK: Final = 256  # records read together at most: some 50 KiB
CAUSE_WITHIN: Final = 30.0  # seconds before the panic; a serial console may take some for an oops

_PANIC: Final = re.compile(r"Kernel panic - not syncing: ?(?P<reason>.*)")
_CONSEQUENCE: Final = re.compile(
    r"Fatal exception|Aiee, killing interrupt handler|Attempted to kill the idle task"
    r"|softlockup: hung tasks|hung_task: blocked tasks|Hard LOCKUP|RCU Stall"
    r"|.*(panic_on_\w+|kasan\.fault=\w+) set",
    re.IGNORECASE,
)
# What tells most, then what tells less of the same trouble.
_CAUSES: Final = (
    re.compile(
        r"(\w+: )?BUG: |kernel BUG at |(Oops: )?general protection fault|Unable to handle kernel "
        r"|(\w+: )?INFO: .*(blocked for more than|stall)|.*detected hard LOCKUP"
        r"|(traps: )?PANIC: "
    ),
    re.compile(r"WARNING: |UBSAN: |Oops\b|Internal error: |[\w ]+: [0-9a-f]{4} \[#[0-9]+\]"),
)
_CRASH_KEY: Final = re.compile(r"sysrq: Trigger a crash")


@dataclass(frozen=True, slots=True)
class LogLine:
    r"""A line of the log.

    Attributes:
        seq: its record's number since boot; a record may have several lines.
        timestamp: the kernel's own clock, in seconds since boot.
        level: 0 (emergency) to 7 (debug).
        caller: ``T1``: the task with that number; ``C0``: that CPU, in an interrupt.
        text: what it says, printable: what is not was written as Python would, ``\x1b``.
        by_kernel: the kernel itself said so, and not whoever wrote to /dev/kmsg.
    """

    seq: int
    timestamp: float
    level: int
    caller: str
    text: str
    by_kernel: bool = True


@dataclass(frozen=True, slots=True)
class KernelLog:
    """What could be read of a log.

    Attributes:
        lines: the newest, oldest first.
        complete: nothing of what the buffer holds is missing.
        release: the kernel's, as ``uname -r`` says it.
    """

    lines: tuple[LogLine, ...]
    complete: bool
    release: str


def read_log(info: Vmcoreinfo, limits: Limits) -> Reading[KernelLog]:
    """Read the last lines of the log.

    What could be read when a limit is met, or when ``NotReadableError`` is thrown in, is returned.

    Args:
        info: the guest kernel's note on itself.
        limits: what it may cost.

    Raises:
        NotReadableError: not one line could be read; the text says why.
    """
    memory = KernelMemory(PhysicalMemory(limits), info)
    ring = yield from open_ring(memory, info)
    available = min(ring.count, limits.records)
    lines: list[LogLine] = []
    done = 0
    try:
        while done < available and len(lines) < limits.lines:
            count = min(BLOCK, limits.lines - len(lines), available - done)
            records = yield from ring.read(done, count)
            lines = [line for record in records for line in _lines(record)] + lines
            done += count
    except NotReadableError:
        if not lines:
            raise
    if not lines:
        raise NotReadableError("no record was written whole")
    complete = done == ring.count and not ring.lost and len(lines) <= limits.lines
    return KernelLog(tuple(lines[-limits.lines :]), complete, info.release)


def panic_line(lines: Iterable[LogLine]) -> str:
    """Return the line that says why the kernel panicked, cut at ``MAX_TEXT``; empty: none does.

    Args:
        lines: the log's last lines, oldest first. Those not written by the kernel don't count.
    """
    said = [line for line in lines if line.by_kernel]
    for index, line in enumerate(said):
        panic = _PANIC.match(line.text)
        if panic:
            before = [
                earlier
                for earlier in said[:index]
                if 0 <= line.timestamp - earlier.timestamp <= CAUSE_WITHIN
            ]
            cause = _last_cause(before) if _CONSEQUENCE.match(panic["reason"]) else ""
            return (cause or line.text)[:MAX_TEXT]
    return (_last_cause(said) or _last(said, _CRASH_KEY))[:MAX_TEXT]


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


def printable(text: bytes) -> str:
    """Return a line of a guest's, with what is not printable written as Python would."""
    line = text.decode(errors="backslashreplace").expandtabs()
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _last_cause(lines: Sequence[LogLine]) -> str:
    return next((text for pattern in _CAUSES if (text := _last(lines, pattern))), "")


def _last(lines: Sequence[LogLine], pattern: re.Pattern[str]) -> str:
    return next((line.text for line in reversed(lines) if pattern.match(line.text)), "")
