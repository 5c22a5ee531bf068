"""Open incidents whose domain is not connected.

An incident outlives its connection: the daemon restarts, a monitor is cut, a VM is relaunched. The
incident waits here until its domain is found again, or its QEMU ends. It fails if a relaunched
domain does not come in time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from panicd.incident.domains import Domain
from panicd.journal.chronicle import Chronicle, Clock
from panicd.qemu.process_identity import ProcessIdentity
from panicd.rules.identity import same_place
from panicd.rules.incident import Opened
from panicd.rules.machine.inputs import Plight
from panicd.rules.plan import AwaitReturn

FOUND_WITHIN: Final = 10.0  # seconds after its start; by then panicd is connected to what is there


@dataclass(eq=False, slots=True)
class _Place:
    """One incident that waits, and the tasks that wait for it."""

    chronicle: Chronicle
    left: trio.CancelScope = field(default_factory=trio.CancelScope)


class WaitingRoom:
    """The incidents that wait.

    Args:
        nursery: runs the time limits, and waits for the ends of QEMUs.
        clock: seconds since the epoch.
        has_returned: tells whether the domain of an incident is connected through a new QEMU.

    Attributes:
        orphans: receives each incident to take up without a connection, and why; the incident
            waits here no longer.
    """

    def __init__(
        self, nursery: trio.Nursery, clock: Clock, has_returned: Callable[[Opened], bool]
    ) -> None:
        self._nursery = nursery
        self._clock = clock
        self._has_returned = has_returned
        self._waiting: dict[str, _Place] = {}
        self._in_hand: dict[str, Chronicle] = {}  # taken up without a connection
        self._orphaned, self.orphans = trio.open_memory_channel[tuple[Chronicle, Plight]](math.inf)

    def park(
        self, chronicle: Chronicle, *, is_orphan: bool = False, is_resumed: bool = False
    ) -> None:
        """Keep an open incident until its domain is found again.

        Args:
            chronicle: the incident's.
            is_orphan: its QEMU is known to have ended; the domain may be relaunched.
            is_resumed: panicd starts, and the domain may long be back.
        """
        self.let_go(chronicle)
        opened, deadline = chronicle.incident.opened, return_deadline(chronicle)
        if deadline is not None and is_resumed:
            deadline = max(deadline, self._clock() + FOUND_WITHIN)
        if _is_relaunched(chronicle) and self._has_returned(opened):
            self.hand_over(chronicle, Plight.RETURNED)  # it was faster than its relaunch
            return
        place = self._waiting[chronicle.incident.id] = _Place(chronicle)
        process = ProcessIdentity.parse(opened.process)
        if deadline is not None:
            self._nursery.start_soon(self._give_up_at, place, deadline)
        elif process is not None and not is_orphan:
            self._nursery.start_soon(self._hand_over_when_ended, place, process)

    def claim(self, process: str, domain: Domain) -> Chronicle | None:
        """Return the incident that waits for a domain, and keep it no longer.

        Args:
            process: the QEMU process found. An incident that began on it comes first. One that
                began on another process does not count while that process lives.
            domain: as the host vouches for it.
        """
        waiting = [c.incident.opened for c in self.parked]
        same = (opened for opened in waiting if process and opened.process == process)
        its = (o for o in waiting if _is_of(o, domain) and not (process and _lives(o)))
        found = next(same, None) or next(its, None)
        chronicle = next((c for c in self.parked if c.incident.opened is found), None)
        if chronicle is not None:
            self.withdraw(chronicle)
        return chronicle

    def hand_over(self, chronicle: Chronicle, plight: Plight = Plight.ENDED) -> None:
        """Have an incident taken up without a connection: see ``orphans``."""
        self.take_in_hand(chronicle)
        self._orphaned.send_nowait((chronicle, plight))

    def take_in_hand(self, chronicle: Chronicle) -> None:
        """Show an incident, taken up without a connection, with those that wait."""
        self._in_hand[chronicle.incident.id] = chronicle

    def let_go(self, chronicle: Chronicle) -> None:
        """Undo ``take_in_hand``."""
        self._in_hand.pop(chronicle.incident.id, None)

    def withdraw(self, chronicle: Chronicle) -> bool:
        """Keep an incident no longer; return whether it was still here."""
        place = self._waiting.pop(chronicle.incident.id, None)
        if place is not None:
            place.left.cancel()
        return place is not None

    @property
    def chronicles(self) -> tuple[Chronicle, ...]:
        """The incidents without a connection. Safe in any thread."""
        in_hand = (c for c in list(self._in_hand.values()) if c.incident.is_open)
        return (*self.parked, *in_hand)

    @property
    def parked(self) -> tuple[Chronicle, ...]:
        """The incidents that wait for their domain, the oldest first."""
        return tuple(place.chronicle for place in list(self._waiting.values()))

    async def _hand_over_when_ended(self, place: _Place, process: ProcessIdentity) -> None:
        with place.left:
            await process.wait_ended()
        if not place.left.cancel_called:
            del self._waiting[place.chronicle.incident.id]
            self.hand_over(place.chronicle)

    async def _give_up_at(self, place: _Place, deadline: float) -> None:
        with place.left:
            await trio.sleep(max(0.0, deadline - self._clock()))
        if not place.left.cancel_called:
            del self._waiting[place.chronicle.incident.id]
            self.hand_over(place.chronicle, Plight.OVERDUE)


def _is_of(opened: Opened, domain: Domain) -> bool:
    """Return True if an incident is a domain's, as far as the journal tells."""
    if opened.key:
        return opened.key == domain.key
    claimed = opened.domain_key in {domain.uuid or domain.name, domain.uuid or domain.claim.name}
    return claimed and same_place(opened.monitor, domain.address)


def _lives(opened: Opened) -> bool:
    process = ProcessIdentity.parse(opened.process)
    return process is not None and not process.has_ended()


def _is_relaunched(chronicle: Chronicle) -> bool:
    """Return True if only a domain's return is missing, late or not."""
    incident = chronicle.incident
    if not incident.is_open or incident.plan is None or not incident.steps:
        return False
    return isinstance(incident.plan.steps[max(incident.steps)], AwaitReturn)


def return_deadline(chronicle: Chronicle) -> float | None:
    """Return the deadline of a relaunched domain, in seconds since the epoch."""
    incident = chronicle.incident
    index = incident.step_in_progress
    if index is None or incident.plan is None:
        return None
    step = incident.plan.steps[index]
    if not isinstance(step, AwaitReturn):
        return None
    return incident.steps[index].begun_at + step.timeout
