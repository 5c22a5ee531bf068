"""Commands that were sent and await their answers."""

from collections.abc import Callable, Iterable, Sequence
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
        ids: the answers' ids; empty once all answers came.
    """

    __slots__ = ("_answers", "_awaited", "_commands", "_done", "_forget", "_timeout", "ids")

    def __init__(
        self, commands: Sequence[str], timeout: float, done: Callable[[list[object]], None]
    ) -> None:
        self._commands = commands
        self._timeout = timeout
        self._answers: list[object] = [_MISSING] * len(commands)
        self._awaited = len(commands)
        self._done: Callable[[list[object]], None] = done
        self._forget: Callable[[Iterable[str]], None] = _nobody
        self.ids: list[str] = []

    def sent(self, ids: list[str], forget: Callable[[Iterable[str]], None]) -> None:
        """Note the ids of the answers."""
        if self._awaited:
            self.ids, self._forget = ids, forget

    @property
    def is_over(self) -> bool:
        """True once all answers came, or the question was given up."""
        return not self._awaited

    def put(self, index: int, answer: object) -> None:
        """Take an answer."""
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
                for name, it in zip(self._commands, self._answers, strict=True)
            ]
            self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, _nobody
        self._forget(self.ids)
        self._forget = _nobody  # breaks a cycle that Python would collect only later
        done(self._answers)


def _nobody(_told: object) -> None:
    """Tell nobody."""
