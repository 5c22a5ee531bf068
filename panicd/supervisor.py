"""Looks after one connected domain: one task, from its session's greeting to its end.

Events come one after the other and each is dealt with before the next, guest events before what
operators ask. While a plan is carried out its executor takes the events; a panic among those is a
repeat of the one that is acted on.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from panicd.chronicle import Chronicle
from panicd.executor import GONE_FOLLOWS
from panicd.fleet import Domain
from panicd.host.journal import JournalError
from panicd.host.logs import get_logger
from panicd.liveness import Liveness
from panicd.own_time import OwnTime
from panicd.qemu.event_buffer import Heard
from panicd.qemu.monitor import CommandError, MonitorError, SessionLostError
from panicd.qemu.session import Session
from panicd.responder import Responder
from panicd.rules.capability import Armed, run_by_libvirt
from panicd.rules.ending import Cause, cause_of_end
from panicd.rules.flood import FloodGauge
from panicd.rules.incident import Acknowledged, Ending, Observed, Source, State
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation, OperationKind
from panicd.rules.policy import ImpossibleError, Reason, applicable
from panicd.rules.qapi import (
    GuestCrashloadedEvent,
    GuestPanickedEvent,
    GuestPvshutdownEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)
from panicd.rules.recovery import Found
from panicd.rules.settings import Policy
from panicd.services import Services

ARRIVAL_CHECK: Final = 1.0  # seconds between two looks at whether a migrated guest is there
REAPED_FOLLOWS: Final = 0.2  # seconds between a process's end and its parent's knowing of it
LOST: Final = "the domain's monitor was lost"
ACTED_ON: Final = frozenset({State.PRESERVED, State.RUNNING_ON, State.FAILED, State.RESET})
# The states in which nothing is asked of QEMU for long, so that it is asked whether it answers.
SETTLED: Final = frozenset({None, State.PRESERVED, State.FAILED, State.RESET})
LOOK_AFTER: Final[dict[State | None, float]] = {  # seconds without an event
    State.PRESERVED: 5.0,  # it may have been migrated away
    State.FAILED: 5.0,
    State.RESET: 5.0,
    State.RUNNING_ON: 60.0,  # an ignored panic that did not come again is over
}


@dataclass(eq=False, slots=True)
class Wish:
    """Something that an operator asks of a domain.

    Attributes:
        operation: who asks for what, and why.
        action: of ``act``: what to do.
        about: the incident that was open when it was asked; empty: none was.
        done: set when it was carried out, or refused.
        refused: why, where it was.
    """

    operation: Operation
    action: OnCrash | None = None
    about: str = ""
    done: trio.Event = field(default_factory=trio.Event)
    refused: str = ""


class Supervisor:
    """Looks after one connected domain.

    Args:
        services: what it uses.
        domain: which it is.
    """

    def __init__(self, services: Services, domain: Domain) -> None:
        self._services = services
        self._domain = domain
        self._stale_policy = False
        self._left = False
        self._wishes: deque[Wish] = deque()
        self._flood = FloodGauge()
        self._coalesced = 0

    async def run(self, session: Session) -> Cause:
        """Look after the domain until its session ends.

        Args:
            session: its connection; the session's events are to be given to ``listen``.

        Returns:
            Why it ended.

        Raises:
            MonitorError: its monitor failed.
            JournalError: an incident can't be recorded, and is not to be acted on without.
        """
        self._session = session
        self._services.fleet.attach(self._domain, session)
        self._responder = Responder(self._services, self._domain, session)
        self._own_time = OwnTime(self._domain, session, self._responder)
        self._liveness = Liveness(self._domain, session)
        try:
            await self._take_up()
            while not session.ended:
                self._count_coalesced()
                if (heard := self._responder.take_next_panic()) is not None:
                    if not await self._own_time.take(heard):
                        await self._panicked(heard)
                elif self._stale_policy or self._own_time.over:
                    await self._apply_policy()
                elif self._wishes:
                    await session.drain()
                    await self._grant(self._wishes.popleft())
                else:
                    await self._wait()
            return await self._see_end()
        finally:
            self._count_coalesced()
            self._leave()
            session.listener = _nobody  # or each would keep the other until Python looks for such

    def reload(self) -> None:
        """Have policy and holds looked up anew, as soon as may be."""
        self._stale_policy = True
        self._session.monitor.events.nudge()

    def ask(self, wish: Wish) -> None:
        """Have a wish granted or refused, after the events that are there already."""
        if self._left:
            self._refuse(wish, LOST)
            return
        if self._responder.acting:
            incident = self._chronicle.incident
            self._refuse(wish, f"{incident.action} is being carried out for {incident.id}")
            return
        chronicle = self._domain.chronicle
        wish.about = chronicle.incident.id if chronicle is not None else ""
        self._wishes.append(wish)
        self._session.monitor.events.nudge()

    async def listen(self, heard: Heard) -> None:
        """Deal with an event; called for each, in order."""
        match heard.event:
            case GuestPanickedEvent(action=PanicAction.POWEROFF) if self._session.stops_by_panic:
                return  # QEMU 2.8 tells of one panic twice: that the guest stops, that QEMU ends
        if self._responder.acting:
            if isinstance(heard.event, GuestPanickedEvent):
                self._heard_while_acting(heard)
            elif isinstance(heard.event, ResetEvent | ResumeEvent):
                self._responder.repeat_next_panic()  # somebody has ended it before its turn came
            return
        if await self._own_time.take(heard):
            return
        match heard.event:
            case GuestPanickedEvent():
                await self._panicked(heard)
            case ResumeEvent():
                await self._resumed()
            case ResetEvent(guest=guest):
                await self._reset(by_guest=guest)
            case StopEvent():
                await self._saw(f"guest stopped, run state {await self._session.query_status()}")
            case ShutdownEvent(reason=reason):
                await self._saw(f"shutdown, {reason or 'no reason given'}")
            case GuestCrashloadedEvent():
                await self._saw("guest handles its panic itself (kdump)")
            case GuestPvshutdownEvent():
                await self._saw("guest shuts itself down, and says so (pvpanic)")
            case _:
                pass

    @property
    def _policy(self) -> Policy:
        assert self._domain.policy is not None
        return self._domain.policy

    @property
    def _chronicle(self) -> Chronicle:
        assert self._domain.chronicle is not None
        return self._domain.chronicle

    @property
    def _log(self) -> structlog.typing.FilteringBoundLogger:
        return get_logger(domain=self._domain.name)

    async def _apply_policy(self) -> None:
        """Take the domain's policy from the configuration in force, and arm it for that."""
        self._stale_policy = self._own_time.over = False
        domain, session, services = self._domain, self._session, self._services
        self._look_up_policy()
        assert domain.policy is not None
        session.monitor.pace.share = domain.policy.flood.share
        wanted, _ = applicable(domain.policy, session.capability, None)
        if not services.dry_run:
            await session.set_panic_action(self._responder.panic_setting)
        self._log.debug(
            "policy in force",
            on_crash=domain.policy.on_crash,
            applies=wanted,
            panic=session.capability.panic_setting,
        )
        if session.capability.libvirt_forestalls(wanted):
            self._log.warning("libvirt acts on this domain's panics before panicd can")
        if session.capability.armed is not Armed.YES:
            self._log.warning("domain is not known to be armed", armed=session.capability.armed)
        await self._see_hold_end()

    def _look_up_policy(self) -> None:
        domain, session, services = self._domain, self._session, self._services
        known = services.libvirt.known(domain.address)
        session.capability = run_by_libvirt(session.capability, known)
        domain.policy = services.policy_for(domain.claim, domain.address)

    async def _see_hold_end(self) -> None:
        """Decide anew about an incident in which nothing was done because of a hold."""
        domain, now = self._domain, self._services.keeping.clock()
        if domain.chronicle is None or domain.hold(self._services.holds, now):
            return
        incident = domain.chronicle.incident
        held = incident.decision is not None and incident.decision.reason is Reason.HELD
        if held and incident.state is State.PRESERVED:
            await self._responder.decide(await self._session.status_or_last())

    async def _take_up(self) -> None:
        """Go on with the incident that waits for this domain, and see whether it is panicked."""
        domain, session = self._domain, self._session
        self._look_up_policy()
        await self._claim_incident()
        if domain.chronicle is not None:
            began_on = domain.chronicle.incident.opened.process
            # Behind a proxy neither is known; then the VM's identity has to do.
            same = began_on == session.process or not (began_on and session.process)
            found = Found(session.run_state, same, session.capability.behaves_like)
            await self._responder.recover(found)
            if session.ended or (session.process_known and session.peer.gone()):
                return  # what was gone on with has ended it; its run state is of before
        await self._see_panic()
        await self._apply_policy()

    async def _see_panic(self) -> None:
        """Open an incident for a guest that is panicked and has none.

        Its run state was asked for before a commit was waited for: what was heard since goes first.
        """
        domain, session = self._domain, self._session
        await session.drain()
        if (
            session.run_state is RunState.GUEST_PANICKED
            and not session.seen.reset_since_panic
            and domain.chronicle is None
            and self._responder.next_panic is None
            and not session.ended
        ):
            await self._responder.open(Source.RECONCILIATION, None, RunState.GUEST_PANICKED)

    async def _claim_incident(self) -> None:
        """Take the incident that waits for this domain; what is not yet written of it, is now."""
        waiting = self._services.waiting
        while chronicle := waiting.claim(self._session.process, self._domain):
            self._domain.chronicle = chronicle
            await chronicle.commit()
            if chronicle.incident.is_open:
                return
            self._domain.chronicle = None
            if not chronicle.is_written:
                waiting.hand_over(chronicle)

    async def _wait(self) -> None:
        """Wait for an event and take it; where none may tell of a change, look now and then."""
        if self._own_time.until is not None:
            await self._own_time.wait()
            return
        chronicle, session = self._domain.chronicle, self._session
        state = chronicle.incident.state if chronicle is not None else None
        arrives = state is None and session.run_state is RunState.INMIGRATE
        limit = ARRIVAL_CHECK if arrives else LOOK_AFTER.get(state, math.inf)
        if session.silent_since is not None:
            limit = math.inf  # it would not answer
        asked_in = self._liveness.due_in if state in SETTLED else math.inf
        if await session.wait_event(min(limit, asked_in)):
            await session.take_event()
        elif state is State.RUNNING_ON:
            await self._responder.close(Ending.RAN_ON)
        elif limit <= asked_in:
            await self._look()
        if state in SETTLED and self._liveness.check(self._services.keeping.clock()):
            await self._look()

    async def _look(self) -> None:
        """See what no event tells of: a guest that migrated in panicked, or was migrated away."""
        session = self._session
        try:
            await session.status_or_last()
            await session.drain()
        except SessionLostError:  # its end is seen to where every session's is
            return
        chronicle = self._domain.chronicle
        if chronicle is None:
            await self._see_panic()
        elif session.run_state is RunState.POSTMIGRATE:
            await self._responder.close(Ending.MIGRATED)
        else:
            chronicle.note_repeats()
            await chronicle.commit()  # what could not be written when it was noted

    def _heard_while_acting(self, heard: Heard) -> None:
        """Take a panic for a repeat, unless the guest was let run since: then it comes next."""
        if not self._responder.guest_was_let_go and self._own_time.until is None:
            self._chronicle.repeat(heard.count)
        else:
            self._responder.put_off(heard)

    async def _panicked(self, heard: Heard) -> None:
        event, responder = heard.event, self._responder
        assert isinstance(event, GuestPanickedEvent)
        responder.heard_at = heard.at
        self._count_coalesced()
        chronicle = self._domain.chronicle
        if chronicle is not None and chronicle.incident.state is State.RESET:
            await responder.close(Ending.FOREIGN_RESET)  # a kernel that was started since panics
            chronicle = None
        if chronicle is None:
            await responder.open(Source.EVENT, event.information, await self._state_after(event))
            if heard.count > 1 and self._domain.chronicle is not None:
                self._chronicle.repeat(heard.count - 1)
            return
        chronicle.repeat(heard.count)
        await chronicle.commit()
        if chronicle.incident.state is not State.RUNNING_ON or self._session.has_gone():
            return
        too_many = self._flood.rises(self._policy.flood, heard.count, trio.current_time())
        if too_many and await responder.end_flood():
            return
        if event.action is PanicAction.PAUSE:
            run_state = await self._state_after(event)
            if run_state is RunState.GUEST_PANICKED:
                await responder.ignore_again(run_state)

    async def _state_after(self, event: GuestPanickedEvent) -> RunState | None:
        """Return the run state that a panic leaves the guest in; None where QEMU ends."""
        session = self._session
        match event.action:
            case PanicAction.PAUSE if session.run_state.executes:
                return RunState.GUEST_PANICKED
            case PanicAction.PAUSE | PanicAction.RUN:
                return session.run_state
            case _:
                return None if await self._ends() else await session.query_status()

    async def _ends(self) -> bool:
        """Whether the session ends soon, as after a panic that QEMU powers off for."""
        session = self._session
        while await session.wait_event(self._policy.timeouts.stop):
            if session.ended:
                return True
            session.skip_event()
        return session.ended

    async def _resumed(self) -> None:
        chronicle = self._domain.chronicle
        if chronicle is None:
            await self._saw("guest resumed")
            return
        if chronicle.incident.state is State.RUNNING_ON:
            return
        if chronicle.incident.state is State.RESET:
            await self._responder.close(Ending.FOREIGN_RESET)
        else:
            await self._responder.stop_again()

    async def _reset(self, *, by_guest: bool) -> None:
        if self._domain.chronicle is not None:
            if by_guest:
                await self._responder.close(Ending.GUEST_RESET)
            else:
                await self._responder.reset_by_others()
        elif not by_guest:  # what a guest can do as often as it likes is not logged
            await self._saw("guest reset")

    async def _saw(self, what: str) -> None:
        """Note what somebody else did: in the open incident, in the log where there is none."""
        chronicle = self._domain.chronicle
        if chronicle is None:
            self._log.info("seen", what=what)
            return
        chronicle.note(Observed(chronicle.now, what))
        await chronicle.commit()

    async def _grant(self, wish: Wish) -> None:
        """Carry out what an operator asks, unless the domain's state has overtaken it."""
        operation, chronicle = wish.operation, self._domain.chronicle
        try:
            if chronicle is None:
                wish.refused = "the domain has no open incident"
            elif chronicle.incident.id != wish.about:
                wish.refused = "the guest panicked after this was asked for"
            elif operation.kind is OperationKind.ACK:
                chronicle.note(Acknowledged(operation.at, operation.uid, operation.why))
                await chronicle.commit()
            elif chronicle.incident.state not in ACTED_ON and self._own_time.until is None:
                wish.refused = f"its incident is {chronicle.incident.state}"
            else:
                await self._responder.obey(operation, wish.action)
        except (ImpossibleError, CommandError) as error:
            wish.refused = str(error)
        except (MonitorError, JournalError) as error:
            wish.refused = f"it is not known whether it was done: {error}"
            raise
        finally:
            wish.done.set()

    def _refuse(self, wish: Wish, why: str) -> None:
        wish.refused = why
        wish.done.set()

    async def _see_end(self) -> Cause:
        """Find out why the session ended, and what that means for an open incident."""
        session = self._session
        gone = await self._process_has_ended()
        known = gone and session.process_known
        status = await session.peer.exit_status(REAPED_FOLLOWS) if known else None
        cause = cause_of_end(session.seen.shutdown, gone, status)
        self._log.info("domain ended" if gone else "connection ended", cause=cause)
        if self._domain.chronicle is not None and gone:
            by_panic = cause is Cause.GUEST_PANIC or session.capability.armed is not Armed.YES
            self._chronicle.note(Observed(self._chronicle.now, f"QEMU ended: {cause}"))
            await self._responder.recover(
                Found(None, True, session.capability.behaves_like, by_panic)
            )
        return cause

    async def _process_has_ended(self) -> bool:
        session = self._session
        if not session.process_known:  # then only QEMU's own word is left
            return session.seen.shutdown is not None and not session.capability.no_shutdown
        with trio.move_on_after(GONE_FOLLOWS):
            await self._session.peer.wait_gone()
        return self._session.peer.gone()

    def _count_coalesced(self) -> None:
        """Count the events given up since the last time: a flood is seen while it lasts."""
        coalesced = self._session.monitor.events.coalesced
        self._services.metrics.events_coalesced.inc(coalesced - self._coalesced)
        self._coalesced = coalesced

    def _leave(self) -> None:
        """Leave an open incident to wait for its domain, and refuse what is still asked."""
        domain = self._domain
        self._services.fleet.detach(domain)
        self._left = True
        for wish in self._wishes:
            self._refuse(wish, LOST)
        if domain.chronicle is not None:
            domain.chronicle.note_repeats()
            self._services.waiting.park(domain.chronicle)
            domain.chronicle = None


async def _nobody(_heard: Heard) -> None:
    """Listen to nothing."""
