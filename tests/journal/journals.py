"""What the journal's tests write into it, and what they do to it."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from panicd.rules.incident import (
    AnyEntry,
    Closed,
    Decided,
    Ending,
    Incident,
    Opened,
    Outcome,
    Source,
    StepBegun,
    StepEnded,
    apply,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Cont, EnsureStopped, OnFailure, Plan, SystemReset
from panicd.rules.policy import Decision, Reason


def opened(at: float = 1.0, domain: str = "web-1", uuid: str = "") -> Opened:
    return Opened(at, domain, uuid, f"/run/qemu/{domain}.qmp", "17:42", Source.EVENT)


def decided(at: float = 2.0, reason: Reason = Reason.ON_CRASH) -> Decided:
    steps = (EnsureStopped(2.0), SystemReset(10.0), Cont(10.0, OnFailure.PRESERVE))
    return Decided(at, Plan(Decision(OnCrash.RESTART, Action.RESTART, False, reason), steps))


RESTART: Sequence[AnyEntry] = (
    opened(),
    decided(),
    StepBegun(3.0, 0),
    StepEnded(4.0, 0, Outcome.DONE),
    Closed(5.0, Ending.RESTARTED),
)


def restart(at: float, domain: str = "web-1", uuid: str = "") -> tuple[AnyEntry, ...]:
    return opened(at, domain, uuid), decided(at), Closed(at, Ending.RESTARTED)


def fold(incident_id: str, entries: Sequence[AnyEntry]) -> Incident:
    first, *rest = entries
    assert isinstance(first, Opened)
    incident = Incident(incident_id, first)
    for entry in rest:
        incident = apply(incident, entry)
    return incident


@contextmanager
def held(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep the journal from writing, until the connection rolls back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def change(path: Path, statement: str, *values: object) -> None:
    """Do to the database what the journal never would."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()
