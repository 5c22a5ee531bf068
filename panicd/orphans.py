"""Open incidents whose QEMU ended while panicd was not connected: nobody will connect again.

What is left to do for one is to close it, or to go on with its relaunch.
"""

from typing import Final

import trio

from panicd.chronicle import Chronicle
from panicd.host.journal import JournalError
from panicd.relaunch import NOT_BEGUN, relaunch_environment, run_relaunch
from panicd.rules.capability import Capability
from panicd.rules.identity import Claim, owner_of
from panicd.rules.incident import Closed, Decided, Ending, Outcome, Settled, State
from panicd.rules.plan import AwaitReturn, RunRelaunch, make_plan
from panicd.rules.policy import decide
from panicd.rules.recovery import End, Found, GiveUp, GoOn, Redecide, Stay, recover
from panicd.services import Services
from panicd.situation import Whose, situation_of

RETRY_EVERY: Final = 5.0  # seconds
UNKNOWN_QEMU = Capability(version=(0, 0, 0))
GONE = Found(None, same_process=True, version=UNKNOWN_QEMU.version)


async def take_up_orphans(services: Services) -> None:
    """Go on with every waiting incident whose QEMU has ended, until cancelled."""
    async with trio.open_nursery() as nursery:
        async for chronicle in services.waiting.orphans:
            nursery.start_soon(_take_up_or_park, services, chronicle)


async def _take_up_or_park(services: Services, chronicle: Chronicle) -> None:
    """Go on with one incident, and again for as long as the journal can't be written."""
    there = True
    while there:
        try:
            await _take_up(services, chronicle)
            is_done = chronicle.is_written or chronicle.incident.is_open
        except JournalError:  # told of where it is found
            is_done = False
        if is_done:
            services.waiting.let_go(chronicle)
            return
        services.waiting.park(chronicle, is_orphan=True)
        await trio.sleep(RETRY_EVERY)
        there = services.waiting.withdraw(chronicle)
        if there:
            services.waiting.take_in_hand(chronicle)


async def _take_up(services: Services, chronicle: Chronicle) -> None:
    await chronicle.commit()  # what could not be written before
    if not chronicle.incident.is_open:
        return
    match recover(chronicle.incident, GONE):
        case End(ending=ending):
            await _close(chronicle, ending)
        case GoOn() if services.dry_run:
            services.waiting.park(chronicle, is_orphan=True)
        case GoOn(index=index):
            await _go_on(services, chronicle, index)
        case Redecide():
            await _decide(services, chronicle)
        case Stay() | GiveUp():  # only a QEMU that is there has lost an answer
            services.waiting.park(chronicle, is_orphan=True)


async def _decide(services: Services, chronicle: Chronicle) -> None:
    opened, now = chronicle.incident.opened, chronicle.now
    policy = services.policy_for(Claim(opened.called, opened.uuid), opened.monitor)
    whose = Whose(opened.domain_key, opened.names, owner_of(opened.key))
    situation = situation_of(services, chronicle, policy, None, whose)
    decision = decide(policy, UNKNOWN_QEMU, situation, now=now)
    plan = make_plan(decision, policy, UNKNOWN_QEMU, situation)
    chronicle.note(Decided(now, plan))
    if plan.steps and not services.dry_run:
        await _go_on(services, chronicle, 0)
    else:
        await _close(chronicle, Ending.QEMU_EXITED)


async def _go_on(services: Services, chronicle: Chronicle, first: int) -> None:
    """Carry out the rest of a plan, of which only the relaunch needs no QEMU."""
    assert chronicle.incident.plan is not None
    for index, step in enumerate(chronicle.incident.plan.steps[first:], first):
        chronicle.begin(index)
        try:
            await chronicle.commit()
            await trio.lowlevel.checkpoint_if_cancelled()
        except (trio.Cancelled, JournalError) as stopped:
            if isinstance(step, RunRelaunch):
                chronicle.end(index, NOT_BEGUN)
            if isinstance(stopped, trio.Cancelled):  # what was noted is written at the very end
                services.waiting.park(chronicle, is_orphan=True)
            raise
        if isinstance(step, AwaitReturn):
            services.waiting.park(chronicle)
            return
        assert isinstance(step, RunRelaunch)
        result = await run_relaunch(step, relaunch_environment(chronicle.incident))
        chronicle.end(index, result)
        if result.outcome is Outcome.FAILED:
            chronicle.note(Settled(chronicle.now, State.FAILED))
            await chronicle.commit()
            services.waiting.park(chronicle, is_orphan=True)
            return


async def _close(chronicle: Chronicle, ending: Ending) -> None:
    chronicle.note(Closed(chronicle.now, ending))
    await chronicle.commit()
