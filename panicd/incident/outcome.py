"""An exchange with a VM: the machine's commands, and its inputs."""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

from panicd.qemu.monitor import Command, CommandError, SessionLostError, UncertainError
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.machine import effects
from panicd.rules.machine.inputs import Finished, NoAnswer, Refused

KINDS: Final = 64
"""How many kinds of ``Send`` are remembered, each with its commands."""


@lru_cache(KINDS)
def commands_of(commands: tuple[effects.Command, ...]) -> tuple[Command, ...]:
    """Return commands of the machine's as a monitor takes them."""
    return tuple((name, dict(arguments)) for name, arguments in commands)


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
