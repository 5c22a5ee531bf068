"""The line that says why a kernel panicked: the first trouble of the cascade that ended there.

The line ``Kernel panic - not syncing:`` tells the cause, unless the panic only follows from an
earlier report, such as ``Fatal exception`` after an oops. The earlier trouble may itself follow
from another one: two oopses, a stall that makes tasks hang.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from panicd.rules.panic_text.consequences import ITS_OWN, PANIC, follows_from
from panicd.rules.panic_text.heads import ORIGINS, Head, Nature, head_of
from panicd.rules.panic_text.line import LogLine
from panicd.rules.panic_text.trace import begins_within_trace

CAUSE_WITHIN: Final = 30.0
"""Seconds from one trouble to the next, or to the panic: a serial console takes some for each."""
WARNED_WITHIN: Final = 5.0
"""Seconds from a trouble that need not lead to more to the next: from a warning to the fault it
warned of, from a fault to the end of init, which may have another cause."""

_FATAL: Final = ORIGINS - {Nature.REPORT}


@dataclass(frozen=True, slots=True)
class _Found:
    """A head, with its index and its time."""

    at: int
    time: float
    head: Head

    @property
    def nature(self) -> Nature:
        return self.head.nature


class Worth(IntEnum):
    """How much the log tells of a panic's cause."""

    NOTHING = 0
    CONSEQUENCE = 1  # the panic's reason only follows from a report that the log lacks
    LATER = 2  # the log begins in the middle of a report: there was an earlier trouble
    CAUSE = 3


@dataclass(frozen=True, slots=True)
class Cause:
    """A panic's cause.

    Attributes:
        worth: how much the log tells of the cause.
        at: the index of the line that tells the cause; -1: none does.
        head: the head of the trouble on that line; None: the line is the panic itself.
        panic: the index of the panic's own line; -1: the log lacks it.
    """

    worth: Worth
    at: int = -1
    head: Head | None = None
    panic: int = -1


NOTHING: Final = Cause(Worth.NOTHING)


def find_cause(lines: Sequence[LogLine]) -> Cause:
    """Return the cause of a kernel's panic, as far as its log tells.

    Args:
        lines: the log's last lines, oldest first. Those not written by the kernel don't count.
    """
    heads: list[_Found] = []
    for index, line in enumerate(lines):
        if not line.by_kernel:
            continue
        panic = PANIC.match(line.text)
        if panic:
            return _of_panic(lines, heads, index, panic["reason"])
        head = head_of(line.text)
        if head is not None:
            heads.append(_Found(index, line.timestamp, head))
    return _without_panic(lines, heads)


def _of_panic(lines: Sequence[LogLine], heads: Sequence[_Found], panic: int, reason: str) -> Cause:
    natures = follows_from(reason)
    if not natures:
        return Cause(Worth.CAUSE, panic, None, panic)
    cascade = _cascade(heads, lines[panic].timestamp)
    its_own = ITS_OWN.match(reason) is not None
    if its_own and cascade and lines[panic].timestamp - cascade[-1].time > WARNED_WITHIN:
        cascade = []
    others = () if its_own else (ORIGINS,)
    notes = (frozenset({Nature.NOTE}),) if Nature.REPORT in natures else ()
    for wanted in (natures, *others, *notes):
        last = max((i for i, each in enumerate(cascade) if each.nature in wanted), default=-1)
        if last >= 0:
            first = _first(cascade[: last + 1])
            near = first.time - lines[0].timestamp <= CAUSE_WITHIN
            unseen = near and begins_within_trace(lines[: first.at])
            return Cause(Worth.LATER if unseen else Worth.CAUSE, first.at, first.head, panic)
    return Cause(Worth.CAUSE if its_own else Worth.CONSEQUENCE, panic, None, panic)


def _without_panic(lines: Sequence[LogLine], heads: Sequence[_Found]) -> Cause:
    """Return the last trouble of a log without a panic: the line was lost, or not reached.

    A trouble that a kernel survives, such as an old WARNING, is no cause then.
    """
    end = lines[-1].timestamp if lines else 0.0
    fatal = [each for each in _cascade(heads, end) if each.nature in _FATAL]
    if fatal:
        return Cause(Worth.CAUSE, fatal[0].at, fatal[0].head)
    return NOTHING


def _cascade(heads: Sequence[_Found], end: float) -> list[_Found]:
    """Return the last heads that are each near the next in time, the last one near the end."""
    near: list[_Found] = []
    for each in reversed(heads):
        if end - each.time > CAUSE_WITHIN:
            break
        near.append(each)
        end = min(end, each.time)
    return near[::-1]


def _first(cascade: Sequence[_Found]) -> _Found:
    """Return the head from which the last one follows."""
    first = cascade[-1]
    for each in reversed(cascade[:-1]):
        warned = each.nature is Nature.REPORT and first.nature is not Nature.REPORT
        within = WARNED_WITHIN if warned else CAUSE_WITHIN
        if each.nature in ORIGINS and first.time - each.time <= within:
            first = each
    return first
