"""The functions that a trouble happened in, the most telling first, as its report names them.

Left out are what a stack only may hold (``?``), what a compiler put behind a name (``.isra.0``),
and the tables of ``functions``.

Source: Linux, ``arch/*/kernel/{dumpstack,stacktrace,traps,process}.c``.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, dropwhile, islice
from typing import Final

from panicd.rules.panic_text import functions
from panicd.rules.panic_text.heads import Nature
from panicd.rules.panic_text.line import LogLine

FRAMES: Final = 3  # at most
REPORT: Final = 200  # lines of a report that are looked at
NAME_KEPT: Final = 64  # characters of a function's name

AWAITS_CPUS: Final = "smp_call_function"
"""What a CPU is said to be stuck in that waits for others: whoever asked it to, it is not why."""

_BY_CHANCE: Final = frozenset(
    {Nature.RCU_STALL, Nature.SOFT_LOCKUP, Nature.HARD_LOCKUP, Nature.STACK_END}
)
"""Where the innermost function is a matter of chance: the timer's interrupt came upon it."""

_NAME: Final = r"(?P<name>[A-Za-z_][\w.$]{0,127})\+0x(?P<offset>[0-9a-f]+)(?:/0x[0-9a-f]+)?"
_IN_HEAD: Final = re.compile(rf"\b{_NAME}")
_POINTER: Final = re.compile(  # x86, arm64, arm, powerpc, riscv and mips, s390
    r"(?:[RE]IP: (?:[0-9a-f]+:)?(?:\[<[0-9a-f]+>\] *){0,2}|pc : |PC is at |NIP \[[0-9a-f]+\] "
    rf"|epc *: (?:[0-9a-f]+ )?|Krnl PSW : [0-9a-f]+ [0-9a-f]+ \()(?:\[<[0-9a-f]+>\] )?{_NAME}"
)
_ENTRY: Final = re.compile(
    rf"\s*(?:\(?\[<?[0-9a-f]+>?\] ?\(?){{0,2}}(?P<unsure>\?\s+)?{_NAME}(?!.* from )"
)
_ENTRY_FROM: Final = re.compile(  # arm
    r"\s*(?:\[<[0-9a-f]+>\] )?\(?[\w.$]+\)? from (?:\[<[0-9a-f]+>\] )?"
    r"\(?(?P<name>[\w.$]+)\+0x(?P<offset>[0-9a-f]+)"
)
_BEGINS: Final = re.compile(r"(?:\w+ )?(?:call trace|(?:stack )?backtrace)\b", re.IGNORECASE)
_ENDS: Final = re.compile(
    r"(?:Allocated|Freed) (?:by|in)|Last potentially related work|RIP: 0033:|-+\[ end trace"
    r"|Kernel panic|Memory state|The buggy address|Uninit was|irq event stamp"
)
_SUFFIX: Final = re.compile(r"[.$].*")
_SYSTEM_CALL: Final = re.compile(
    r"^(?:__)?(?:x64_|arm64_|ia32_|s390x?_|riscv_|do_|se_|compat_)*sys_|^(?:compat_)?S[yY]SC?_"
)


def frames(lines: Sequence[LogLine], at: int, nature: Nature) -> tuple[str, ...]:
    """Return the functions that a report is about, at most ``FRAMES``.

    Args:
        lines: of the log, oldest first.
        at: the index of the report's first line.
        nature: of the trouble.
    """
    report = list(_report(lines, at))
    names: Iterable[str]
    match nature:
        case _ if nature in _BY_CHANCE:
            names = _stuck_in(report[1:], asleep=nature is Nature.STACK_END)
        case Nature.HUNG_TASK | Nature.REASON:
            names = (name for name in _trace(report[1:]) if not functions.waits(name))
        case _:
            named = (_bare(found["name"]) for found in _IN_HEAD.finditer(report[0]))
            names = (name for name in chain(named, _trace(report[1:])) if not functions.waits(name))
    telling = dict.fromkeys(name for name in names if _tells(name))
    return tuple(islice(telling, FRAMES))


def begins_within_trace(lines: Iterable[LogLine]) -> bool:
    """Return whether lines begin in the middle of a trace, whose report's head is not there."""
    for line in lines:
        if _BEGINS.match(line.text):
            return False
        if _ENTRY.match(line.text) or _ENTRY_FROM.match(line.text):
            return True
    return False


def _report(lines: Sequence[LogLine], at: int) -> Iterator[str]:
    """Yield a report's lines: its first, and those of the same caller after it."""
    first = lines[at]
    for line in lines[at : at + REPORT]:
        if line.by_kernel and line.caller == first.caller:
            yield line.text


def _trace(report: Iterable[str]) -> Iterator[str]:
    """Yield the function of the instruction pointer, where told, and the first trace's."""
    in_trace = False
    for text in report:
        pointer = _POINTER.match(text)
        if pointer:
            yield _bare(pointer["name"])
        elif name := _entry(text):
            in_trace = True
            yield name
        elif in_trace and (_ENDS.match(text) or _BEGINS.match(text)):
            return


def _stuck_in(report: Iterable[str], *, asleep: bool) -> Sequence[str]:
    """Return the functions that a CPU is stuck in: from what it was sent to do inwards.

    Args:
        report: without its first line.
        asleep: whether one that sleeps is meant too.
    """
    for trace in _traces(report):
        interrupted = dropwhile(lambda name: not functions.interrupts(name), trace)
        inner = list(dropwhile(functions.interrupts, interrupted)) or trace
        inner = [name for name in inner if _tells(name)]
        if not inner or functions.idles(inner[0]):
            continue
        if functions.waits(inner[0]) and not asleep:
            continue  # a thread's that the stuck CPU keeps waiting
        if any(map(functions.awaits_cpus, inner[:4])):
            return [AWAITS_CPUS, *inner]
        sent = next((i for i, name in enumerate(inner) if functions.dispatches(name)), 0)
        if sent:
            return inner[sent - 1 :: -1]
    return ()


def _traces(report: Iterable[str]) -> Iterator[list[str]]:
    """Yield the functions of each trace, with an instruction pointer before it or in it."""
    trace: list[str] = []
    entries = 0
    for text in report:
        pointer = _POINTER.match(text)
        if pointer:
            trace.append(_bare(pointer["name"]))
        elif name := _entry(text):
            trace.append(name)
            entries += 1
        elif entries and _BEGINS.match(text):
            yield trace
            trace, entries = [], 0
    yield trace


def _entry(text: str) -> str:
    """Return the function that a trace's entry names for sure; empty: this is none.

    No call returns to a function's first byte: one that would never return was the last of the
    function before it (arm64 until Linux 6.2 does not look one byte back, as others do).
    """
    chained = _ENTRY_FROM.match(text)
    entry = chained or _ENTRY.match(text)
    if entry is None or (not chained and entry["unsure"]) or not int(entry["offset"], 16):
        return ""
    return _bare(entry["name"])


def _bare(name: str) -> str:
    bare = _SYSTEM_CALL.sub("sys_", _SUFFIX.sub("", name))[:NAME_KEPT]
    return functions.RENAMED.get(bare, bare)


def _tells(name: str) -> bool:
    return bool(name) and not functions.reports(name) and not functions.helps(name)
