"""A step's result, and whether the guest still is the one of the decision."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine.turn import Turn
from panicd.rules.on_crash import Action
from panicd.rules.plan import (
    AnyStep,
    AwaitQuiet,
    Collect,
    Cont,
    Dump,
    EnsureStopped,
    Kill,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)
from panicd.rules.policy import Reason

TAKES_ITS_TIME: Final = (EnsureStopped, Collect, AwaitQuiet, Dump)
"""As a plan's last step, these need one more look at the guest."""

_COMMANDS: Final = (SystemReset, Cont, Quit, RunRelaunch)
"""A plan that has given one of these to the guest goes on to its end."""


class Course(StrEnum):
    """How a plan's execution ended."""

    COMPLETED = "completed"
    AWAITING_RETURN = "awaiting-return"  # the relaunched domain ends the last step
    WATCHING = "watching"  # the guest ends the last step
    FALL_BACK = "fall-back"  # a step failed: decide on the policy's fallback
    PRESERVE = "preserve"  # a step failed: leave the guest as it is
    INTERRUPTED = "interrupted"  # a step's end is unknown: ask the VM again
    RESET_BY_OTHERS = "reset-by-others"  # the guest is no longer the panicked one
    RESUMED_BY_OTHERS = "resumed-by-others"  # the same
    HELD = "held"  # an operator suspended automation before the first command


@dataclass(frozen=True, slots=True)
class Came:
    """A step has ended; ``lost``: the session has ended too."""

    index: int
    result: StepResult
    lost: bool = False


End = Came | Course | None


def done(index: int, detail: str = "") -> Came:
    """Return the end of a done step."""
    return Came(index, StepResult(Outcome.DONE, detail))


def failed(index: int, detail: str) -> Came:
    """Return the end of a failed step."""
    return Came(index, StepResult(Outcome.FAILED, detail))


def unknown(index: int, detail: str) -> Came:
    """Return the end of a step with an unknown result."""
    return Came(index, StepResult(Outcome.UNKNOWN, detail))


def skipped(index: int, detail: str) -> Came:
    """Return the end of a step that had nothing to do."""
    return Came(index, StepResult(Outcome.SKIPPED, detail))


def overtaken(turn: Turn) -> Course | None:
    """Return the plan's course if others have reset or resumed the guest."""
    vm, (resets, resumes) = turn.known, turn.base
    if vm.resets > resets:
        return Course.RESET_BY_OTHERS
    return Course.RESUMED_BY_OTHERS if vm.resumes > resumes else None


def _held(turn: Turn, index: int) -> Course | None:
    """Return the plan's course if a hold began before the first command; operators may act."""
    decision = turn.open.decision
    assert decision is not None
    to_act = decision.action is not Action.PRESERVE and decision.reason is not Reason.OPERATOR
    given = any(isinstance(turn.step(each), _COMMANDS) for each in range(index))
    may = turn.moment.held and to_act and not given
    return Course.HELD if may and not turn.known.has_gone else None


def look(turn: Turn, index: int, result: StepResult | None = None) -> Course | None:
    """Check that the guest still is the decision's, and panicd's to act on; else end the step.

    Args:
        turn: the step in the making.
        index: of the step in progress.
        result: of the step; None: the step is not taken if the guest is another.
    """
    course = overtaken(turn) or _held(turn, index)
    if course is not None:
        turn.end(index, result or StepResult(Outcome.SKIPPED, course.value))
    return course


def cut_off(turn: Turn, step: AnyStep, result: StepResult) -> bool:
    """True if the session is gone and the next steps need it.

    Signals need none: they end a QEMU that was told to end. If QEMU may not have been told, panicd
    asks it again for its run state, as its guest may be healthy by now.
    """
    told_to_end = (
        isinstance(step, Quit | Terminate | Kill) and result.outcome is not Outcome.UNKNOWN
    )
    can_go_on = isinstance(step, RunRelaunch) or (told_to_end and bool(turn.known.process))
    return turn.known.ended and not can_go_on
