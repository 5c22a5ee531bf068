"""An incident as plain JSON values: its journal record, and the path of its evidence.

The daemon answers with these values. Without a daemon, the commands read them themselves.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from panicd.dumps.directory import PARTIAL
from panicd.dumps.facts import DumpFacts, dump_facts
from panicd.evidence.bundle import SCREENS, read_manifest
from panicd.journal import database as journal_database
from panicd.journal import lookup
from panicd.journal import signatures as journal_signatures
from panicd.journal.signatures import Group
from panicd.rules.incident import AnyEntry, Decided, Incident, Outcome, StepBegun, StepEnded
from panicd.rules.machine.steps import taken_at_once
from panicd.rules.payload import describe
from panicd.rules.plan import AnyStep, Dump, Plan, told
from panicd.rules.policy import EXPLANATIONS
from panicd.rules.signature import Signature

JOURNAL: Final = "journal.sqlite3"
BUNDLES: Final = "incidents"


class NoSuchIncidentError(Exception):
    """No incident matches, or more than one; the message lists them."""


LATEST: Final = "last"
"""Stands for the newest incident's id."""


def incident_called(journal: Path, text: str) -> str:
    """Return the id of the incident that ``text`` names. Blocking.

    Args:
        journal: its file; a daemon may have it open.
        text: an id, the beginning of one or of its last part, or ``last``.

    Raises:
        NoSuchIncidentError: no incident matches, or more than one.
        JournalError: the journal can't be read.
    """
    with journal_database.reader(journal) as database:
        latest = text == LATEST
        found = lookup.newest(database) if latest else lookup.called(database, text)
    match found:
        case [only]:
            return only
        case []:
            raise NoSuchIncidentError(f"no incident is called {text!r}")
        case _:
            raise NoSuchIncidentError(f"{text!r} is the beginning of {', '.join(found)}: say which")


def read_record(journal: Path, state_directory: Path, incident_id: str) -> dict[str, object] | None:
    """Return all that is known of an incident; None: no such id. Blocking.

    Args:
        journal: its file; a daemon may have it open.
        state_directory: where the evidence lies.
        incident_id: the incident's id.

    Raises:
        JournalDamagedError: the incident can't be read.
        JournalError: the journal can't be read.
    """
    with journal_database.reader(journal) as database:
        incident = journal_database.stored(database, incident_id).incident
        history = journal_database.history(database, incident_id)
    if incident is None:
        return None
    directory = state_directory / BUNDLES / incident_id
    evidence = read_manifest(directory)
    files = evidence["files"] if evidence is not None else ()
    screens = (str(directory / name) for name in SCREENS if name in files)
    dumps = list(finished_dumps(history, incident_id))
    return {
        **incident_view(incident),
        "same": (same := read_same(journal, incident)) and asdict(same),
        "history": history_view(history),
        "evidence_directory": str(directory),
        "evidence": evidence,
        "screenshot": next(screens, None),
        "dump": None,
        "dumps": [str(path) for path in dumps],
        "dump_facts": [asdict(facts) for facts in dump_facts_of(dumps)],
    }


def read_same(journal: Path, incident: Incident | None) -> Group | None:
    """Return the group of the same panic; None: too little is known. Blocking.

    Raises:
        JournalError: the journal can't be read.
    """
    signature = journal_signatures.hash_of(incident)
    return read_group(journal, signature) if signature else None


def read_group(journal: Path, signature: str) -> Group | None:
    """Return the incidents of a signature's hash; None: there are none. Blocking.

    Raises:
        JournalError: the journal can't be read.
    """
    with journal_database.reader(journal) as database:
        return journal_signatures.group(database, signature)


def read_groups(journal: Path, since: float, limit: int) -> list[Group]:
    """Return the incidents grouped by signature, the latest first. Blocking.

    Args:
        journal: its file.
        since: earliest start of an incident, in seconds since the epoch.
        limit: most signatures to return; negative: all.

    Raises:
        JournalError: the journal can't be read.
    """
    with journal_database.reader(journal) as database:
        return journal_signatures.groups(database, since, limit)


