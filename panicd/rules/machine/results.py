"""How a step came out, and whether the guest still is the one that was decided about."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine.turn import Turn
from panicd.rules.plan import (
    AnyStep,
    AwaitQuiet,
    Collect,
    Dump,
    EnsureStopped,
    Kill,
    Quit,
    RunRelaunch,
    Terminate,
)

TAKES_ITS_TIME: Final = (EnsureStopped, Collect, AwaitQuiet, Dump)
"""Steps after which the guest is looked at once more, where they are a plan's last."""


class Course(StrEnum):
    """How a plan's execution ended."""

    COMPLETED = "completed"
    AWAITING_RETURN = "awaiting-return"  # the last step is the relaunched domain's to end
    WATCHING = "watching"  # the last step is the guest's to end
    FALL_BACK = "fall-back"  # a step failed and the policy's fallback is to be decided
    PRESERVE = "preserve"  # a step failed and the guest is to be left as it is
    INTERRUPTED = "interrupted"  # it is not known how a step ended: ask the VM again
    RESET_BY_OTHERS = "reset-by-others"  # the guest is no longer the panicked one
    RESUMED_BY_OTHERS = "resumed-by-others"  # nor here


@dataclass(frozen=True, slots=True)
class Came:
    """A step has ended; ``lost``: and so has the session."""

    index: int
    result: StepResult
    lost: bool = False


End = Came | Course | None


def done(index: int, detail: str = "") -> Came:
    """Return that a step is done."""
    return Came(index, StepResult(Outcome.DONE, detail))


def failed(index: int, detail: str) -> Came:
    """Return that a step failed."""
    return Came(index, StepResult(Outcome.FAILED, detail))


def unknown(index: int, detail: str) -> Came:
    """Return that it is not known how a step ended."""
    return Came(index, StepResult(Outcome.UNKNOWN, detail))


def skipped(index: int, detail: str) -> Came:
    """Return that there was nothing left to do."""
    return Came(index, StepResult(Outcome.SKIPPED, detail))


def overtaken(turn: Turn) -> Course | None:
    """Return how the plan ends if the guest is known to be another by now."""
    vm, (resets, resumes) = turn.known, turn.base
    if vm.resets > resets:
        return Course.RESET_BY_OTHERS
    return Course.RESUMED_BY_OTHERS if vm.resumes > resumes else None


def look(turn: Turn, index: int, result: StepResult | None = None) -> Course | None:
    """See that the guest still is the panicked one that was decided about; else end the step.

    Args:
        turn: the step in the making.
        index: of the plan's step in progress.
        result: of it; None: it is not taken, if the guest is another.
    """
    course = overtaken(turn)
    if course is not None:
        turn.end(index, result or StepResult(Outcome.SKIPPED, course.value))
    return course


def cut_off(turn: Turn, step: AnyStep, result: StepResult) -> bool:
    """Whether the session is gone that the steps after this one need.

    Signals need none: they end a QEMU that was told to end. One that may not have been told is
    asked again how it stands, for its guest may be a healthy one by now.
    """
    told_to_end = (
        isinstance(step, Quit | Terminate | Kill) and result.outcome is not Outcome.UNKNOWN
    )
    can_go_on = isinstance(step, RunRelaunch) or (told_to_end and bool(turn.known.process))
    return turn.known.ended and not can_go_on
