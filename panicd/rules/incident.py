"""An incident: one panic episode of one domain, from the panic to its end.

An incident is the fold of its journal entries. Only ``apply`` changes an incident. It first looks
each entry up in the state table, and raises an error if the table has no place for the entry.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal, assert_never

from panicd.rules.on_crash import Action
from panicd.rules.payload import payload_line
from panicd.rules.plan import AnyStep, AwaitGuestReset, Collect, Dump, Plan
from panicd.rules.policy import Decision, Reason
from panicd.rules.qapi import PanicInformation
from panicd.rules.signature import Signature, signature_of_payload


class State(StrEnum):
    """Where an incident stands."""

    DETECTED = "detected"  # the panic is known, nothing is decided
    DECIDED = "decided"  # decision and plan are durable, no step has begun
    ACTING = "acting"  # a step has begun
    PRESERVED = "preserved"  # the guest stays as it is until somebody ends the incident
    RUNNING_ON = "running-on"  # ignored: the guest runs on and may panic again
    FAILED = "failed"  # neither the policy nor its fallback could be carried out
    RESET = "reset"  # somebody else reset the guest, and has not let it run
    CLOSED = "closed"


class Mark(StrEnum):
    """What an entry does to the state."""

    DECIDED = "decided"
    STEP = "step"
    PRESERVED = "preserved"
    RUNNING_ON = "running-on"
    FAILED = "failed"
    RESET = "reset"
    CLOSED = "closed"


TRANSITIONS: Final[dict[tuple[State, Mark], State]] = {
    (State.DETECTED, Mark.DECIDED): State.DECIDED,
    (State.DETECTED, Mark.RESET): State.RESET,
    (State.DETECTED, Mark.CLOSED): State.CLOSED,
    (State.DECIDED, Mark.DECIDED): State.DECIDED,
    (State.DECIDED, Mark.STEP): State.ACTING,
    (State.DECIDED, Mark.PRESERVED): State.PRESERVED,
    (State.DECIDED, Mark.RUNNING_ON): State.RUNNING_ON,
    (State.DECIDED, Mark.FAILED): State.FAILED,
    (State.DECIDED, Mark.RESET): State.RESET,
    (State.DECIDED, Mark.CLOSED): State.CLOSED,
    (State.ACTING, Mark.STEP): State.ACTING,
    (State.ACTING, Mark.DECIDED): State.DECIDED,
    (State.ACTING, Mark.PRESERVED): State.PRESERVED,
    (State.ACTING, Mark.RUNNING_ON): State.RUNNING_ON,
    (State.ACTING, Mark.FAILED): State.FAILED,
    (State.ACTING, Mark.RESET): State.RESET,
    (State.ACTING, Mark.CLOSED): State.CLOSED,
    (State.PRESERVED, Mark.DECIDED): State.DECIDED,
    (State.PRESERVED, Mark.RESET): State.RESET,
    (State.PRESERVED, Mark.CLOSED): State.CLOSED,
    (State.RUNNING_ON, Mark.DECIDED): State.DECIDED,
    (State.RUNNING_ON, Mark.RESET): State.RESET,
    (State.RUNNING_ON, Mark.CLOSED): State.CLOSED,
    (State.FAILED, Mark.DECIDED): State.DECIDED,
    (State.FAILED, Mark.RESET): State.RESET,
    (State.FAILED, Mark.CLOSED): State.CLOSED,
    (State.RESET, Mark.DECIDED): State.DECIDED,
    (State.RESET, Mark.CLOSED): State.CLOSED,
}


class IllegalTransitionError(Exception):
    """An entry has no place in an incident as it stands: a bug of panicd's."""


class Source(StrEnum):
    """How a panic became known."""

    EVENT = "event"  # GUEST_PANICKED was received
    RECONCILIATION = "reconciliation"  # found guest-panicked on connecting: how often is unknown
    KDUMP = "kdump"  # GUEST_CRASHLOADED was received: the guest handles its panic itself


