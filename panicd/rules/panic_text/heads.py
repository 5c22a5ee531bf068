"""The first lines of all kinds of trouble that Linux reports, each with a title.

A kind has one title, although its wording differs between versions and architectures.

Source: Linux, ``arch/x86/mm/fault.c``, ``arch/*/kernel/traps.c``, ``arch/arm64/mm/fault.c``,
``arch/powerpc/kernel/watchdog.c``, ``kernel/panic.c``, ``kernel/watchdog.c``,
``kernel/hung_task.c``, ``kernel/rcu/tree_stall.h``, ``kernel/locking/lockdep.c``,
``mm/kasan/report.c``, ``mm/kfence/report.c``, ``mm/kmsan/report.c``, ``lib/ubsan.c``,
``arch/x86/kernel/cpu/mce/core.c``, ``fs/ext4/super.c``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Nature(StrEnum):
    """The fate of a kernel that reports a trouble."""

    FAULT = "fault"  # it can't go on there: it panics in an interrupt, in init, or if told to
    REPORT = "report"  # it goes on, unless panic_on_warn is set
    SOFT_LOCKUP = "soft lockup"
    HARD_LOCKUP = "hard lockup"
    RCU_STALL = "rcu stall"
    HUNG_TASK = "hung task"
    MACHINE_CHECK = "machine check"
    FILE_SYSTEM = "file system"
    STACK_END = "stack end"  # it panics: a stack was overrun
    REASON = "reason"  # it panics, and says itself why
    NOTE = "note"  # it goes on, whatever is set: the order of locks, a deprecated option


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of trouble.

    Attributes:
        nature: the kernel's fate.
        title: the kind's name; ``{file}`` and the like are groups of the pattern.
        pattern: matches its first line, from the line's beginning.
    """

    nature: Nature
    title: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Head:
    """A trouble's first line: its kind, and the words to fill in the title."""

    kind: Kind
    words: Mapping[str, str]

    @property
    def nature(self) -> Nature:
        """The kernel's fate."""
        return self.kind.nature

    @property
    def title(self) -> str:
        """The trouble's title, the same for every guest."""
        return self.kind.title.format_map(self.words)


# For a module that is not Linux's own, its build directory tells nothing.
_FILE: Final = r"(?:/\S+/|(?:\.\.?/)+)?(?P<file>[^\s:]+):[0-9]+"
_WHAT: Final = r"(?P<what>[\w -]+?)"
LOOKED_AT: Final = 256
"""Characters of a line to look at: a guest chooses a line's length, and no head needs more."""

_PANIC: Final = r"Kernel panic - not syncing: "
_WATCHDOG: Final = r"(?:NMI )?(?:watchdog: )?"

