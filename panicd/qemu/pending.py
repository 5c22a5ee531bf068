"""Commands that were sent and await their answers."""

from collections.abc import Callable, Sequence
from typing import Final

from panicd.qemu.monitor_error import NoReplyError

_MISSING: Final = object()
"""Stands for an answer until it comes."""


class Question:
    """Commands that were sent together, and their answers as they come in.

    Args:
        commands: their names.
        timeout: seconds after which the question is given up; each answer that is missing then
            is a ``NoReplyError``.
        done: called once with the answers: when all came, none will come, or on giving up.

    Attributes:
        commands: their names.
        token: what the answers' ids begin with, if they have any.
    """

    __slots__ = ("_answers", "_awaited", "_done", "_forget", "_timeout", "commands", "token")

    def __init__(
        self, commands: Sequence[str], timeout: float, done: Callable[[list[object]], None]
    ) -> None:
        self.commands = commands
        self._timeout = timeout
        self._answers: list[object] = [_MISSING] * len(commands)
        self._awaited = len(commands)
        self._done: Callable[[list[object]], None] = done
        self._forget: Callable[[Question], None] = _nobody
        self.token = ""

    def sent(self, token: str, forget: "Callable[[Question], None]") -> None:
        """Note what the answers' ids begin with, and who is told when all came or none will."""
        if self._awaited:
            self.token, self._forget = token, forget

    @property
    def is_over(self) -> bool:
        """True once all answers came, or the question was given up."""
        return not self._awaited

    def put(self, index: int, answer: object) -> None:
        """Take an answer, unless there is one already."""
        if not self._awaited or self._answers[index] is not _MISSING:
            return
        self._answers[index] = answer
        self._awaited -= 1
        if not self._awaited:
            self._finish()

    def give_up(self) -> None:
        """Wait no longer."""
        if self._awaited:
            self._awaited = 0
            self._answers = [
                NoReplyError(f"{name}: no answer in {self._timeout:g} s") if it is _MISSING else it
                for name, it in zip(self.commands, self._answers, strict=True)
            ]
            self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, _nobody
        self._forget(self)
        self._forget = _nobody  # breaks a cycle that Python would collect only later
        done(self._answers)


def _nobody(_told: object) -> None:
    """Tell nobody."""
