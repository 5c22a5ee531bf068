"""Answers to commands that were sent: waited for, or not."""

from collections.abc import Callable

import trio


class Answers:
    """The answers to some commands that were sent together, as they come in.

    Attributes:
        complete: set when the last has come, or none will.
    """

    def __init__(self, answers: list[object]) -> None:
        self.complete = trio.Event()
        self._answers = answers
        self._awaited = len(answers)

    def put(self, index: int, answer: object) -> None:
        """Take one."""
        self._answers[index] = answer
        self._awaited -= 1
        if not self._awaited:
            self.complete.set()


class Question:
    """A command whose answer nobody waits for, as ``Monitor.ask`` sends it.

    Attributes:
        answered: whether the answer has come, or none will.
        answer: it, or the ``MonitorError`` that was met.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self.answered = False
        self.answer: object = None
        self._tell = tell

    def put(self, _index: int, answer: object) -> None:
        """Take it."""
        self.answered, self.answer = True, answer
        self._tell()