def read_panics(journal: Path, since: float, limit: int) -> list[tuple[Group, Signature]]:
    """Return the distinct panics, the latest first. Blocking.

    Args:
        journal: its file; a daemon may have it open.
        since: earliest start of an incident, in seconds since the epoch.
        limit: most panics to return; negative: all.

    Raises:
        JournalDamagedError: an incident can't be read.
        JournalError: the journal can't be read.
    """
    found: list[tuple[Group, Signature]] = []
    with journal_database.reader(journal) as database:
        for group in journal_signatures.groups(database, since, limit):
            newest = journal_database.stored(database, group.newest).incident
            assert newest is not None, "the group is of incidents"
            assert newest.signature is not None, "as above"
            found.append((group, newest.signature))
    return found


def finished_dumps(history: Sequence[AnyEntry], incident_id: str) -> Iterator[Path]:
    """Yield an incident's remaining finished dumps. Blocking."""
    places = {
        Path(entry.detail).parent
        for entry, step in _steps(history)
        if isinstance(entry, StepEnded)
        and isinstance(step, Dump)
        and entry.outcome is Outcome.DONE
        and Path(entry.detail).is_absolute()
    }
    for place in sorted(places):
        # Named after its incident; compression may have changed the suffix.
        found = sorted(place.glob(f"{incident_id}.*"))
        yield from (path for path in found if path.suffix != PARTIAL)


def dump_facts_of(dumps: Iterable[Path]) -> Iterator[DumpFacts]:
    """Yield the facts of the readable dumps. Blocking."""
    for path in dumps:
        with suppress(OSError):
            yield dump_facts(path)


def _steps(history: Sequence[AnyEntry]) -> Iterator[tuple[AnyEntry, AnyStep | None]]:
    """Yield entries, each with its step of the plan in force, if any."""
    plan: Plan | None = None
    for entry in history:
        if isinstance(entry, Decided):
            plan = entry.plan
        if isinstance(entry, StepBegun | StepEnded) and plan is not None:
            yield entry, plan.steps[entry.index]
        else:
            yield entry, None


def plan_view(plan: Plan) -> dict[str, object]:
    """Return a plan as plain values."""
    decision = plan.decision
    begins = range(len(plan.steps))
    at_once = next(
        ([i + 1, last + 1] for i in begins if (last := taken_at_once(plan.steps, i)) is not None),
        None,
    )
    return {
        "on_crash": decision.on_crash,
        "unrequested": decision.unrequested,
        "action": decision.effective,
        "reason": decision.reason,
        "why": EXPLANATIONS[decision.reason],
        "steps": [step_view(step) for step in plan.steps],
        "at_once": at_once,
    }


def step_view(step: AnyStep) -> dict[str, object]:
    """Return a step as plain values."""
    return {"step": type(step).__name__, "does": told(step), **asdict(step)}


def incident_view(incident: Incident) -> dict[str, object]:
    """Return an incident as plain values."""
    opened, closed, plan = incident.opened, incident.closed, incident.plan
    return {
        "id": incident.id,
        "domain": opened.domain,
        "uuid": opened.uuid,
        "monitor": opened.monitor,
        "opened_at": opened.at,
        "source": opened.source,
        "information": opened.information and asdict(opened.information),
        "payload": asdict(describe(opened.information)),
        "panic_line": incident.panic_line,
        "signature": incident.signature and asdict(incident.signature),
        "repeats": incident.repeats,
        "state": incident.state,
        "decisions": [
            {
                "on_crash": d.on_crash,
                "unrequested": d.unrequested,
                "action": d.effective,
                "reason": d.reason,
                "why": EXPLANATIONS[d.reason],
            }
            for d in incident.decisions
        ],
        "steps": [
            {"step": type(plan.steps[index]).__name__, **asdict(record)}
            for index, record in sorted(incident.steps.items())
        ]
        if plan
        else [],
        "ending": closed.ending if closed else None,
        "detail": closed.detail if closed else "",
        "closed_at": closed.at if closed else None,
        "acknowledged": incident.acknowledged and asdict(incident.acknowledged),
    }


def history_view(history: Sequence[AnyEntry]) -> list[dict[str, object]]:
    """Return an incident's entries as plain values, steps with their names."""
    views = []
    for entry, step in _steps(history):
        view = asdict(entry)
        if isinstance(entry, Decided):
            view = {"at": entry.at, "kind": entry.kind, "plan": plan_view(entry.plan)}
        elif step is not None:
            view["step"] = type(step).__name__
        views.append(view)
    return views
