"""Looks after one connected domain: one task, from its session's greeting to its end.

Events come one after the other and each is dealt with before the next. While a plan is carried
out the executor takes them; a panic among those is a repeat of the one that is acted on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import structlog
import trio

from panicd.chronicle import Chronicle, Clock
from panicd.executor import Course, Executor
from panicd.fleet import Domain, Fleet
from panicd.host.config import Config
from panicd.host.journal import Journal
from panicd.host.logs import get_logger
from panicd.host.metrics import Metrics
from panicd.qemu.coredump import DumpError, FinishedDump, dump_guest_memory
from panicd.qemu.dump_directory import retire
from panicd.qemu.event_buffer import Heard
from panicd.qemu.session import Session
from panicd.rules.capability import Armed, PanicSetting
from panicd.rules.incident import (
    Closed,
    Decided,
    Ending,
    Opened,
    Settled,
    Source,
    State,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Dump, make_plan
from panicd.rules.policy import Decision, Reason, Situation, applicable, decide, fall_back
from panicd.rules.qapi import (
    GuestCrashloadedEvent,
    GuestPanickedEvent,
    PanicAction,
    PanicInformation,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)
from panicd.rules.recovery import End, Found, GoOn, Redecide, Stay, recover
from panicd.rules.settings import Policy
from panicd.tally import Tally
from panicd.waiting import WaitingRoom

SettledState = Literal[State.PRESERVED, State.RUNNING_ON, State.FAILED]

QUIET_AFTER: Final = 60.0  # seconds without a panic after which an ignored one is over
PANIC_SHUTDOWN: Final = "guest-panic"  # QAPI ShutdownCause
GONE_FOLLOWS: Final = 1.0  # seconds between a monitor's end of file and its process's end


@dataclass(frozen=True, slots=True)
class Services:
    """What every supervisor uses.

    Attributes:
        config: returns the configuration in force.
        journal: where incidents are kept.
        metrics: of the host.
        fleet: all domains.
        clock: seconds since the epoch.
        dumps: how many memory dumps may be written at once.
        tally: what counts incidents.
        waiting: keeps open incidents until their domain is found again.
    """

    config: Callable[[], Config]
    journal: Journal
    metrics: Metrics
    fleet: Fleet
    clock: Clock
    dumps: trio.CapacityLimiter
    tally: Tally
    waiting: WaitingRoom


class Supervisor:
    """Looks after one connected domain.

    Args:
        services: what it uses.
        domain: which it is.
    """

    def __init__(self, services: Services, domain: Domain) -> None:
        self._services = services
        self._domain = domain
        self._acting = False
        self._stale_policy = True
        self._heard_at: float | None = None

    async def listen(self, heard: Heard) -> None:
        """Deal with an event; called for each, in order."""
        if self._acting:
            if isinstance(heard.event, GuestPanickedEvent):
                self._chronicle.repeat(heard.count)
            return
        match heard.event:
            case GuestPanickedEvent():
                await self._panicked(heard.event, heard)
            case ResumeEvent():
                await self._resumed()
            case ResetEvent(guest=guest):
                await self._reset(by_guest=guest)
            case StopEvent():
                self._log.info("guest stopped", run_state=await self._session.query_status())
            case ShutdownEvent(reason=reason):
                self._log.info("qemu shuts down", reason=reason)
            case GuestCrashloadedEvent():
                self._log.warning("guest handles its panic itself (kdump)")
            case _:
                pass

    async def run(self, session: Session) -> None:
        """Look after the domain until its session ends.

        Raises:
            MonitorError: its monitor failed.
        """
        self._domain.session = session
        try:
            await self._take_up()
            while not session.ended:
                if self._stale_policy:
                    await self._apply_policy()
                await self._wait()
            await self._see_end()
        finally:
            self._leave()

    def reload(self) -> None:
        """Have the domain's policy taken from the configuration anew, as soon as may be."""
        self._stale_policy = True
        self._session.monitor.events.nudge()

    @property
    def _session(self) -> Session:
        assert self._domain.session is not None
        return self._domain.session

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
        self._stale_policy = False
        domain, session = self._domain, self._session
        domain.policy = self._services.config().policy_for(domain.name, domain.uuid or None)
        wanted, _ = applicable(domain.policy, session.capability, None)
        runs_on = wanted is OnCrash.IGNORE
        await session.set_panic_action(PanicSetting.NONE if runs_on else PanicSetting.PAUSE)
        if session.capability.armed is not Armed.YES:
            self._log.warning("domain is not known to be armed", armed=session.capability.armed)

    async def _take_up(self) -> None:
        """Go on with the incident that waits for this domain, and see whether it is panicked."""
        await self._apply_policy()
        domain, session = self._domain, self._session
        domain.chronicle = self._services.waiting.claim(session.process, domain.key)
        if domain.chronicle is not None:
            opened = domain.chronicle.incident.opened
            same = bool(opened.process) and opened.process == session.process
            await self._recover(Found(session.run_state, same, session.capability.version))
        if domain.chronicle is None and session.run_state is RunState.GUEST_PANICKED:
            await self._open(Source.RECONCILIATION, None, RunState.GUEST_PANICKED)

    async def _wait(self) -> None:
        """Wait for events; an ignored panic that stays quiet is over."""
        chronicle = self._domain.chronicle
        if chronicle is None or chronicle.incident.state is not State.RUNNING_ON:
            await self._session.next_event()
            return
        with trio.move_on_after(QUIET_AFTER) as quiet:
            await self._session.next_event()
        if quiet.cancelled_caught:
            await self._close(Ending.RAN_ON)

    async def _panicked(self, event: GuestPanickedEvent, heard: Heard) -> None:
        self._heard_at = heard.at
        chronicle = self._domain.chronicle
        if chronicle is None:
            await self._open(Source.EVENT, event.information, await self._state_after(event))
            if heard.count > 1 and self._domain.chronicle is not None:
                self._chronicle.repeat(heard.count - 1)
            return
        chronicle.repeat(heard.count)
        await chronicle.commit()
        if chronicle.incident.state is State.RUNNING_ON and event.action is PanicAction.PAUSE:
            # It was resumed, and the panic stopped it again: a second cont would not help either.
            self._log.warning("ignored guest is stopped by a panic again")
            await self._fall_back(Reason.ACTION_FAILED)

    async def _state_after(self, event: GuestPanickedEvent) -> RunState | None:
        """Return the run state that a panic leaves the guest in; None where QEMU ends."""
        session = self._session
        match event.action:
            case PanicAction.PAUSE if session.run_state.executes:
                return RunState.GUEST_PANICKED
            case PanicAction.PAUSE | PanicAction.RUN:
                return session.run_state
            case _:
                self._acting = True
                ended = await session.observe(lambda: session.ended, self._policy.timeouts.stop)
                self._acting = False
                return None if ended else await session.query_status()

    async def _resumed(self) -> None:
        chronicle = self._domain.chronicle
        if chronicle is not None and chronicle.incident.state is not State.RUNNING_ON:
            await self._close(Ending.FOREIGN_RESUME)

    async def _reset(self, *, by_guest: bool) -> None:
        if self._domain.chronicle is not None:
            await self._close(Ending.GUEST_RESET if by_guest else Ending.FOREIGN_RESET)

    async def _open(
        self, source: Source, information: PanicInformation | None, run_state: RunState | None
    ) -> None:
        services, domain = self._services, self._domain
        opened = Opened(
            at=services.clock(),
            domain=domain.name,
            uuid=domain.uuid,
            monitor=domain.address,
            process=self._session.process,
            source=source,
            information=information,
        )
        domain.chronicle = Chronicle.open(opened, services.journal, services.tally, services.clock)
        await self._decide(run_state)

    def _situation(self, run_state: RunState | None) -> Situation:
        information = self._chronicle.incident.opened.information
        restarts = self._services.tally.restarts(self._domain.key)
        return Situation(run_state, information, restarts)

    async def _decide(self, run_state: RunState | None) -> None:
        situation = self._situation(run_state)
        capability = self._session.capability
        now = self._services.clock()
        decision = decide(self._policy, capability, situation, now=now)
        await self._carry_out(decision, situation)

    async def _fall_back(self, reason: Reason) -> None:
        """Decide what follows a decision that came to nothing."""
        failed = self._chronicle.incident.decision
        assert failed is not None
        capability = self._session.capability
        run_state = None if self._session.ended else self._session.run_state
        if (
            failed.action is Action.RESTART
            and not failed.relaunch
            and not capability.can_reset
            and self._policy.relaunch is not None
        ):
            decision = replace(failed, relaunch=True)
        elif failed.is_fallback and failed.action is Action.PRESERVE:
            await self._settle(State.FAILED)
            return
        else:
            decision = fall_back(self._policy, capability, failed, reason)
        await self._carry_out(decision, self._situation(run_state))

    async def _carry_out(self, decision: Decision, situation: Situation) -> None:
        if self._dump_was_tried():
            decision = replace(decision, coredump=False)
        plan = make_plan(decision, self._policy, self._session.capability, situation)
        self._chronicle.note(Decided(self._services.clock(), plan))
        await self._go_on(0)

    def _dump_was_tried(self) -> bool:
        incident = self._chronicle.incident
        plan = incident.plan
        return plan is not None and any(isinstance(plan.steps[i], Dump) for i in incident.steps)

    async def _go_on(self, index: int) -> None:
        """Carry out the incident's plan from a step on, and whatever follows from its course."""
        course = await self._execute(index)
        match course:
            case Course.COMPLETED:
                await self._conclude()
            case Course.FALL_BACK:
                await self._fall_back(Reason.ACTION_FAILED)
            case Course.PRESERVE:
                await self._fall_back(Reason.DUMP_FAILED)
            case Course.RESET_BY_OTHERS:
                await self._close(Ending.FOREIGN_RESET)
            case Course.RESUMED_BY_OTHERS:
                await self._close(Ending.FOREIGN_RESUME)
            case Course.INTERRUPTED:
                await self._chronicle.commit()
                self._session.monitor.abort()
            case Course.AWAITING_RETURN:
                pass

    async def _execute(self, index: int) -> Course:
        incident = self._chronicle.incident
        assert incident.plan is not None
        environment = {
            "PANICD_DOMAIN": incident.opened.domain,
            "PANICD_UUID": incident.opened.uuid,
            "PANICD_INCIDENT": incident.id,
        }
        executor = Executor(
            self._session, self._chronicle, self._dump, environment, self._note_reaction
        )
        self._acting = True
        try:
            return await executor.run(incident.plan, index)
        finally:
            self._acting = False

    def _note_reaction(self) -> None:
        if self._heard_at is not None:
            self._services.metrics.reaction.observe(trio.current_time() - self._heard_at)
            self._heard_at = None

    async def _dump(self, session: Session, step: Dump) -> FinishedDump:
        metrics, settings = self._services.metrics, self._policy.coredump
        incident = self._chronicle.incident
        async with self._services.dumps:
            metrics.coredumps.inc()
            with metrics.coredumps_in_progress.track_inprogress():
                try:
                    dump = await dump_guest_memory(
                        session, settings, incident.opened.domain, incident.id, step.format
                    )
                except DumpError as error:
                    metrics.coredump_failures.labels(reason=error.failure).inc()
                    raise
        metrics.coredump_bytes.inc(dump.size)
        await trio.to_thread.run_sync(self._retire, dump.path)
        return dump

    def _retire(self, newest: Path) -> None:
        try:
            retired = retire(self._policy.coredump, newest)
        except OSError as error:
            self._log.error("old dumps could not be removed", problem=str(error))
        else:
            if retired:
                self._log.info("old dumps removed", paths=[str(path) for path in retired])

    async def _conclude(self) -> None:
        """End or settle an incident whose plan was completed."""
        match self._chronicle.incident.action:
            case Action.DESTROY:
                await self._close(Ending.DESTROYED)
            case Action.RESTART:
                await self._close(Ending.RESTARTED)
            case Action.PRESERVE:
                await self._settle(State.PRESERVED)
            case Action.IGNORE:
                await self._settle(State.RUNNING_ON)
            case Action.NONE:
                await self._close(Ending.QEMU_EXITED)

    async def _settle(self, state: SettledState) -> None:
        chronicle = self._chronicle
        chronicle.note_repeats()
        chronicle.note(Settled(self._services.clock(), state))
        await chronicle.commit()

    async def _close(self, ending: Ending) -> None:
        chronicle = self._chronicle
        chronicle.note_repeats()
        chronicle.note(Closed(self._services.clock(), ending))
        self._domain.chronicle = None
        await chronicle.commit()

    async def _recover(self, found: Found) -> None:
        """Go on with the domain's open incident as it is found."""
        chronicle = self._chronicle
        recovery = recover(chronicle.incident, found)
        self._log.info(
            "open incident found again",
            incident=chronicle.incident.id,
            state=chronicle.incident.state,
            run_state=found.run_state,
            recovery=type(recovery).__name__,
        )
        match recovery:
            case GoOn(index=index):
                await self._go_on(index)
            case Redecide():
                await self._decide(found.run_state)
            case End(ending=ending):
                await self._close(ending)
            case Stay():
                pass

    async def _see_end(self) -> None:
        """See what the session's end means for an open incident."""
        session = self._session
        if self._domain.chronicle is None or not await self._process_has_ended():
            return
        shutdown = session.seen.shutdown
        by_panic = session.capability.armed is not Armed.YES or (
            shutdown is not None and shutdown.reason == PANIC_SHUTDOWN
        )
        await self._recover(Found(None, True, session.capability.version, by_panic))

    async def _process_has_ended(self) -> bool:
        if not self._session.process_known:
            return False
        with trio.move_on_after(GONE_FOLLOWS):
            await self._session.peer.wait_gone()
        return self._session.peer.gone()

    def _leave(self) -> None:
        """Leave an open incident to wait for its domain."""
        domain = self._domain
        domain.session = None
        if domain.chronicle is not None:
            domain.chronicle.note_repeats()
            self._services.waiting.park(domain.chronicle)
            domain.chronicle = None
