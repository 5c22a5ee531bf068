"""Whether a QEMU of which nothing is asked still answers.

An idle QEMU says nothing for weeks, and so does one that is stopped (SIGSTOP), or whose main loop
hangs in its storage: it would not tell of a panic either. So it is asked for its run state now and
then, at moments that are spread. Nobody waits for the answer: an event is taken as ever.
"""

import random
from typing import Final

import trio

from panicd.fleet import Domain
from panicd.host.logs import get_logger
from panicd.qemu.monitor import CommandError
from panicd.qemu.pending import Question
from panicd.qemu.session import Session
from panicd.rules.qapi import RunState

ASK_EVERY: Final = 600.0  # seconds; an answer costs 0.3 to 0.7 ms of processor time
SILENT_AFTER: Final = 10.0  # seconds; under a flood of panics QEMU was seen to take 1.2


class Liveness:
    """What is asked of one QEMU, and whether it has answered.

    Args:
        domain: whose it is.
        session: of which ``silent_since`` is kept.
    """

    def __init__(self, domain: Domain, session: Session) -> None:
        self._domain = domain
        self._session = session
        self._question: Question | None = None
        self._due = trio.current_time() + random.uniform(0.0, ASK_EVERY)  # noqa: S311 - a spread

    @property
    def due_in(self) -> float:
        """Seconds until ``check`` has something to do, unless an answer comes before."""
        return max(0.0, self._due - trio.current_time())

    def check(self, now: float) -> bool:
        """Ask, see whether there is an answer, or note that there is none.

        Args:
            now: seconds since the epoch.

        Returns:
            Whether QEMU's run state is another than is known.
        """
        question = self._question
        if question is not None and question.answered:
            self._question = None
            self._due = trio.current_time() + ASK_EVERY
            self._note(None)
            return self._tells_another(question.answer)
        if self.due_in > 0.0:
            return False
        if question is None:
            self._question = self._session.monitor.ask("query-status")
            self._due = trio.current_time() + SILENT_AFTER
        else:
            self._note(now - SILENT_AFTER)
            self._due = float("inf")  # until it answers
        return False

    def _note(self, silent_since: float | None) -> None:
        before, self._session.silent_since = self._session.silent_since, silent_since
        log = get_logger(domain=self._domain.name)
        if silent_since is not None:
            log.warning("QEMU does not answer", since=silent_since)
        elif before is not None:
            log.info("QEMU answers again", silent_since=before)

    def _tells_another(self, answer: object) -> bool:
        if isinstance(answer, CommandError) or not isinstance(answer, dict):
            return False
        return RunState.parse(answer.get("status")) is not self._session.run_state
