"""How an exchange with a VM went, in the words that the machine knows."""

from collections.abc import Awaitable, Callable

from panicd.qemu.monitor import CommandError, SessionLostError, UncertainError
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine.inputs import Finished, NoAnswer, Refused


async def finish(serial: int, work: Callable[[], Awaitable[StepResult]]) -> Finished:
    """Do something with a VM, and return how that went."""
    try:
        return Finished(serial, await work())
    except UncertainError as error:
        lost = isinstance(error, SessionLostError)
        return Finished(serial, StepResult(Outcome.UNKNOWN, str(error)), lost=lost)
    except CommandError as error:
        return Finished(serial, StepResult(Outcome.FAILED, str(error)))


def answer_of(answer: object) -> object:
    """Return an answer as the machine knows it."""
    if isinstance(answer, CommandError):
        return Refused(str(answer))
    if isinstance(answer, UncertainError):
        return NoAnswer(str(answer), lost=isinstance(answer, SessionLostError))
    return answer
