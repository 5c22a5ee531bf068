"""Drives one domain's machine: gives it inputs, and carries out its effects.

The driver decides nothing: ``rules.machine`` does. The driver deals with an input at once and
synchronously, in the same turn of the event loop: with an event or answer when it is read, with a
commit when it is done.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Final, assert_never

import trio
from structlog.typing import FilteringBoundLogger

from panicd.host.logs import get_logger
from panicd.host.timers import Alarm, Timer
from panicd.incident.domains import Domain
from panicd.incident.errands import Errands
from panicd.incident.gathering import Gathering
from panicd.incident.liveness import Liveness
from panicd.incident.moment import moment_of
from panicd.incident.outcome import answer_of, commands_of
from panicd.incident.policy_in_force import tell_policy
from panicd.incident.precedence import Precedence
from panicd.incident.reaction import Foresight, Reaction, follows_command
from panicd.incident.request import Request
from panicd.incident.services import Services
from panicd.journal.chronicle import Chronicle
from panicd.journal.journal import JournalError
from panicd.qemu.event_outlet import Heard as HeardAt
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from panicd.qemu.tokens import Tokens, hexadecimal
from panicd.rules.incident import Closed, Opened, Settled
from panicd.rules.incident import State as IncidentState
from panicd.rules.machine import State, effects, step
from panicd.rules.machine.ahead import as_foreseen
from panicd.rules.machine.inputs import (
    Adopted,
    Answered,
    Asked,
    Attached,
    Durable,
    Elapsed,
    Heard,
    Input,
    LookAgain,
    Lost,
    Moment,
    Plight,
    Reconsider,
    Stopping,
    TurnCame,
    Undurable,
)
from panicd.rules.machine.state import Begun, Left, Resting
from panicd.rules.qapi import GuestPanickedEvent
from panicd.rules.settings import JournalFailure

_TOKENS: Final = Tokens(hexadecimal)
SETTLED: Final = frozenset({IncidentState.PRESERVED, IncidentState.FAILED, IncidentState.RESET})
LOST: Final = "the domain's monitor was lost"


class Driver:
    """Drives the machine of one domain, or of an incident without a connection.

    Args:
        services: shared by all domains.
        domain: the domain; an incident without a connection gets one of its own.
        peer: the process that gets signals, if there is one.
    """

    def __init__(self, services: Services, domain: Domain, peer: Peer | None) -> None:
        self._services = services
        self._domain = domain
        self._peer = peer
        self._session: Session | None = None
        self._state = State()
        self._inbox: deque[Input] = deque()
        self._is_busy = False
        self._bug: BaseException | None = None
        self._left = trio.Event()
        self._problem = ""
        self._nursery: trio.Nursery
        self._alarm = Alarm(services.timers)
        self._turn = trio.CancelScope()
        self._requests: dict[int, Request] = {}
        self._latest: Chronicle | None = None  # the last one with a new entry
        self._heard_at = math.inf
        self._precedence = Precedence(services.priority, services.rush)
        self._watches = False
        self._liveness: Liveness | None = None
        self._gathering = Gathering(services.timers, services.metrics)
        self._token = _TOKENS.next()
        self._numbers = count(1)
        self._errands = Errands(services, domain, peer)
        self._foresight = Foresight()
        self._reaction: Reaction | None = None  # its inputs have not reached the machine yet

    # Public operations.

    async def look_after(self, session: Session) -> str:
        """Look after a connected domain until its session ends.

        Returns:
            Why the session ended.

        Raises:
            JournalError: earlier entries can't be written.
        """
        services, domain = self._services, self._domain
        self._session = self._errands.session = session
        domain.chronicle = None
        services.fleet.attach(domain, session)
        try:
            await self._errands.claim_incident()
            lost = await self._errands.what_was_lost()
            gone = await self._errands.evidence_is_lost()
            async with trio.open_nursery() as self._nursery:
                self._look_up_policy()
                incident = domain.chronicle.incident if domain.chronicle is not None else None
                self._liveness = Liveness(
                    services, domain, session, self._is_idle, lambda: self.feed(LookAgain())
                )
                heard = *self._heard_before(session), *lost
                self.feed(Attached(session.vm, incident, heard, gone))
                session.listen(self._heard, partial(self.feed, Lost()))
                services.rush.after_attaching(self._foresee)
                await self._until_left()
        finally:
            self._leave()
        return self._problem or str(self._errands.cause)

    async def adopt(self, chronicle: Chronicle, plight: Plight) -> None:
        """Take up an incident without a connection, while it has work.

        Raises:
            JournalError: an entry can't be recorded.
        """
        self._domain.chronicle = chronicle
        async with trio.open_nursery() as self._nursery:
            self._look_up_policy()
            self.feed(Adopted(chronicle.incident, plight))
            await self._until_left()
        await chronicle.commit()
        if self._problem:
            raise JournalError(self._problem)

    def reload(self) -> None:
        """Have policy and holds looked up anew."""
        self._look_up_policy()
        self.feed(Reconsider())

    def ask(self, request: Request) -> None:
        """Have a request granted or refused, after the events heard so far."""
        if isinstance(self._state.phase, Left | Begun):
            request.refuse(LOST)
            return
        number = next(self._numbers)
        self._requests[number] = request
        self.feed(Asked(number, request.operation, request.action))

    # Inputs.

    def feed(self, came: Input) -> None:
        """Give the machine an input, and carry out its effects; one input at a time."""
        self._gathering.tell_more(self.feed)  # the gathered panics came before
        if self._reaction is not None and self._guard(self._reaction.takes, came):
            return
        self._inbox.append(came)
        if not self._may_wait(came):
            self._go_on()

    def _may_wait(self, came: Input) -> bool:
        """Tell whether an input waits for other domains' first commands: this one has its own."""
        if self._reaction is not None:
            return self._reaction.may_wait(came)
        if isinstance(came, Elapsed) and came.serial != self._state.serial:
            return True  # the machine will drop it
        return follows_command(came) and self._precedence.put_off(self._go_on)

    def _go_on(self) -> None:
        if not self._is_busy and self._bug is None:
            self._is_busy = True
            self._guard(self._take_all)
            self._is_busy = False

    def _guard(self, call: Callable[..., bool | None], *came: object) -> bool:
        """Call something, and keep its bug from the caller, which is not to blame."""
        try:
            return bool(call(*came))
        except BaseException as bug:  # noqa: BLE001 - ``_until_left`` raises it
            self._bug = bug
            self._left.set()
            return True

    def _take_all(self) -> None:
        if self._reaction is not None:
            self._catch_up(self._reaction)
        while self._inbox:
            self._take(self._inbox.popleft())
        self._services.keeping.journal.stand_aside()

    def _take(self, came: Input) -> None:
        for effect in self._step(came, self._moment()):
            self._carry_out(effect)

    def _step(self, came: Input, moment: Moment) -> tuple[effects.Effect, ...]:
        self._state, made = step(self._state, came, moment)
        if self._session is not None and self._state.vm is not None:
            self._session.vm = self._state.vm
        return made

    def _moment(self) -> Moment:
        return moment_of(self._services, self._domain, self._token)

    def _heard(self, heard: HeardAt) -> None:
        came, reaction = Heard(heard.event, heard.count), self._reaction
        if reaction is not None and self._guard(reaction.takes, came):
            self._gathering.heard(came.event)
            return
        if reaction is not None and not reaction.may_wait(came):
            self._go_on()  # so that the incident's state is known
        if self._state.incident is not None and self._gathering.takes(came, self.feed):
            return
        is_panic = isinstance(came.event, GuestPanickedEvent)
        if is_panic and self._heard_at == math.inf and isinstance(self._state.phase, Resting):
            self._heard_at = heard.at
        if not (is_panic and self._guard(self._react, came)):
            self.feed(came)
        self._gathering.heard(came.event)

    def _foresee(self) -> None:
        """Have a panic's text ready before it comes; else it is made when the panic comes."""
        vm = self._state.vm
        if vm is not None and self._bug is None and self._domain.session is self._session:
            self._guard(lambda: bool(self._foresight.of(self._moment(), vm.capability, vm.process)))

    def _react(self, panic: Heard) -> bool:
        """Begin a foreseen reaction to a panic; return False if none is foreseen."""
        session, vm = self._session, self._state.vm
        if session is None or vm is None or self._is_busy or self._bug is not None:
            return False
        moment = self._moment()
        is_foreseen = as_foreseen(self._state, panic, moment)
        foreseen = is_foreseen and self._foresight.of(moment, vm.capability, vm.process)
        if not foreseen:
            return False
        self._opens(moment.now)
        reaction = Reaction(self._services, foreseen, panic, moment, self._state.serial)
        self._reaction = reaction
        self._domain.chronicle = self._latest = reaction.chronicle
        reaction.begin(self._carry_out, self._go_on, self.feed)
        return True

    def _catch_up(self, reaction: Reaction) -> None:
        """Give the machine the reaction's inputs, and check its effects."""
        self._reaction = None
        for came, moment in reaction.catch_up():
            for effect in self._step(came, moment):
                if isinstance(effect, effects.Note) or not reaction.has_done(effect):
                    self._carry_out(effect)

    # Effects.

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Note():
                self._note(effect)
            case effects.Send(serial=serial):
                self._act(effect.acts)
                self._send(effect)
            case effects.Commit(serial=serial):
                self._commit(serial)
            case effects.Wake(serial=serial, seconds=seconds):
                self._alarm.set(seconds, partial(self.feed, Elapsed(serial)))
            case effects.Collect():
                self._collect(effect)
            case effects.MakeDump():
                self._act(True)
                self._run(self._errands.dump(effect))
            case effects.Relaunch():
                self._act(True)
                self._run(self._errands.relaunch(effect))
            case effects.SendSignal():
                self._act(True)
                self.feed(self._errands.signal(effect))
            case effects.WatchProcess():
                self._watch_process()
            case effects.TellLibvirt():
                self._act(True)
                self._run(self._errands.tell_libvirt(effect))
            case effects.TakeTurn(serial=serial):
                self._turn = trio.CancelScope()
                came = partial(self.feed, TurnCame(serial))
                self._nursery.start_soon(self._errands.take_turn, came, self._turn)
            case effects.LeaveTurn():
                self._turn.cancel()
            case effects.Abort():
                assert self._session is not None
                self._session.monitor.abort()
            case effects.FindCause():
                self._run(self._errands.find_cause())
            case effects.PolicyInForce():
                assert self._state.vm is not None
                tell_policy(self._log, self._domain, self._state.vm.capability)
            case effects.Answer(request=number, refused=refused):
                self._answer(self._requests.pop(number), refused)
            case effects.Say(level=level, text=text, facts=facts):
                getattr(self._log, level)(text, **dict(facts))
            case effects.Leave(problem=problem):
                self._problem = problem
                self._left.set()
            case _:
                assert_never(effect)

    def _collect(self, effect: effects.Collect) -> None:
        if effect.follows is not None and self._reaction is None:  # that is counted already
            self._precedence.await_command()
        if rest := self._errands.collect(effect, self.feed):
            self._nursery.start_soon(lambda: rest)

    def _run(self, errand: Awaitable[Input]) -> None:
        async def run() -> None:
            self.feed(await errand)

        self._nursery.start_soon(run)

    def _note(self, note: effects.Note) -> None:
        domain, entry = self._domain, note.entry
        if isinstance(entry, Opened) and domain.chronicle is None:
            self._opens(entry.at)
            domain.chronicle = self._latest = Chronicle.open(note.after, self._services.keeping)
            return
        chronicle = self._latest = domain.chronicle
        assert chronicle is not None
        chronicle.take(note.after, entry)
        if isinstance(entry, Settled | Closed):
            self._precedence.end()
            self._heard_at = math.inf
        if isinstance(entry, Closed):
            domain.chronicle = None
            chronicle.commit_soon(lambda problem: self._closed(chronicle, problem))

    def _opens(self, at: float) -> None:
        """Apply an incident's start to the host: priority, storm."""
        self._precedence.begin()
        self._services.storm.note(self._domain.key, at)
        self._token = _TOKENS.next()

    def _answer(self, request: Request, refused: str) -> None:
        """Tell an operator a request's result, once it is on the disk."""

        def written(problem: JournalError | None) -> None:
            acts = self._services.keeping.journal_failure() is JournalFailure.ACT
            lost = f"it is not known whether it was done: {problem}"
            request.refuse("" if problem is None or acts else lost)

        if refused or self._latest is None:
            request.refuse(refused)
        else:
            self._latest.commit_soon(written)

    def _closed(self, chronicle: Chronicle, problem: JournalError | None) -> None:
        """Have an incident's end written, even if its domain is gone."""
        if problem is not None:
            if self._session is not None:  # else ``adoption`` does
                self._services.waiting.hand_over(chronicle)
            self.feed(Undurable(0, str(problem)))

    def _commit(self, serial: int) -> None:
        def done(problem: JournalError | None) -> None:
            self.feed(Durable(serial) if problem is None else Undurable(serial, str(problem)))

        if self._domain.chronicle is not None:
            self._domain.chronicle.commit_soon(done)

    def _act(self, acts: bool) -> None:
        if acts:
            self._precedence.given()
        if acts and self._heard_at != math.inf:
            took = trio.current_time() - self._heard_at
            self._services.metrics.reaction.observe(took)
            self._heard_at = math.inf

    def _send(self, send: effects.Send) -> None:
        assert self._session is not None
        limit: Timer | None = None

        def done(answers: list[object]) -> None:
            if limit is not None:
                limit.cancel()
            self.feed(Answered(send.serial, tuple(map(answer_of, answers))))

        commands = commands_of(send.commands)
        question = self._session.monitor.ask(commands, done, timeout=send.timeout)
        if not question.is_over:
            limit = self._services.timers.after(send.timeout, question.give_up)

    def _watch_process(self) -> None:
        known = self._peer is not None and bool(self._state.vm and self._state.vm.process)
        if known and not self._watches:
            self._watches = True
            self._run(self._errands.await_gone())

    # Beginning and end.

    @property
    def _log(self) -> FilteringBoundLogger:
        chronicle = self._domain.chronicle
        incident = {"incident": chronicle.incident.id} if chronicle is not None else {}
        return get_logger(domain=self._domain.name, **incident)

    def _is_idle(self) -> bool:
        """True if panicd asks nothing of QEMU for long, so that liveness asks."""
        incident = self._state.incident
        return isinstance(self._state.phase, Resting) and (
            incident is None or incident.state in SETTLED
        )

    def _look_up_policy(self) -> None:
        domain = self._domain
        domain.policy = self._services.policy_for(domain.claim, domain.address)
        if self._session is not None:
            self._session.monitor.pace.share = domain.policy.flood.share

    def _heard_before(self, session: Session) -> list[Heard]:
        """Take the events that came while the session began."""
        kept = session.monitor.events.take_kept()
        panics = (each.at for each in kept if isinstance(each.event, GuestPanickedEvent))
        self._heard_at = next(panics, math.inf)
        return [Heard(each.event, each.count) for each in kept]

    async def _until_left(self) -> None:
        try:
            await self._left.wait()
        finally:
            self.feed(Stopping())
            self._nursery.cancel_scope.cancel()
            self._alarm.stop()
            if self._bug is not None:
                raise self._bug

    def _leave(self) -> None:
        """Leave an open incident to wait for its domain."""
        domain = self._domain
        self._services.fleet.detach(domain)
        self._precedence.end()
        if self._liveness is not None:
            self._liveness.stop()
            self._liveness = None  # it breaks a reference cycle
        if self._session is not None:
            self._session.leave()
        for request in self._requests.values():
            request.refuse(LOST)
        if domain.chronicle is not None:
            self._services.waiting.park(domain.chronicle)
            domain.chronicle = None
