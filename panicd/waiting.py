"""Open incidents whose domain nobody is connected to.

An incident outlives its connection: the daemon is restarted, a monitor is cut, a VM is relaunched.
Meanwhile it waits here until its domain is found again. One that waits for a relaunched domain
fails when that does not come in time.
"""

from contextlib import suppress

import trio

from panicd.chronicle import Chronicle, Clock
from panicd.host.journal import JournalError
from panicd.host.journal_totals import domain_key
from panicd.rules.incident import Outcome, Settled, State, StepEnded
from panicd.rules.plan import AwaitReturn


class WaitingRoom:
    """The incidents that wait.

    Args:
        nursery: runs the time limits.
        clock: seconds since the epoch.
    """

    def __init__(self, nursery: trio.Nursery, clock: Clock) -> None:
        self._nursery = nursery
        self._clock = clock
        self._waiting: dict[str, Chronicle] = {}

    def park(self, chronicle: Chronicle) -> None:
        """Keep an open incident until its domain is found again."""
        self._waiting[chronicle.incident.id] = chronicle
        deadline = return_deadline(chronicle)
        if deadline is not None:
            self._nursery.start_soon(self._give_up_at, chronicle, deadline)

    def claim(self, process: str, key: str) -> Chronicle | None:
        """Return the incident that waits for a domain, and keep it no longer.

        Args:
            process: which QEMU process was found; an incident that began on it comes first.
            key: the domain's key.
        """
        waiting = list(self._waiting.values())
        same = (c for c in waiting if process and c.incident.opened.process == process)
        known = (c for c in waiting if domain_key(c.incident.opened) == key)
        chronicle = next(same, None) or next(known, None)
        if chronicle is not None:
            del self._waiting[chronicle.incident.id]
        return chronicle

    def forget(self, chronicle: Chronicle) -> None:
        """Keep an incident no longer."""
        del self._waiting[chronicle.incident.id]

    @property
    def chronicles(self) -> tuple[Chronicle, ...]:
        """The incidents that wait, the oldest first."""
        return tuple(self._waiting.values())

    async def _give_up_at(self, chronicle: Chronicle, deadline: float) -> None:
        await trio.sleep(max(0.0, deadline - self._clock()))
        index = chronicle.incident.step_in_progress
        if self._waiting.get(chronicle.incident.id) is not chronicle or index is None:
            return
        detail = "the domain did not come back in time"
        chronicle.note(StepEnded(self._clock(), index, Outcome.FAILED, detail))
        chronicle.note(Settled(self._clock(), State.FAILED))
        with suppress(JournalError):  # told of where it is found
            await chronicle.commit()


def return_deadline(chronicle: Chronicle) -> float | None:
    """Return until when a relaunched domain is waited for, in seconds since the epoch."""
    incident = chronicle.incident
    index = incident.step_in_progress
    if index is None or incident.plan is None:
        return None
    step = incident.plan.steps[index]
    if not isinstance(step, AwaitReturn):
        return None
    return incident.steps[index].begun_at + step.timeout
