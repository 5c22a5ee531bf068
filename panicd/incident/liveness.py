"""Checks whether an idle QEMU still answers.

An idle QEMU says nothing for weeks. So does a QEMU that is stopped (SIGSTOP), or whose main loop
hangs in its storage: it would not report a panic either. So panicd asks for the run state now and
then, at spread moments. Nothing waits for the answer: panicd takes events as ever.
"""

import random
from collections.abc import Callable
from typing import Final

from panicd.host.logs import get_logger
from panicd.host.timers import Timer
from panicd.incident.domains import Domain
from panicd.incident.services import Services
from panicd.qemu.monitor_error import MonitorError, NoReplyError
from panicd.qemu.session import Session
from panicd.rules.machine.answers import run_state_of

ASK_EVERY: Final = 600.0  # seconds; an answer costs 0.3 to 0.7 ms of processor time
ASK_LIBVIRT_SOON: Final = 2.0
"""Seconds until libvirt is asked first; then ever more rarely. A libvirtd that has just started may
say 'running' of a guest that panicked before, until it has asked QEMU, and tells nobody then."""
SILENT_AFTER: Final = 10.0  # seconds; under a flood of panics QEMU was seen to take 1.2


class Liveness:
    """The questions to one QEMU, and whether it has answered.

    Args:
        services: shared by all domains.
        domain: QEMU's domain.
        session: its ``silent_since`` is set here.
        is_idle: returns True if nothing else asks QEMU for long.
        look: called when QEMU's run state differs from the known one.
    """

    def __init__(
        self,
        services: Services,
        domain: Domain,
        session: Session,
        is_idle: Callable[[], bool],
        look: Callable[[], None],
    ) -> None:
        self._services = services
        self._domain = domain
        self._session = session
        self._is_idle = is_idle
        self._look = look
        # libvirt knows the run state itself: panicd asks its QEMU for something else.
        by_api = session.capability.by_api
        self._questions = ("query-status", "query-iothreads") if by_api else ("query-status",)
        self._interval = min(ASK_LIBVIRT_SOON, ASK_EVERY) if by_api else ASK_EVERY
        first = random.uniform(0.0, self._rest())  # noqa: S311 - spreads the questions, guards nothing
        self._timer: Timer | None = services.timers.after(first, self._ask)

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _rest(self) -> float:
        """Return the seconds until the next question."""
        rest, self._interval = self._interval, min(4 * self._interval, ASK_EVERY)
        return rest

    def _ask(self) -> None:
        if not self._is_idle():
            self._timer = self._services.timers.after(self._rest(), self._ask)
            return
        self._timer = self._services.timers.after(SILENT_AFTER, self._is_silent)
        question = [(name, dict[str, object]()) for name in self._questions]
        self._session.monitor.ask(question, self._answered, timeout=SILENT_AFTER)

    def _is_silent(self) -> None:
        """Note the missing answer; the question stays, as the answer may still come."""
        self._note(self._services.keeping.clock() - SILENT_AFTER)

    def _answered(self, answers: list[object]) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        answer, *others = answers
        unanswered = any(isinstance(each, NoReplyError) for each in answers)
        if isinstance(answer, MonitorError) and not unanswered:
            return  # the session's end, or nonsense: handled elsewhere
        self._timer = self._services.timers.after(self._rest(), self._ask)
        if unanswered:
            self._is_silent()
            return
        if not any(isinstance(each, MonitorError) for each in others):
            self._note(None)
        if run_state_of(answer) is not self._session.run_state:
            self._look()

    def _note(self, silent_since: float | None) -> None:
        before, self._session.silent_since = self._session.silent_since, silent_since
        log = get_logger(domain=self._domain.name)
        if silent_since is not None:
            log.warning("QEMU does not answer", since=silent_since)
        elif before is not None:
            log.info("QEMU answers again", silent_since=before)
