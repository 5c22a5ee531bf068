"""Open incidents without a connection that still need work.

QEMU ended while panicd was not connected; a relaunched domain is back, or late; an incident's end
could not be written; a QEMU that panicd was ending does not answer. Each incident gets a driver of
its own, and waits again if it stays open.
"""

from typing import Final

import trio

from panicd.incident.domains import Domain
from panicd.incident.driver import Driver
from panicd.incident.services import Services
from panicd.journal.chronicle import Chronicle
from panicd.journal.journal import JournalError
from panicd.qemu.process import Peer
from panicd.qemu.process_identity import ProcessIdentity
from panicd.rules.identity import Claim
from panicd.rules.incident import State
from panicd.rules.machine.inputs import Plight
from panicd.rules.plan import Kill, Terminate

RETRY_EVERY: Final = 5.0  # seconds


async def take_up_orphans(services: Services) -> None:
    """Go on with every orphaned incident, until cancelled."""
    async with trio.open_nursery() as nursery:
        async for chronicle, plight in services.waiting.orphans:
            nursery.start_soon(_look_after, services, chronicle, plight)


async def end_hung_qemu(services: Services, peer: Peer) -> None:
    """Go on with ending a QEMU whose monitor does not answer, if its end had begun.

    The process must be the incident's own.

    Raises:
        JournalError: the entries can't be recorded.
    """
    found = (c for c in services.waiting.parked if _ends(c, peer))
    chronicle = next(found, None)
    if chronicle is None or services.dry_run:
        return
    services.waiting.withdraw(chronicle)
    services.waiting.take_in_hand(chronicle)
    try:
        await _driver(services, chronicle, peer).adopt(chronicle, Plight.HANGS)
    finally:
        services.waiting.let_go(chronicle)
        if chronicle.incident.is_open:
            services.waiting.park(chronicle)
        elif not chronicle.is_written:
            services.waiting.hand_over(chronicle)


def _ends(chronicle: Chronicle, peer: Peer) -> bool:
    incident = chronicle.incident
    process = ProcessIdentity.parse(incident.opened.process)
    if incident.state is not State.ACTING or not peer.recognise(process):
        return False
    assert incident.plan is not None
    return isinstance(incident.plan.steps[max(incident.steps)], Terminate | Kill)


async def _look_after(services: Services, chronicle: Chronicle, plight: Plight) -> None:
    try:
        await _take_up_or_park(services, chronicle, plight)
    finally:
        services.waiting.let_go(chronicle)


async def _take_up_or_park(services: Services, chronicle: Chronicle, plight: Plight) -> None:
    """Go on with one incident; try again while the journal can't be written."""
    there = True
    while there:
        try:
            await _take_up(services, chronicle, plight)
            is_done = chronicle.is_written or chronicle.incident.is_open
        except JournalError:  # reported where it is found
            is_done = False
        except trio.Cancelled:  # the notes are written at the very end
            services.waiting.park(chronicle, is_orphan=True)
            raise
        if is_done and not chronicle.incident.is_open:
            return
        services.waiting.park(chronicle, is_orphan=True)
        if is_done:
            return
        await trio.sleep(RETRY_EVERY)
        there = services.waiting.withdraw(chronicle)
        if there:
            services.waiting.take_in_hand(chronicle)


async def _take_up(services: Services, chronicle: Chronicle, plight: Plight) -> None:
    await chronicle.commit()  # notes that could not be written before
    if chronicle.incident.is_open:
        await _driver(services, chronicle, None).adopt(chronicle, plight)


def _driver(services: Services, chronicle: Chronicle, peer: Peer | None) -> Driver:
    opened = chronicle.incident.opened
    claim = Claim(opened.called, opened.uuid)
    domain = Domain(opened.monitor, opened.domain, opened.at, claim=claim, key=opened.domain_key)
    return Driver(services, domain, peer)
