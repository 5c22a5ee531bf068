"""Which incidents of the journal were the same panic."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from panicd.incident.records import read_group, read_groups, read_record
from panicd.journal.journal import Journal
from panicd.journal.signatures import Group
from panicd.rules.incident import AnyEntry, Closed, Decided, Ending, Outcome, StepBegun, StepEnded
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Collect, Plan
from panicd.rules.policy import Decision, Reason
from panicd.rules.signature import Signature
from tests.journal.journals import opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path) as opened_journal:
        yield opened_journal


NULL = Signature("NULL pointer dereference", ("queue_put",), "1-0000000001")
STUCK = Signature("soft lockup", ("queue_walk",), "1-0000000002")
WEAK = Signature("oops")

COLLECTING = Plan(
    Decision(OnCrash.PRESERVE, Action.PRESERVE, False, Reason.ON_CRASH), (Collect(3),)
)


def panic(at: float, domain: str, signature: Signature | None, uuid: str = "") -> list[AnyEntry]:
    return [
        opened(at, domain, uuid),
        Decided(at, COLLECTING),
        StepBegun(at, 0),
        StepEnded(at, 0, Outcome.DONE, "Oops", signature),
    ]


async def test_the_same_panics_are_one_group(path: Path) -> None:
    with Journal.open(path) as journal:
        await journal.append("i1", *panic(1.0, "web-1", NULL, "u1"))
        await journal.append("i2", *panic(2.0, "web-1", NULL, "u1"), Closed(2.5, Ending.DESTROYED))
        await journal.append("i3", *panic(3.0, "web-2", STUCK))
        await journal.append("i4", *panic(4.0, "renamed", NULL, "u1"))
        await journal.append("i5", *panic(5.0, "web-3", NULL))
        await journal.append("i6", *panic(6.0, "web-4", WEAK))
        await journal.append("i7", *panic(7.0, "web-5", None))
    with Journal.open(path) as journal:
        null = Group(NULL.hash, 4, 2, 1.0, 5.0, "i5")
        stuck = Group(STUCK.hash, 1, 1, 3.0, 3.0, "i3")
        assert read_groups(journal.path, 0.0, -1) == [null, stuck]
        assert read_groups(journal.path, 0.0, 1) == [null]
        assert read_groups(journal.path, 3.5, -1) == [Group(NULL.hash, 2, 2, 4.0, 5.0, "i5")]
        assert read_group(journal.path, STUCK.hash) == stuck
        assert read_group(journal.path, "1-ffffffffff") is None
        same = journal.incidents(signature=NULL.hash)
        assert [incident.id for incident in same] == ["i5", "i4", "i2", "i1"]
        assert {incident.signature for incident in same} == {NULL}


async def test_what_is_known_later_counts(journal: Journal) -> None:
    await journal.append("i1", *panic(1.0, "web-1", None))
    assert read_groups(journal.path, 0.0, -1) == []
    again: list[AnyEntry] = [Decided(2.0, COLLECTING), StepBegun(2.0, 0)]
    await journal.append("i1", *again, StepEnded(2.0, 0, Outcome.DONE, "Oops", NULL))
    assert read_group(journal.path, NULL.hash) == Group(NULL.hash, 1, 1, 1.0, 1.0, "i1")
    await journal.append("i1", *again, StepEnded(2.0, 0, Outcome.DONE, "Oops", STUCK))
    assert [group.signature for group in read_groups(journal.path, 0.0, -1)] == [STUCK.hash]


async def test_a_signature_goes_with_its_incident(journal: Journal) -> None:
    await journal.append("i1", *panic(1.0, "web-1", NULL), Closed(2.0, Ending.DESTROYED))
    assert await journal.prune(3.0) == ["i1"]
    assert read_groups(journal.path, 0.0, -1) == []


async def test_a_journal_from_before_is_read_as_it_is(path: Path) -> None:
    """As ``panicd incident`` does after an upgrade, before the new daemon has had it."""
    with Journal.open(path) as journal:
        await journal.append("i1", *panic(1.0, "web-1", NULL))
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE signature")
        database.execute("ALTER TABLE incident DROP COLUMN domain_key")
        database.commit()
    record = read_record(path, path.parent, "i1")
    assert record is not None
    assert record["same"] is None
