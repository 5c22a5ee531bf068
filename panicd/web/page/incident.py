"""The page of an incident: what is known of the panic, and what panicd did."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from panicd.journal.signatures import Group
from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Decided,
    Enforced,
    Incident,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    StepBegun,
    StepEnded,
)
from panicd.rules.next_commands import next_commands, word
from panicd.rules.plan import Plan
from panicd.rules.policy import EXPLANATIONS, Decision
from panicd.rules.signature import Signature
from panicd.web.html import Content, Html, element, joined
from panicd.web.page.parts import (
    BAD,
    GOOD,
    PLAIN,
    STATES,
    WARN,
    WHY_WITHHELD,
    WITHHELD,
    badge,
    commands,
    domain_link,
    elapsed,
    facts,
    free_text,
    incident_state,
    live,
    moment,
    notice,
    seen,
    table,
)

_OUTCOMES: Final = {
    Outcome.DONE: GOOD,
    Outcome.SKIPPED: PLAIN,
    Outcome.FAILED: BAD,
    Outcome.UNKNOWN: WARN,
}
_KINDS: Final = {
    "opened": "panicked",
    "repeated": "panicked again",
    "settled": "stays open",
    "step-begun": "step",
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of an incident.

    Attributes:
        incident: the incident.
        same: the incidents of the same panic, if enough is known of it.
        history: its entries.
        opens: commands that open its dumps.
    """

    incident: Incident
    same: Group | None
    history: list[AnyEntry]
    opens: Sequence[str] = ()


def incident_page(
    case: Case, evidence: Iterable[Html], forms: Iterable[Html], shows_guests: bool
) -> Html:
    """Return an incident's page.

    Args:
        case: what is known of it.
        evidence: as ``panicd.web.page.evidence`` yields it.
        forms: for what the client may do about it.
        shows_guests: whether the client has logged in.
    """
    incident = case.incident
    opened, decision = incident.opened, incident.decision
    known: list[tuple[str, Content]] = [
        ("Domain", domain_link(opened.domain)),
        ("Panicked", moment(opened.at)),
        ("Known by", opened.source),
        ("Again", f"{incident.repeats} times" if incident.repeats else ""),
        ("Action", _decided(decision) if decision else "none"),
        ("Reason", EXPLANATIONS[decision.reason] if decision else ""),
        *_signature(incident.signature, case.same, shows_guests),
        ("UUID", opened.uuid),
        ("Monitor", opened.monitor),
        ("Incident", incident.id),
    ]
    if looked := incident.acknowledged:
        known.append(("Acknowledged", _asked_by(looked.uid, looked.user, looked.why)))
    if information := opened.information:
        told: Content = element("span", WITHHELD, class_="quiet")
        if shows_guests:
            fields = ", ".join(f"{name}={value}" for name, value in information.fields)
            told = element("span", f"{information.type}: {fields}", class_="words")
        known.insert(3, ("Payload", told))
    return joined(
        element("h1", opened.domain, " ", incident_state(incident)),
        _panic_line(incident, shows_guests),
        *([] if shows_guests else [notice(PLAIN, WHY_WITHHELD)]),
        live("facts", facts(known)),
        *forms,
        element("h2", "Next"),
        commands(*_next(case)),
        live("timeline", element("h2", "Timeline"), _timeline(case.history, shows_guests)),
        *evidence,
    )


def _next(case: Case) -> Iterable[str]:
    """Yield the commands to use next."""
    incident = case.incident
    named = word(incident.opened.domain, incident.opened.uuid or incident.opened.monitor)
    yield f"panicd incident {incident.id} --log"
    yield from case.opens
    acknowledged = incident.acknowledged is not None
    yield from next_commands(
        incident.id, named, is_open=incident.is_open, acknowledged=acknowledged
    )


def _asked_by(uid: int, user: str, why: str) -> Html:
    """Return who asked for something, on the page or by a command."""
    return free_text(f"by {user} (page): {why}" if user else f"by uid {uid}: {why}")


