"""Commands that were sent, and whose answers are awaited."""

from collections.abc import Callable, Iterable


class Question:
    """Commands that were sent together, and their answers as they come in.

    Args:
        unanswered: what stands for each answer until it comes.
        done: called once, with the answers: when the last has come, none will, or it is given up.

    Attributes:
        ids: under which the answers come; none once all did.
    """

    __slots__ = ("_answers", "_awaited", "_done", "_forget", "ids")

    def __init__(self, unanswered: list[object], done: Callable[[list[object]], None]) -> None:
        self._answers = unanswered
        self._awaited = len(unanswered)
        self._done: Callable[[list[object]], None] = done
        self._forget: Callable[[Iterable[str]], None] = _nobody
        self.ids: list[str] = []

    def sent(self, ids: list[str], forget: Callable[[Iterable[str]], None]) -> None:
        """Note under which ids the answers come."""
        if self._awaited:
            self.ids, self._forget = ids, forget

    @property
    def is_over(self) -> bool:
        """Whether all its answers came, or it was given up."""
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
            self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, _nobody
        self._forget(self.ids)
        self._forget = _nobody  # or each would keep the other until Python looks for such
        done(self._answers)


def _nobody(_told: object) -> None:
    """Tell nobody."""