_TABLE: Final = {
    Nature.FAULT: (
        (
            "NULL pointer dereference",
            r"(?:BUG: |CPU [0-9]+ )?(?:unable to handle )?kernel NULL pointer dereference",
        ),
        ("bad memory access", r"(?:BUG: |CPU [0-9]+ )?unable to handle (?:kernel|user) "),
        ("bad memory access", r"(?:BUG: |CPU [0-9]+ )?unable to handle page fault"),
        ("bad memory access", r"BUG: kernel (?:data|instruction) access"),
        (
            "general protection fault",
            r"(?:kasan: GPF .* access)?(?:Oops: )?(?:segment-related )?general protection fault",
        ),
        ("kernel BUG at {file}", rf"kernel BUG at {_FILE}!"),
        ("double fault", r"(?:traps: )?PANIC: double fault"),
        ("stack overflow", r"BUG: (?:\w+ )?stack guard page was hit"),
        ("stack overflow", r"Insufficient stack space to handle exception|kernel stack overflow"),
        ("stack protector", rf"{_PANIC}stack-protector: "),
        ("bad mode", r"Bad mode in "),
        ("unhandled fault: {what}", rf"Unhandled fault: {_WHAT} \("),
        ("unhandled {what}", r"Unhandled (?P<what>prefetch abort|kernel unaligned access)"),
        ("alignment trap", r"Alignment trap: not handling instruction"),
        ("panic of Rust code at {file}", rf"rust_kernel: panicked at {_FILE}"),
        ("{what}", rf"(?:Internal error: )?Oops - {_WHAT}(?:: [0-9a-f]+)? \[#[0-9]+\]"),
        ("{what}", rf"(?:Internal error: |Oops: ){_WHAT}: [0-9a-f]+ .*\[#[0-9]+\]"),
        ("oops", r"Internal error: |Oops\b"),
        ("{what}", rf"{_WHAT}: [0-9a-f]{{4}} (?:ilc:[0-9] )?.*\[#[0-9]+\]"),
    ),
    Nature.REPORT: (
        ("KASAN: invalid-free", r"BUG: KASAN: (?:double-free|invalid-free)\b"),
        ("KASAN: {what}", r"BUG: KASAN: (?:slab-)?(?P<what>[\w -]+?) (?:in|on|at) "),
        ("KFENCE: {what}", r"BUG: KFENCE: (?P<what>[\w -]+?) in "),
        ("{what}", r" ?BUG: (?P<what>K[CM]SAN: [\w: -]+?) in "),
        ("UBSAN: {what} at {file}", rf"UBSAN: {_WHAT} in {_FILE}"),
        ("WARNING at {file}", rf"WARNING: (?:CPU: [0-9]+ PID: [0-9]+ )?(?:at )?{_FILE}"),
        ("BUG: scheduling while atomic", r"BUG: scheduling while atomic"),
        ("SLUB: {what}", rf"BUG \S+ \(.*\): {_WHAT}$"),
        ("BUG: {what}", rf"BUG: {_WHAT}(?: at \S+| on CPU.*| - .*|[:,(!].*|[0-9<].*)?$"),
    ),
    Nature.SOFT_LOCKUP: (("soft lockup", rf"{_WATCHDOG}BUG: soft lockup"),),
    Nature.HARD_LOCKUP: (
        (
            "hard lockup",
            rf"{_WATCHDOG}(?:Watchdog )?(?:CPU[: ] ?[0-9]+ )?(?:self-)?(?:detected )?hard LOCKUP",
        ),
    ),
    Nature.RCU_STALL: (("RCU stall", r"(?:rcu: )?INFO: rcu\w{0,32} .{0,60}\bstall"),),
    Nature.HUNG_TASK: (
        (
            "hung task",
            r"INFO: task .{1,64}:[0-9]+ (?:blocked (?:for|in)\b.{0,40} more than|can't die for)",
        ),
    ),
    Nature.MACHINE_CHECK: (
        ("machine check", r"(?:mce: )?\[Hardware Error\]: CPU [0-9]+: Machine Check"),
        ("SError interrupt", r"SError Interrupt on CPU"),
    ),
    Nature.FILE_SYSTEM: (("{what} error", r"(?P<what>EXT[234]-fs) error \(device "),),
    Nature.STACK_END: (("corrupted stack end", rf"{_PANIC}corrupted stack end"),),
    Nature.REASON: (
        ("crash key", rf"{_PANIC}sysrq triggered crash|sysrq ?: Trigger a crash"),
        ("init killed", rf"{_PANIC}Attempted to kill init"),
        ("no init", rf"{_PANIC}(?:No (?:working )?init found|Requested init )"),
        ("no root file system", rf"{_PANIC}VFS: Unable to mount root fs"),
        ("out of memory", rf"{_PANIC}(?:Out of memory|System is deadlocked on memory)"),
    ),
    Nature.NOTE: (
        ("lock: {what}", rf"\[ (?:INFO|BUG): {_WHAT}[!.]? \]$"),
        ("lock: {what}", r"INFO: (?P<what>trying to register non-static key)"),
        ("lock: {what}", r"INFO: (?P<what>(?:possible|suspicious) .*)"),
        ("WARNING: {what}", rf"WARNING: {_WHAT}[!.]?$"),
        ("WARNING", r"WARNING: "),
    ),
}
"""All kinds with their titles and first lines; the first match counts.

A kind that follows from another of the same nature, as ``Oops`` from ``BUG``, comes later.
"""

KINDS: Final = tuple(
    Kind(nature, title, re.compile(pattern, re.IGNORECASE))
    for nature, kinds in _TABLE.items()
    for title, pattern in kinds
)

ORIGINS: Final = frozenset(Nature) - {Nature.NOTE}
"""The natures that a panic may follow from."""

# Every head has one of these words, so one search rules out most lines.
_LIKELY: Final = re.compile(
    r"Kernel panic|sysrq|BUG|Oops|unable to handle|protection fault|double fault|stack space"
    r"|stack overflow|Bad mode|Unhandled |Alignment trap|panicked at|Internal error|\[#[0-9]"
    r"|UBSAN|WARNING|INFO: |hard LOCKUP|Machine Check|SError|-fs error",
    re.IGNORECASE,
)


def head_of(text: str) -> Head | None:
    """Return the head that a line is; None if it begins no report.

    Args:
        text: the line's text, of which only the first ``LOOKED_AT`` characters count.
    """
    text = text[:LOOKED_AT]
    if not _LIKELY.search(text):
        return None
    for kind in KINDS:
        found = kind.pattern.match(text)
        if found:
            return Head(kind, found.groupdict())
    return None