class Ending(StrEnum):
    """How an incident ended."""

    DESTROYED = "destroyed"
    RESTARTED = "restarted"
    RELAUNCHED = "relaunched"
    RELEASED = "released"  # an operator let it run
    RAN_ON = "ran-on"  # ignored, and it went quiet
    QEMU_EXITED = "qemu-exited"  # QEMU ended by itself with the panic: it was not armed
    QEMU_GONE = "qemu-gone"  # QEMU went away, and not by panicd
    MIGRATED = "migrated"  # the guest lives on another host now
    GUEST_RESET = "guest-reset"  # the guest reset itself
    GUEST_SHUTDOWN = "guest-shutdown"  # the guest shut itself down
    FOREIGN_RESET = "foreign-reset"
    FOREIGN_RESUME = "foreign-resume"


class Outcome(StrEnum):
    """How a step ended. ``unknown`` is asked about again, never repeated blindly."""

    DONE = "done"
    SKIPPED = "skipped"  # there was nothing left to do
    FAILED = "failed"
    UNKNOWN = "unknown"  # sent, and no answer came


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a step ended, with details."""

    outcome: Outcome
    detail: str = ""
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an incident's history; ``at`` in seconds since the epoch."""

    at: float


@dataclass(frozen=True, slots=True)
class Opened(Entry):
    """The panic became known.

    Attributes:
        domain: the domain's name, as panicd shows it.
        uuid: the UUID that the VM claims, empty where it has none.
        monitor: the monitor's address.
        process: the unique identity of this QEMU process, empty where unknown.
        source: how the panic became known.
        information: the panic's payload.
        key: the key of the domain's belongings (``identity.Vouched.key``); empty in entries of
            0.1.0.
        name: the name that selects its policy: the VM's claim, or its socket's name; empty in
            entries of 0.1.0, which knew only ``domain``.
    """

    domain: str
    uuid: str
    monitor: str
    process: str
    source: Source
    information: PanicInformation | None = None
    key: str = ""
    name: str = ""
    kind: Literal["opened"] = "opened"

    @property
    def domain_key(self) -> str:
        """The key that counts for the domain: in entries of 0.1.0 only its claim is known."""
        return self.key or self.uuid or self.domain

    @property
    def called(self) -> str:
        """The name that selects the domain's policy."""
        return self.name or self.domain

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which an operator may call or hold the domain."""
        return (self.key, self.uuid, self.called, self.domain, self.monitor)


@dataclass(frozen=True, slots=True)
class Repeated(Entry):
    """``count`` more panics were reported within the incident."""

    count: int
    kind: Literal["repeated"] = "repeated"


@dataclass(frozen=True, slots=True)
class Decided(Entry):
    """A decision and its plan; a later one replaces the one before."""

    plan: Plan
    kind: Literal["decided"] = "decided"


@dataclass(frozen=True, slots=True)
class StepBegun(Entry):
    """Step ``index`` of the plan begins."""

    index: int
    kind: Literal["step-begun"] = "step-begun"


@dataclass(frozen=True, slots=True)
class StepEnded(Entry):
    """Step ``index`` of the plan has ended.

    Attributes:
        index: of the step in the plan.
        outcome: how it ended.
        detail: more about it: an error's text, a dump's path.
        signature: the panic's signature, if the evidence shows it.
    """

    index: int
    outcome: Outcome
    detail: str = ""
    signature: Signature | None = None
    kind: Literal["step-ended"] = "step-ended"


@dataclass(frozen=True, slots=True)
class Settled(Entry):
    """panicd does no more for now; the incident stays open, in this state."""

    state: Literal[State.PRESERVED, State.RUNNING_ON, State.FAILED, State.RESET]
    kind: Literal["settled"] = "settled"


@dataclass(frozen=True, slots=True)
class Closed(Entry):
    """The episode is over."""

    ending: Ending
    detail: str = ""
    kind: Literal["closed"] = "closed"


@dataclass(frozen=True, slots=True)
class Asked(Entry):
    """An operator asked for something.

    Attributes:
        uid: the user who asked (SO_PEERCRED, unix(7)).
        what: the command, and its argument.
        why: in the operator's words.
        user: who asked by the page (its requests have panicd's own uid); empty for others.
    """

    uid: int
    what: str
    why: str
    user: str = ""
    kind: Literal["asked"] = "asked"


@dataclass(frozen=True, slots=True)
class Acknowledged(Entry):
    """An operator has looked at the incident; the fields are those of ``Asked``."""

    uid: int
    why: str
    user: str = ""
    kind: Literal["acknowledged"] = "acknowledged"


@dataclass(frozen=True, slots=True)
class Observed(Entry):
    """panicd saw something else happen to the domain, not by its own doing."""

    what: str
    kind: Literal["observed"] = "observed"


@dataclass(frozen=True, slots=True)
class Enforced(Entry):
    """Somebody else resumed the panicked guest, and panicd stopped it again."""

    kind: Literal["enforced"] = "enforced"


AnyEntry = (
    Opened
    | Repeated
    | Decided
    | StepBegun
    | StepEnded
    | Settled
    | Asked
    | Acknowledged
    | Observed
    | Enforced
    | Closed
)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step's record: ``outcome`` is None while the step runs."""

    begun_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """One panic episode.

    Attributes:
        id: unique, and sorts by time.
        opened: how it began.
        state: where it stands.
        repeats: panics reported after the first.
        plan: the latest plan.
        steps: the records of that plan's steps, by index.
        begun: how often each step was begun and not skipped after that, by index.
        decisions: every decision so far, the latest last; a repeated decision is listed once.
        closed: how it ended.
        acknowledged: who looked at it.
        said: the guest's own words for the panic, from the evidence; empty where unknown.
        told: the panic's signature, from the evidence.
        enforced: how often panicd stopped the guest again after somebody else resumed it.
        ran_on: panicd has already ignored a panic, and the guest has run on.
        dumped: the complete dump's path; empty where there is none.
    """

    id: str
    opened: Opened
    state: State = State.DETECTED
    repeats: int = 0
    plan: Plan | None = None
    steps: dict[int, StepRecord] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    closed: Closed | None = None
    acknowledged: Acknowledged | None = None
    enforced: int = 0
    said: str = ""
    ran_on: bool = False
    told: Signature | None = None
    dumped: str = ""

    @property
    def panic_line(self) -> str:
        """The line that says why the guest panicked: its own words, or else the payload."""
        return self.said or payload_line(self.opened.information)

    @property
    def signature(self) -> Signature | None:
        """The panic's signature, from the guest's own words, or else from the payload."""
        if self.told is not None and self.told.hash:
            return self.told
        return signature_of_payload(self.opened.information) or self.told

    @property
    def is_open(self) -> bool:
        """Whether the episode goes on."""
        return self.state is not State.CLOSED

    @property
    def decision(self) -> Decision | None:
        """The decision in force."""
        return self.decisions[-1] if self.decisions else None

    @property
    def step_in_progress(self) -> int | None:
        """The index of the step that was begun last, unless it has ended, as far as is known."""
        last = max(self.steps, default=None)
        return last if last is not None and self.steps[last].outcome is None else None

    def has_begun(self, kind: type[AnyStep]) -> bool:
        """Whether a step of this kind was begun in the plan in force."""
        plan = self.plan
        return plan is not None and any(isinstance(plan.steps[i], kind) for i in self.steps)

    @property
    def watched_until(self) -> float | None:
        """When the guest's time to handle its panic itself ends, in seconds since the epoch."""
        index = self.step_in_progress
        step = self.plan.steps[index] if self.plan and index is not None else None
        if index is None or not isinstance(step, AwaitGuestReset) or not self.is_open:
            return None
        return self.steps[index].begun_at + step.timeout

    @property
    def runs_unproven(self) -> bool:
        """Whether the guest had its own time, and may have reset itself in it unseen."""
        return self.state is State.FAILED and self.action is Action.GRACE

    @property
    def restarted_at(self) -> float | None:
        """When panicd restarted the guest, if it did."""
        if self.closed and self.closed.ending in {Ending.RESTARTED, Ending.RELAUNCHED}:
            return self.closed.at
        return None

    @property
    def action(self) -> Action:
        """The action in force, ``none`` before one is decided."""
        return self.decision.action if self.decision else Action.NONE


OWN_TIME_OVER: Final = {Reason.GRACE: Reason.GRACE_OVER, Reason.KDUMP: Reason.KDUMP_STUCK}
"""The reason to give when a guest's own time is over."""


def own_time_over(incident: Incident) -> Reason | None:
    """Return why a guest gets no more time of its own; None where it has had none yet."""
    given = (OWN_TIME_OVER.get(decision.reason) for decision in incident.decisions)
    return next((reason for reason in given if reason is not None), None)


def apply(incident: Incident, entry: AnyEntry) -> Incident:
    """Return the incident with one more entry of its history.

    Raises:
        IllegalTransitionError: the entry has no place in the incident as it stands.
    """
    match entry:
        case Opened():
            raise IllegalTransitionError(f"{incident.id}: opened twice")
        case Repeated(count=count):
            if not incident.is_open:
                raise IllegalTransitionError(f"{incident.id}: repeated after its end")
            return replace(incident, repeats=incident.repeats + count)
        case Decided(plan=plan):
            again = plan.decision == incident.decision
            return replace(
                incident,
                state=_next(incident, Mark.DECIDED),
                plan=plan,
                steps={},
                begun={},
                decisions=incident.decisions if again else (*incident.decisions, plan.decision),
            )
        case StepBegun(at=at, index=index):
            state = _next(incident, Mark.STEP)
            if incident.plan is None or not 0 <= index < len(incident.plan.steps):
                raise IllegalTransitionError(f"{incident.id}: the plan has no step {index}")
            # The records of later steps are from before these steps begin once more.
            earlier = {i: record for i, record in incident.steps.items() if i < index}
            begun = {**incident.begun, index: incident.begun.get(index, 0) + 1}
            steps = {**earlier, index: StepRecord(at)}
            return replace(incident, state=state, steps=steps, begun=begun)
        case StepEnded(at=at, index=index, outcome=outcome, detail=detail, signature=signature):
            state = _next(incident, Mark.STEP)
            record = incident.steps.get(index)
            if record is None or record.outcome is not None:
                raise IllegalTransitionError(f"{incident.id}: step {index} ended before it began")
            steps = {**incident.steps, index: StepRecord(record.begun_at, at, outcome, detail)}
            begun = {**incident.begun, index: incident.begun[index] - (outcome is Outcome.SKIPPED)}
            step = incident.plan.steps[index] if incident.plan is not None else None
            made = detail if outcome is Outcome.DONE else ""
            said = (isinstance(step, Collect) and made) or incident.said
            dumped = (isinstance(step, Dump) and made) or incident.dumped
            tells_more = signature is not None and (signature.hash or incident.told is None)
            told = signature if tells_more else incident.told
            incident = replace(incident, said=said, told=told, dumped=dumped)
            return replace(incident, state=state, steps=steps, begun=begun)
        case Settled(state=settled):
            ran_on = incident.ran_on or settled is State.RUNNING_ON
            return replace(incident, state=_next(incident, Mark(settled)), ran_on=ran_on)
        case Acknowledged():
            return replace(incident, acknowledged=entry)
        case Asked() | Observed():
            return incident
        case Enforced():
            return replace(incident, enforced=incident.enforced + 1)
        case Closed():
            return replace(incident, state=_next(incident, Mark.CLOSED), closed=entry)
        case _:
            assert_never(entry)


def _next(incident: Incident, mark: Mark) -> State:
    try:
        return TRANSITIONS[incident.state, mark]
    except KeyError:
        raise IllegalTransitionError(f"{incident.id}: {mark} in state {incident.state}") from None
