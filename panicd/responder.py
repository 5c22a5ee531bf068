"""What panicd does about one domain's panic: decide, make it durable, carry it out, conclude."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Literal

import trio

from panicd.chronicle import REPEATS_EVERY, Chronicle
from panicd.enforcing import stop_again
from panicd.evidence import EvidenceKeeper
from panicd.executor import AFTER_FAILURE, UNNOTED, Course, Executor, Record
from panicd.fleet import Domain
from panicd.host.journal import JournalError
from panicd.host.logs import get_logger
from panicd.qemu.event_buffer import Heard
from panicd.qemu.session import Session
from panicd.relaunch import relaunch_environment
from panicd.rules.capability import PanicSetting
from panicd.rules.incident import (
    Asked,
    Closed,
    Decided,
    Ending,
    Opened,
    Outcome,
    Settled,
    Source,
    State,
    StepResult,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.operation import Operation
from panicd.rules.plan import Dump, OnFailure, Plan, SystemReset, make_plan
from panicd.rules.policy import (
    DESTRUCTIVE,
    Decision,
    Reason,
    Situation,
    decide,
    decide_for_operator,
    end_flood,
    fall_back,
    ignore_again,
    panic_setting,
)
from panicd.rules.qapi import PanicInformation, RunState
from panicd.rules.recovery import End, Found, GiveUp, GoOn, Redecide, Stay, recover
from panicd.rules.settings import Policy
from panicd.services import Services
from panicd.sight import Sight
from panicd.situation import Whose, situation_of

_TO_STAY_STOPPED: Final = {Action.PRESERVE, Action.DESTROY, Action.RESTART}

SettledState = Literal[State.PRESERVED, State.RUNNING_ON, State.FAILED, State.RESET]


class Responder:
    """Responds to the panics of one connected domain, one incident at a time.

    Args:
        services: what it uses.
        domain: which it is.
        session: its connection.

    Attributes:
        acting: a plan is being carried out, or was until a step whose end is not known; what
            happens meanwhile is not somebody else's doing.
        heard_at: when the panic that is not yet reacted to was read, on trio's clock.
        next_panic: of a guest that somebody let run during a plan: its turn comes after that.
    """

    def __init__(self, services: Services, domain: Domain, session: Session) -> None:
        self._services = services
        self._domain = domain
        self._session = session
        self.acting = False
        self.heard_at: float | None = None
        self.next_panic: Heard | None = None
        self._let_go_before = 0
        self._ignored_at = -math.inf
        self._sight = Sight(session)
        self._evidence = EvidenceKeeper(services, domain)

    @property
    def guest_was_let_go(self) -> bool:
        """Whether anybody has reset the guest or let it run since the plan was begun with."""
        return self._times_let_go > self._let_go_before

    @property
    def _times_let_go(self) -> int:
        return self._resets + self._session.seen.resumes

    @property
    def _resets(self) -> int:
        return self._session.seen.resets

    @property
    def _chronicle(self) -> Chronicle:
        assert self._domain.chronicle is not None
        return self._domain.chronicle

    @property
    def _policy(self) -> Policy:
        assert self._domain.policy is not None
        return self._domain.policy

    @property
    def _now(self) -> float:
        return self._services.keeping.clock()

    async def open(
        self, source: Source, information: PanicInformation | None, run_state: RunState | None
    ) -> None:
        """Open an incident and respond to it.

        Args:
            source: how the panic became known.
            information: its payload.
            run_state: the state that it leaves the guest in; None: QEMU ends.

        Raises:
            MonitorError: the monitor failed.
            JournalError: the incident can't be recorded, and is not to be responded to without.
        """
        with self._services.way.go_first():
            await self._open(source, information, run_state)

    async def _open(
        self, source: Source, information: PanicInformation | None, run_state: RunState | None
    ) -> None:
        domain = self._domain
        opened = Opened(
            at=self._now,
            domain=domain.name,
            uuid=domain.uuid,
            monitor=domain.address,
            process=self._session.process,
            source=source,
            information=information,
            key=domain.key,
            name=domain.claim.name,
        )
        found = Found(run_state, True, self._session.capability.behaves_like)
        self._sight.begin(found if source is Source.RECONCILIATION else None)
        self._services.storm.note(domain.key, opened.at)
        domain.chronicle = Chronicle.open(opened, self._services.keeping)
        await self.decide(run_state)

    async def decide(self, run_state: RunState | None, own_time: Reason | None = None) -> None:
        """Decide about the open incident and carry the decision out.

        Args:
            run_state: the state that the guest is in; None: QEMU is gone.
            own_time: why it gets no time of its own; None: as the incident tells.
        """
        situation = self._situation(run_state)
        situation = replace(situation, own_time=own_time or situation.own_time)
        decision = decide(self._policy, self._session.capability, situation, now=self._now)
        await self._carry_out(decision, situation)

    @property
    def panic_setting(self) -> PanicSetting:
        """What a panic is to do to the guest now."""
        chronicle = self._domain.chronicle
        decision = chronicle.incident.decision if chronicle else None
        return panic_setting(self._policy, self._session.capability, decision)

    async def end_watch(self, why: str) -> None:
        """Apply the policy to a guest that did not come to a reset by itself.

        Nothing is done to one that runs and that was not watched all the time: it may have reset
        itself unseen, and be healthy.
        """
        session, chronicle = self._session, self._chronicle
        run_state = await session.query_status()
        index = chronicle.incident.step_in_progress
        assert index is not None, "it is watched"
        proven = self._sight.is_unbroken or run_state is RunState.GUEST_PANICKED
        unproven = (
            "; panicd did not see all that happened meanwhile, and it may have reset itself unseen"
        )
        chronicle.end(index, StepResult(Outcome.FAILED, why if proven else why + unproven))
        if proven:
            await self.decide(run_state)
        else:
            await self._settle(State.FAILED)

    async def fall_back(self, reason: Reason) -> None:
        """Decide what follows a decision that came to nothing, and carry that out."""
        failed = self._chronicle.incident.decision
        assert failed is not None
        capability = self._session.capability
        gone = self._session.has_gone()
        situation = self._situation(None if gone else self._session.run_state)
        if (
            failed.action is Action.RESTART
            and not failed.relaunch
            and not capability.can_reset
            and self._policy.relaunch is not None
        ):
            decision = replace(failed, relaunch=True)
        elif gone or (failed.is_fallback and failed.action is Action.PRESERVE):
            await self._settle(State.FAILED)
            return
        else:
            decision = fall_back(self._policy, capability, situation, failed, reason, now=self._now)
        await self._carry_out(decision, situation)

    async def ignore_again(self, run_state: RunState) -> None:
        """Let a guest run again whose panic was ignored, and that a panic has stopped.

        That is noted once in ``REPEATS_EVERY`` seconds, like the panics themselves: in between the
        decision that is on record stands for those after it.
        """
        situation, ignored = self._situation(run_state), self._chronicle.incident.decision
        assert ignored is not None
        capability, now = self._session.capability, self._now
        decision = ignore_again(self._policy, capability, situation, ignored, now=now)
        with self._services.way.go_first():
            if decision != ignored or now - self._ignored_at >= REPEATS_EVERY:
                self._ignored_at = now
                await self._carry_out(decision, situation)
                return
            plan, resets = make_plan(decision, self._policy, capability, situation), self._resets
            if (course := await self._execute(plan, 0, UNNOTED)) is not Course.COMPLETED:
                await self._follow(course, resets)

    async def end_flood(self) -> bool:
        """Stop a guest whose ignored panics are too many, if nobody holds it; return whether so."""
        self._chronicle.note_repeats()
        situation = self._situation(self._session.run_state)
        ignored = self._chronicle.incident.decision
        assert ignored is not None
        if not situation.held:
            await self._carry_out(end_flood(ignored), situation)
        return not situation.held

    async def obey(self, operation: Operation, action: OnCrash | None) -> None:
        """Carry out what an operator asks.

        Args:
            operation: who asks, and why.
            action: what to do; None: let the guest run as it is.

        Raises:
            ImpossibleError: it can't be done; nothing was.
        """
        situation = self._situation(await self._session.status_or_last())
        capability = self._session.capability
        decision = decide_for_operator(self._policy, capability, situation, action)
        what = f"{operation.kind} {operation.detail}".strip()
        self._chronicle.note(Asked(operation.at, operation.uid, what, operation.why))
        await self._carry_out(decision, situation)

    async def recover(self, found: Found) -> None:
        """Go on with the domain's open incident as it is found."""
        self.acting = False
        self._sight.begin(found)
        chronicle = self._chronicle
        recovery = recover(chronicle.incident, found)
        get_logger(domain=self._domain.name, incident=chronicle.incident.id).info(
            "open incident found again",
            state=chronicle.incident.state,
            run_state=found.run_state,
            recovery=type(recovery).__name__,
        )
        match recovery:
            case GoOn() | GiveUp() if self._services.dry_run:
                pass
            case GoOn(index=index):
                await self._go_on(index)
            case GiveUp(index=index):
                await self._give_up(index)
            case Redecide():
                await self.decide(found.run_state)
            case End(ending=Ending.FOREIGN_RESET):
                await self.reset_by_others()
            case End(ending=ending):
                unfinished = chronicle.incident.step_in_progress
                if ending is Ending.RELAUNCHED and unfinished is not None:
                    chronicle.end(unfinished, StepResult(Outcome.DONE))
                await self.close(ending)
            case Stay():
                pass

    async def reset_by_others(self) -> None:
        """Take note that somebody else has reset the guest: its panic is over when it runs again.

        Raises:
            MonitorError: QEMU did not say how it stands.
        """
        run_state = await self._session.query_status()
        if run_state.executes or run_state is RunState.POSTMIGRATE:
            await self.close(Ending.FOREIGN_RESET)
        elif self._chronicle.incident.state is not State.RESET:
            index = self._chronicle.incident.step_in_progress
            if index is not None:
                self._chronicle.end(index, StepResult(Outcome.UNKNOWN, "somebody reset the guest"))
            await self._settle(State.RESET)

    async def close(self, ending: Ending, detail: str = "") -> None:
        """Close the open incident."""
        chronicle = self._chronicle
        chronicle.note_repeats()
        chronicle.note(Closed(self._now, ending, detail))
        self._domain.chronicle = None
        try:
            await chronicle.commit()
        except JournalError:  # its end is still to be written, whatever becomes of the domain
            self._services.waiting.park(chronicle)
            raise
        if not chronicle.is_written:  # it was acted on without the journal; nothing is noted next
            self._services.waiting.hand_over(chronicle)

    def _situation(self, run_state: RunState | None) -> Situation:
        whose = Whose(self._domain.key, self._domain.names, self._domain.owner)
        return situation_of(self._services, self._chronicle, self._policy, run_state, whose)

    async def _carry_out(self, decision: Decision, situation: Situation) -> None:
        if self._chronicle.incident.has_begun(Dump):
            decision = replace(decision, coredump=False)
        plan = make_plan(decision, self._policy, self._session.capability, situation)
        self._chronicle.note(Decided(self._now, plan))
        if self._services.dry_run:
            await self._settle(State.PRESERVED)
            return
        if decision.action is Action.GRACE or self._session.runs_on_panic:
            await self._session.set_panic_action(self.panic_setting)
        await self._go_on(0)

    async def _go_on(self, index: int) -> None:
        """Carry out the incident's plan from a step on, and whatever follows from its course."""
        resets = self._resets
        async with self._turn():
            assert self._chronicle.incident.plan is not None
            course = await self._execute(self._chronicle.incident.plan, index, self._chronicle)
        await self._follow(course, resets)

    async def _give_up(self, index: int) -> None:
        """Take a step for failed, and do what follows that."""
        step = self._chronicle.give_up(index)
        if step.on_failure is OnFailure.CONTINUE:
            await self._go_on(index + 1)
        else:
            await self._follow(AFTER_FAILURE[step.on_failure], self._resets)

    async def _follow(self, course: Course, resets: int) -> None:
        """Do what follows from a plan's course; ``resets`` were seen before it was gone on with."""
        match course:
            case Course.WATCHING if self._resets > resets:  # while it was let run
                await self.close(Ending.GUEST_RESET)
            case Course.WATCHING:
                until = self._chronicle.incident.watched_until
                log = get_logger(domain=self._domain.name, incident=self._chronicle.incident.id)
                log.info("guest is left to itself", until=until)
            case Course.FALL_BACK if self._chronicle.incident.action is Action.GRACE:
                await self.decide(await self._session.query_status(), Reason.NO_GRACE)
            case Course.COMPLETED:
                await self._conclude()
            case Course.FALL_BACK:
                await self.fall_back(Reason.ACTION_FAILED)
            case Course.PRESERVE:
                await self.fall_back(Reason.DUMP_FAILED)
            case Course.RESET_BY_OTHERS:
                await self.reset_by_others()
            case Course.RESUMED_BY_OTHERS:
                await self._resumed_meanwhile()
            case Course.INTERRUPTED:
                # What is still heard on this session may be what panicd itself did: it is not taken
                # for somebody else's, the VM is asked on the next one.
                self.acting = True
                await self._chronicle.commit()
                self._session.monitor.abort()
            case Course.AWAITING_RETURN:
                pass

    async def _resumed_meanwhile(self) -> None:
        """Go on with the plan that somebody's resuming the guest ended, where that is enforced.

        One that panicd has reset is no panicked guest any more, and one that was to run may.
        """
        incident = self._chronicle.incident
        plan, index = incident.plan, max(incident.steps)
        assert plan is not None
        reset = any(isinstance(plan.steps[i], SystemReset) for i in incident.steps if i < index)
        if reset or incident.action not in _TO_STAY_STOPPED:
            await self.close(Ending.FOREIGN_RESUME)
        elif await self.stop_again():
            outcome = incident.steps[index].outcome
            if outcome is Outcome.FAILED and plan.steps[index].on_failure is OnFailure.PRESERVE:
                await self.fall_back(Reason.DUMP_FAILED)
            else:
                await self._go_on(index if outcome is Outcome.SKIPPED else index + 1)

    async def stop_again(self) -> bool:
        """Stop the guest that somebody else resumed, or end its incident.

        Returns:
            Whether it is stopped, and its incident open.
        """
        ending: Ending | None = Ending.FOREIGN_RESUME
        if self._policy.enforce:
            self.acting = True
            try:
                ending = await stop_again(self._session, self._chronicle)
            finally:
                self.acting = False
        if ending is None:
            self.repeat_next_panic()
        elif ending is Ending.FOREIGN_RESET:
            await self.reset_by_others()
        else:
            await self.close(ending)
        return ending is None

    def put_off(self, panic: Heard) -> None:
        """Keep a panic for later, beside those that are kept already."""
        before = self.next_panic.count if self.next_panic is not None else 0
        self.next_panic = replace(self.next_panic or panic, count=before + panic.count)

    def repeat_next_panic(self) -> None:
        """Count the panic that was put off as one more of the open incident, and no more."""
        if self.next_panic is not None:
            self._chronicle.repeat(self.next_panic.count)
            self.next_panic = None

    def take_next_panic(self) -> Heard | None:
        """Return the panic that was put off, if its turn has come."""
        if self.acting:
            return None
        panic, self.next_panic = self.next_panic, None
        return panic

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for this domain's turn, where few may be acted on at a time."""
        destructive = self._chronicle.incident.action in DESTRUCTIVE
        turn = self._services.storm.turn(self._domain.owner, self._now) if destructive else None
        if turn is None:
            yield
            return
        await self._chronicle.commit()
        async with turn:
            yield

    async def _execute(self, plan: Plan, index: int, record: Record) -> Course:
        executor = Executor(
            self._session,
            record,
            make_dump=self._evidence.dump,
            take_evidence=self._evidence.take,
            environment=relaunch_environment(self._chronicle.incident),
            libvirt=self._services.libvirt,
            on_command=self._note_reaction,
        )
        self.acting = True
        self._let_go_before = self._times_let_go
        try:
            return await executor.run(plan, index)
        finally:
            self.acting = False

    def _note_reaction(self) -> None:
        if self.heard_at is not None:
            self._services.metrics.reaction.observe(trio.current_time() - self.heard_at)
            self.heard_at = None

    async def _conclude(self) -> None:
        """End or settle an incident whose plan was completed."""
        match self._chronicle.incident.action:
            case Action.DESTROY:
                await self.close(Ending.DESTROYED)
            case Action.RESTART:
                await self.close(Ending.RESTARTED)
            case Action.RELEASE:
                await self.close(Ending.RELEASED)
            case Action.PRESERVE:
                await self._settle(State.PRESERVED)
            case Action.IGNORE:
                await self._settle(State.RUNNING_ON)
            case Action.GRACE:
                raise AssertionError("its plan's last step is the guest's to end")
            case Action.NONE:
                await self.close(Ending.QEMU_EXITED)

    async def _settle(self, state: SettledState) -> None:
        chronicle = self._chronicle
        chronicle.note_repeats()
        chronicle.note(Settled(self._now, state))
        await chronicle.commit()