def _decided(decision: Decision) -> str:
    instead = f", unrequested {decision.unrequested}" if decision.unrequested else ""
    return f"{decision.effective} (on_crash {decision.on_crash}{instead})"


def _signature(
    known: Signature | None, same: Group | None, shows_guests: bool
) -> Iterable[tuple[str, Content]]:
    if known is not None and shows_guests:
        yield "Panic", element("span", known.full, class_="words")
    if same is not None:
        address = f"/panics/{same.signature}"
        told = element("a", f"seen {seen(same)}", href=address)
        yield "The same", joined(told, " since ", moment(same.first_at))


def _timeline(history: list[AnyEntry], shows_guests: bool) -> Html:
    rows: list[tuple[Content, ...]] = []
    plan: Plan | None = None
    began = history[0].at
    for place, entry in enumerate(history):
        if isinstance(entry, Decided):
            plan = entry.plan
        if isinstance(entry, StepEnded):
            continue  # it stands beside its beginning
        ended = _end_of(entry, history[place + 1 :]) if isinstance(entry, StepBegun) else None
        about = _about(entry, plan, shows_guests, ended)
        rows.append((elapsed(entry.at - began), _KINDS.get(entry.kind, entry.kind), about))
    return table(("After", "What", "About it"), rows, "compact")


def _end_of(begun: StepBegun, later: Sequence[AnyEntry]) -> StepEnded | None:
    """Return how a step ended; None if that is not known."""
    for entry in later:
        match entry:
            case StepEnded(index=begun.index):
                return entry
            case StepBegun(index=begun.index) | Decided():
                return None
            case _:
                pass
    return None


def _about(
    entry: AnyEntry, plan: Plan | None, shows_guests: bool, ended: StepEnded | None
) -> Content:
    """Return what an entry of an incident's history says, beside its kind.

    Args:
        entry: the entry.
        plan: the one in force.
        shows_guests: whether the client has logged in.
        ended: of a step's beginning, how the step ended.
    """
    match entry:
        case Opened(source=source):
            return f"known by {source}"
        case Repeated(count=count):
            return f"{count} times"
        case Decided(plan=decided):
            return f"{decided.decision.effective}: {EXPLANATIONS[decided.decision.reason]}"
        case StepBegun(index=index):
            if ended is None:
                return joined(f"{_step_name(plan, index)} ", badge(WARN, "no end is known"))
            took = f" in {elapsed(ended.at - entry.at)}"
            outcome = badge(_OUTCOMES[ended.outcome], ended.outcome)
            said = _said(ended.detail, shows_guests)
            return joined(f"{_step_name(plan, index)} ", outcome, took, said)
        case StepEnded():
            return ""
        case Settled(state=state):
            return badge(STATES[state], state)
        case Asked(uid=uid, what=what, why=why, user=user):
            return joined(f"{what}, ", _asked_by(uid, user, why))
        case Acknowledged(uid=uid, why=why, user=user):
            return _asked_by(uid, user, why)
        case Observed(what=what):
            return what
        case Enforced():
            return "somebody resumed the panicked guest: stopped again"
        case Closed(ending=ending, detail=detail):
            return joined(ending, _said(detail, shows_guests))
        case _:
            assert_never(entry)


def _said(detail: str, shows_guests: bool) -> Html:
    """Return what a monitor, or a guest through it, said."""
    if not detail:
        return joined()
    said = f" {detail}" if shows_guests else f" ({WITHHELD})"
    return element("span", said, class_="words" if shows_guests else "quiet")


def _step_name(plan: Plan | None, index: int) -> str:
    return type(plan.steps[index]).__name__ if plan is not None else str(index)


def _panic_line(incident: Incident, shows_guests: bool) -> Html:
    if not incident.panic_line or not shows_guests:
        return joined()
    return element("p", incident.panic_line, class_="notice bad words")
