"""One step in the making: the changing state, and the effects so far.

A ``Turn`` lives within one call of ``step``; nothing else sees it change.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Final, Literal, TypeVar

from panicd.rules.incident import (
    AnyEntry,
    Closed,
    Decided,
    Ending,
    Incident,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    Source,
    StepBegun,
    StepEnded,
    StepResult,
    apply,
    own_time_over,
)
from panicd.rules.incident import (
    State as IncidentState,
)
from panicd.rules.machine import effects
from panicd.rules.machine.answers import run_state_of
from panicd.rules.machine.inputs import Asked, Heard, Moment
from panicd.rules.machine.state import Phase, Resting, State
from panicd.rules.machine.vm import Vm
from panicd.rules.on_crash import Action
from panicd.rules.plan import AnyStep, Plan
from panicd.rules.policy import Situation
from panicd.rules.qapi import PanicInformation, RunState

ANSWER_TIMEOUT: Final = 5.0  # seconds; under a flood of panics QEMU was seen to take 1.2
BUSY_TIMEOUT: Final = 2.0  # seconds that an action waits for this answer
REPEATS_EVERY: Final = 1.0  # seconds between two entries about repeated panics
DEFERRED_AT_MOST: Final = 64  # events; a plan's whole course makes fewer than ten

QUERY_STATUS: Final[effects.Command] = ("query-status", ())

P = TypeVar("P", bound=Phase)

SettledState = Literal[
    IncidentState.PRESERVED, IncidentState.RUNNING_ON, IncidentState.FAILED, IncidentState.RESET
]

_VALUES: Final = attrgetter(*State._fields)


class Turn:
    """One step in the making; the attributes are those of ``State``, and may be changed.

    Args:
        state: before the step.
        moment: the facts now.

    Attributes:
        moment: the facts now.
        effects: in order.
        opened: how many incidents the step has begun.
    """

    vm: Vm | None
    incident: Incident | None
    phase: Phase
    serial: int
    alone: bool
    departed: bool
    stale: bool
    unseen: bool
    unbroken: bool
    repeats: int
    repeats_noted_at: float
    put_off: Heard | None
    deferred: tuple[Heard, ...]
    requests: tuple[Asked, ...]
    granting: Asked | None
    base: tuple[int, int]
    let_go: int
    resets_before: int
    has_turn: bool
    crashloaded_in: str
    shutting_in: str
    flood: int
    flood_began: float
    ignored_at: float
    watched: tuple[float, float]

    def __init__(self, state: State, moment: Moment) -> None:
        self.__dict__.update(zip(State._fields, state, strict=True))
        self.moment = moment
        self.effects: list[effects.Effect] = []
        self.opened = 0

    def state(self) -> State:
        """Return the state after the step."""
        return State._make(_VALUES(self))

    # What is known.

    @property
    def known(self) -> Vm:
        """The VM, known by now."""
        assert self.vm is not None
        return self.vm

    @property
    def open(self) -> Incident:
        """The open incident."""
        assert self.incident is not None
        return self.incident

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        assert self.incident is not None
        assert self.incident.plan is not None
        return self.incident.plan

    def step(self, index: int) -> AnyStep:
        """Return a step of the plan in force."""
        return self.plan.steps[index]

    @property
    def guest_was_let_go(self) -> bool:
        """True if anybody has reset or resumed the guest since the plan began."""
        return self.known.times_let_go > self.let_go

    def situation(self, run_state: RunState | None) -> Situation:
        """Return the panicked domain as it stands; ``run_state`` None: QEMU is gone."""
        moment, incident = self.moment, self.open
        return Situation(
            run_state=run_state,
            information=incident.opened.information,
            restarts=moment.restarts,
            held=moment.held,
            storm=moment.storm,
            unrecorded=moment.unrecorded,
            kdump=incident.opened.source is Source.KDUMP,
            own_time=own_time_over(incident),
            flooded=incident.repeats > moment.policy.flood.max,
            reset=incident.state is IncidentState.RESET,
            again=incident.ran_on,
        )

    def learn_status(self, answer: object) -> None:
        """Take the VM's run state from an answer to ``query-status``."""
        self.vm = replace(self.known, run_state=run_state_of(answer))

    # What is noted.

    def note(self, entry: AnyEntry) -> None:
        """Add an entry to the incident.

        Raises:
            IllegalTransitionError: the entry has no place in the incident's state.
        """
        self.incident = apply(self.open, entry)
        self.effects.append(effects.Note(self.incident, entry))

    def open_incident(self, source: Source, information: PanicInformation | None) -> None:
        """Begin an incident."""
        moment = self.moment
        opened = opened_by(moment, self.known.process, source, information)
        self.incident = Incident(new_id(moment.now, moment.token, self.opened), opened)
        self.opened += 1
        self.repeats, self.flood, self.repeats_noted_at = 0, 0, 0.0
        self.effects.append(effects.Note(self.incident, opened))

    def decided(self, plan: Plan) -> None:
        """Note a decision and its plan."""
        self.note(Decided(self.moment.now, plan))

    def begin(self, index: int) -> None:
        """Note that a step begins."""
        self.note(StepBegun(self.moment.now, index))

    def end(self, index: int, result: StepResult) -> None:
        """Note how a step ended."""
        self.note(
            StepEnded(self.moment.now, index, result.outcome, result.detail, result.signature)
        )

    def done(self, index: int, detail: str = "") -> None:
        """Note that a step is done."""
        self.end(index, StepResult(Outcome.DONE, detail))

    def observed(self, what: str) -> None:
        """Note others' doing in the open incident, or in the log."""
        if self.incident is None:
            self.say("info", "seen", what=what)
            return
        self.note(Observed(self.moment.now, what))
        self.commit()

    def repeat(self, count: int) -> None:
        """Count more panics; one note in ``REPEATS_EVERY`` seconds has them all."""
        self.repeats += count
        if not 0 <= self.moment.now - self.repeats_noted_at < REPEATS_EVERY:
            self.note_repeats()

    def note_repeats(self) -> None:
        """Note the panics counted since the last note."""
        if self.repeats:
            count, self.repeats = self.repeats, 0
            self.repeats_noted_at = self.moment.now
            self.note(Repeated(self.repeats_noted_at, count))

    def settle(self, state: SettledState) -> None:
        """Leave the incident open as it is."""
        self.note_repeats()
        self.note(Settled(self.moment.now, state))
        self.commit()
        self.rest()

    def close(self, ending: Ending, detail: str = "") -> None:
        """Close the incident."""
        self.note_repeats()
        self.note(Closed(self.moment.now, ending, detail))
        self.commit()
        self.incident = None
        self.rest()

    # Effects.

    def emit(self, effect: effects.Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def say(self, level: str, text: str, **facts: object) -> None:
        """Write a line to the log."""
        self.effects.append(effects.Say(level, text, tuple(facts.items())))

    def enter(self, phase: P) -> P:
        """Enter a phase; answers to the last phase count no more."""
        self.phase = phase
        self.serial += 1
        return phase

    def update(self, phase: P, **changes: object) -> P:
        """Change attributes of the phase; its answers still count."""
        changed = replace(phase, **changes)  # type: ignore[arg-type]  # they are the phase's own
        self.phase = changed
        return changed

    def commit(self) -> None:
        """Have all notes made durable."""
        self.effects.append(effects.Commit(self.serial))

    def wake(self, seconds: float) -> None:
        """Have ``Elapsed`` come after some seconds."""
        self.effects.append(effects.Wake(self.serial, seconds))

    def send(
        self, commands: Iterable[effects.Command], timeout: float, *, acts: bool = False
    ) -> None:
        """Give QEMU commands."""
        self.effects.append(effects.Send(self.serial, tuple(commands), timeout, acts))

    def tell_libvirt(self, verb: str, timeout: float) -> None:
        """Have libvirt act on the domain, if its guest's stand is as known."""
        self.emit(effects.TellLibvirt(self.serial, verb, self.known.stand, timeout))

    def rest(self) -> None:
        """Enter ``Resting``: nothing is under way."""
        if self.has_turn:
            self.has_turn = False
            self.effects.append(effects.LeaveTurn())
        if self.granting is not None:
            self.answer("")
        self.enter(Resting())

    def answer(self, refused: str) -> None:
        """Tell the operator the result of the request under way."""
        assert self.granting is not None
        self.effects.append(effects.Answer(self.granting.request, refused))
        self.granting = None

    def action_is(self, *actions: Action) -> bool:
        """True if one of these is the action in force."""
        return self.open.action in actions


def opened_by(
    moment: Moment, process: str, source: Source, information: PanicInformation | None
) -> Opened:
    """Return the entry that opens an incident.

    Args:
        moment: when, and of which domain.
        process: identifies the QEMU process.
        source: how the panic became known.
        information: the panic's payload.
    """
    return Opened(
        at=moment.now,
        domain=moment.name,
        uuid=moment.claim.uuid,
        monitor=moment.monitor,
        process=process,
        source=source,
        information=information,
        key=moment.key,
        name=moment.claim.name,
    )


def new_id(at: float, token: str, before: int = 0) -> str:
    """Return the id of an incident: it sorts by time and is a safe file name.

    Args:
        at: the incident's start, in seconds since the epoch.
        token: letters and digits, unique within that second.
        before: how many incidents began with the same token before: there are several if events
            came while an answer was due.
    """
    if before:
        token = hashlib.blake2s(f"{token}-{before}".encode(), digest_size=4).hexdigest()
    return f"{_written(math.floor(at))}-{token}"


@lru_cache(2)
def _written(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y%m%dT%H%M%S}"
