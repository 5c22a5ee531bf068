"""The page of an incident: what is known of the panic, and how it went."""

from collections.abc import Iterable
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
    elapsed,
    free_text,
    incident_state,
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
_KINDS: Final = {"opened": "panicked", "repeated": "panicked again", "settled": "stays open"}


def incident_page(
    incident: Incident,
    same: Group | None,
    history: list[AnyEntry],
    evidence: Iterable[Html],
    shows_guests: bool,
) -> Html:
    """Return an incident's page, of which the evidence is read as it is put in.

    Args:
        incident: which.
        same: those of the same panic, where enough is known of it.
        history: its entries.
        evidence: what is shown of it, as ``panicd.web.page.evidence`` yields it.
        shows_guests: whether it is known who asks.
    """
    opened, decision = incident.opened, incident.decision
    facts: list[tuple[str, Content]] = [
        ("Panicked", moment(opened.at)),
        ("Known by", opened.source),
        ("Again", f"{incident.repeats} times" if incident.repeats else ""),
        ("Action", _decided(decision) if decision else "none"),
        ("Reason", EXPLANATIONS[decision.reason] if decision else ""),
        *_signature(incident.signature, same, shows_guests),
        ("UUID", opened.uuid),
        ("Monitor", opened.monitor),
        ("Incident", incident.id),
    ]
    if seen := incident.acknowledged:
        facts.append(("Seen", f"by uid {seen.uid}: {seen.why}"))
    if information := opened.information:
        told: Content = element("span", WITHHELD, class_="quiet")
        if shows_guests:
            fields = ", ".join(f"{name}={value}" for name, value in information.fields)
            told = element("span", f"{information.type}: {fields}", class_="words")
        facts.insert(2, ("Payload", told))
    return joined(
        element("h1", opened.domain, " ", incident_state(incident)),
        _panic_line(incident, shows_guests),
        *([] if shows_guests else [notice(PLAIN, WHY_WITHHELD)]),
        element(
            "dl",
            *(joined(element("dt", name), element("dd", value)) for name, value in facts if value),
            class_="facts",
        ),
        element("h2", "Timeline"),
        _timeline(history, shows_guests),
        *evidence,
    )


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
    for entry in history:
        if isinstance(entry, Decided):
            plan = entry.plan
        kind = _KINDS.get(entry.kind, entry.kind.replace("-", " "))
        rows.append((elapsed(entry.at - began), kind, _about(entry, plan, shows_guests)))
    return table(("After", "What", "About it"), rows, "compact")


def _about(entry: AnyEntry, plan: Plan | None, shows_guests: bool) -> Content:
    """Return what an entry of an incident's history says, beside its kind."""
    match entry:
        case Opened(source=source):
            return f"known by {source}"
        case Repeated(count=count):
            return f"{count} times"
        case Decided(plan=decided):
            return f"{decided.decision.effective}: {EXPLANATIONS[decided.decision.reason]}"
        case StepBegun(index=index):
            return _step_name(plan, index)
        case StepEnded(index=index, outcome=outcome, detail=detail):
            said = _said(detail, shows_guests)
            return joined(f"{_step_name(plan, index)} ", badge(_OUTCOMES[outcome], outcome), said)
        case Settled(state=state):
            return badge(STATES[state], state)
        case Asked(uid=uid, what=what, why=why):
            return free_text(f"uid {uid}, {what}: {why}")
        case Acknowledged(uid=uid, why=why):
            return free_text(f"uid {uid}: {why}")
        case Observed(what=what):
            return what
        case Enforced():
            return "somebody resumed the panicked guest: stopped again"
        case Closed(ending=ending, detail=detail):
            return joined(ending, _said(detail, shows_guests))
        case _:
            assert_never(entry)


def _said(detail: str, shows_guests: bool) -> Html:
    """Return what a monitor, or through it a guest, had to say."""
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
