"""A QEMU that panicd was ending by signals when it was interrupted, and that does not answer."""

import signal

import trio

from panicd.chronicle import Chronicle
from panicd.host.logs import get_logger
from panicd.qemu.process import Peer, PeerError
from panicd.qemu.process_identity import ProcessIdentity
from panicd.rules.incident import Outcome, Settled, State, StepResult
from panicd.rules.plan import Kill, Terminate
from panicd.services import Services

SIGNALS = {Terminate: signal.SIGTERM, Kill: signal.SIGKILL}


async def end_hung_qemu(services: Services, peer: Peer) -> None:
    """Go on with ending a QEMU whose monitor does not answer, if that had begun.

    Only where the journal has it that QEMU did not end on ``quit`` and a signal was due, and only
    the very process that this was about: before that, a silent monitor may just be taken by another
    client, and its guest be anyone's.

    Raises:
        JournalError: what is done can't be recorded.
    """
    if services.dry_run:
        return
    found = (c for c in services.waiting.parked if _is_escalating(c, peer))
    chronicle = next(found, None)
    if chronicle is None:
        return
    services.waiting.withdraw(chronicle)
    services.waiting.take_in_hand(chronicle)
    get_logger(domain=chronicle.incident.opened.domain, incident=chronicle.incident.id).warning(
        "QEMU does not answer, and is ended as was begun"
    )
    try:
        await _escalate(chronicle, peer)
    finally:
        services.waiting.park(chronicle)  # and what follows from its end is for an orphan


def _is_escalating(chronicle: Chronicle, peer: Peer) -> bool:
    incident = chronicle.incident
    process = ProcessIdentity.parse(incident.opened.process)
    if incident.state is not State.ACTING or not peer.recognise(process):
        return False
    assert incident.plan is not None
    return isinstance(incident.plan.steps[max(incident.steps)], Terminate | Kill)


async def _escalate(chronicle: Chronicle, peer: Peer) -> None:
    incident = chronicle.incident
    assert incident.plan is not None
    first = max(incident.steps)
    for index, step in enumerate(incident.plan.steps[first:], first):
        if not isinstance(step, Terminate | Kill):
            break
        chronicle.begin(index)
        await chronicle.commit()
        chronicle.end(index, await _end(peer, step))
        if peer.gone():
            await chronicle.commit()
            return
    chronicle.note(Settled(chronicle.now, State.FAILED))
    await chronicle.commit()


async def _end(peer: Peer, step: Terminate | Kill) -> StepResult:
    number = SIGNALS[type(step)]
    try:
        peer.send_signal(number)
    except PeerError as error:
        return StepResult(Outcome.FAILED, str(error))
    with trio.move_on_after(step.timeout):
        await peer.wait_gone()
    if peer.gone():
        return StepResult(Outcome.DONE)
    return StepResult(Outcome.FAILED, f"still there {step.timeout:g} s after {number.name}")
