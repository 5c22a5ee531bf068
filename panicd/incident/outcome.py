"""The result of an exchange with a VM, as the machine's inputs."""

from collections.abc import Awaitable, Callable

from panicd.qemu.monitor import CommandError, SessionLostError, UncertainError
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine.inputs import Finished, NoAnswer, Refused


async def finish(serial: int, work: Callable[[], Awaitable[StepResult]]) -> Finished:
    """Do something with a VM, and return the result."""
    try:
        return Finished(serial, await work())
    except UncertainError as error:
        lost = isinstance(error, SessionLostError)
        return Finished(serial, StepResult(Outcome.UNKNOWN, str(error)), lost=lost)
    except CommandError as error:
        return Finished(serial, StepResult(Outcome.FAILED, str(error)))


def answer_of(answer: object) -> object:
    """Return a monitor's answer as the machine's input has it."""
    if isinstance(answer, CommandError):
        return Refused(str(answer))
    if isinstance(answer, UncertainError):
        return NoAnswer(str(answer), lost=isinstance(answer, SessionLostError))
    return answer
