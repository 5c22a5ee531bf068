"""How an exchange with a VM went, in the words that the machine knows."""

from collections.abc import Awaitable, Callable

from panicd.qemu.monitor import CommandError, SessionLostError, UncertainError
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine.inputs import NoAnswer, Refused


async def result_of(work: Callable[[], Awaitable[StepResult]]) -> StepResult:
    """Do something with a VM, and return how that went."""
    try:
        return await work()
    except UncertainError as error:
        return StepResult(Outcome.UNKNOWN, str(error))
    except CommandError as error:
        return StepResult(Outcome.FAILED, str(error))


def answer_of(answer: object) -> object:
    """Return an answer as the machine knows it."""
    if isinstance(answer, CommandError):
        return Refused(str(answer))
    if isinstance(answer, UncertainError):
        return NoAnswer(str(answer), lost=isinstance(answer, SessionLostError))
    return answer
