"""The functions in which a trouble happened, the most telling first, from its report.

Not included: a stack's doubtful entries (``?``), a compiler's suffixes (``.isra.0``), and the
tables of ``functions``.

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
"""The function for a CPU stuck in a wait for others: its caller is not the cause."""

_BY_CHANCE: Final = frozenset(
    {Nature.RCU_STALL, Nature.SOFT_LOCKUP, Nature.HARD_LOCKUP, Nature.STACK_END}
)
"""The natures with an innermost function by chance: the timer's interrupt came upon it."""

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
        lines: the log's lines, oldest first.
        at: the index of the report's first line.
        nature: the trouble's nature.
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
    """Return whether lines begin in the middle of a trace, without its report's head."""
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
    """Yield the instruction pointer's function, if reported, and the first trace's functions."""
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
    """Return the functions in which a CPU is stuck, from its work's entry function inwards.

    Args:
        report: the report without its first line.
        asleep: whether a sleeping thread counts too.
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
    """Return the function that a trace's entry names for sure; empty: it is no such entry.

    No call returns to a function's first byte. Such an address comes from a call that never
    returns, at the end of the function before (arm64 until Linux 6.2 does not look one byte back,
    as others do).
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
