"""What is written into the journal, and what is read from it."""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from panicd.journal import database as journal_database
from panicd.journal import journal as journal_module
from panicd.journal.batch import Batch
from panicd.journal.error import JournalClosedError
from panicd.journal.journal import Journal, JournalDamagedError, JournalError
from panicd.journal.totals import DomainTotals
from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Closed,
    Ending,
    IllegalTransitionError,
    Incident,
    Observed,
    Repeated,
    Settled,
    Source,
    State,
    StepBegun,
)
from panicd.rules.operation import Operation, OperationKind
from tests.journal.journals import RESTART, change, decided, fold, held, opened, restart

pytestmark = pytest.mark.usefixtures("time_limit")


class TestAppending:
    async def test_what_was_appended_is_read(self, path: Path) -> None:
        with Journal.open(path) as journal:
            await journal.append("i1", RESTART[0])
            await journal.append("i1", *RESTART[1:3])
            assert journal.history("i1") == [*RESTART[:3]]
            assert journal.load_open() == [fold("i1", RESTART[:3])]
        with Journal.open(path) as journal:
            assert journal.load_open() == [fold("i1", RESTART[:3])]
            await journal.append("i1", *RESTART[3:])
            assert journal.history("i1") == [*RESTART]
            assert journal.incident("i1") == fold("i1", RESTART)
            assert journal.load_open() == []

    def test_what_is_not_there_is_none(self, journal: Journal) -> None:
        assert journal.incident("i1") is None
        assert journal.history("i1") == []

    async def test_an_entry_without_a_place_is_refused_alone(
        self, path: Path, journal: Journal
    ) -> None:
        await journal.append("i1", *RESTART)
        refused: list[str] = []

        async def append(incident_id: str, *entries: AnyEntry) -> None:
            try:
                await journal.append(incident_id, *entries)
            except IllegalTransitionError:
                refused.append(incident_id)

        with held(path) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, "i1", Closed(6.0, Ending.DESTROYED))
                nursery.start_soon(append, "i2", opened(), Settled(2.0, State.FAILED))
                nursery.start_soon(append, "i3", opened())
                nursery.start_soon(append, "i4", decided())
                await wait_all_tasks_blocked()
                other.execute("ROLLBACK")
        assert sorted(refused) == ["i1", "i2", "i4"]
        assert [i.id for i in journal.incidents()] == ["i3", "i1"]
        assert journal.history("i1") == [*RESTART]
        assert journal.totals().panics == {Source.EVENT: 2}

    async def test_what_waits_is_written_together(self, path: Path, journal: Journal) -> None:
        statements: list[str] = []
        journal._database.set_trace_callback(statements.append)
        with held(path) as other:
            async with trio.open_nursery() as nursery:
                for number in range(500):
                    nursery.start_soon(journal.append, f"i{number}", *RESTART)
                await wait_all_tasks_blocked()
                other.execute("ROLLBACK")
        assert len(journal.incidents(limit=-1)) == 500
        assert statements.count("COMMIT") <= 2  # one that was under way, and all the others'

    async def test_an_incidents_entries_are_in_the_order_of_the_calls(
        self, path: Path, journal: Journal
    ) -> None:
        repeats = [Repeated(float(number), number) for number in range(20)]
        await journal.append("i1", opened())
        with held(path) as other:
            async with trio.open_nursery() as nursery:
                for repeat in repeats:
                    nursery.start_soon(journal.append, "i1", repeat)
                    await wait_all_tasks_blocked()
                other.execute("ROLLBACK")
        assert journal.history("i1") == [opened(), *repeats]

    async def test_a_wait_that_is_cancelled_leaves_the_others(
        self, path: Path, journal: Journal
    ) -> None:
        with held(path) as other:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as cancelled:
                    nursery.start_soon(journal.append, "i1", opened())
                    await wait_all_tasks_blocked()
                    cancelled.cancel()
                    await journal.append("i2", opened())
                other.execute("ROLLBACK")
            assert cancelled.cancelled_caught
        await journal.append("i3", opened())
        assert {i.id for i in journal.incidents()} == {"i1", "i2", "i3"}

    async def test_a_fault_reaches_all_that_wait_and_lasts_until_an_append_succeeds(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_database, "BUSY_TIMEOUT", 0.01)
        failed: list[str] = []

        async def append(journal: Journal, incident_id: str) -> None:
            with pytest.raises(JournalError, match=r"database is locked \(SQLITE_BUSY\)"):
                await journal.append(incident_id, *RESTART)
            failed.append(incident_id)

        with Journal.open(path) as journal:
            assert journal.fault is None
            with held(path):
                async with trio.open_nursery() as nursery:
                    for number in range(10):
                        nursery.start_soon(append, journal, f"i{number}")
            assert len(failed) == 10
            assert "database is locked" in (journal.fault or "")
            assert await journal.prune(before=0.0) == []
            assert "database is locked" in (journal.fault or "")
            await journal.append("i1", *RESTART)
            assert journal.fault is None
            assert [i.id for i in journal.incidents()] == ["i1"]
            assert journal.totals().panics == {Source.EVENT: 1}

    async def test_a_failed_append_has_not_happened(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_database, "BUSY_TIMEOUT", 0.01)
        with Journal.open(path) as journal:
            await journal.append("i1", opened())
            with held(path), pytest.raises(JournalError):
                await journal.append("i1", decided())
            with pytest.raises(IllegalTransitionError):
                await journal.append("i1", StepBegun(3.0, 0))
            await journal.append("i1", decided(), StepBegun(3.0, 0))
            assert journal.history("i1") == [*RESTART[:3]]

    async def test_nothing_is_written_into_a_file_that_was_removed(
        self, path: Path, journal: Journal
    ) -> None:
        await journal.append("i1", opened())
        elsewhere = await trio.Path(path).rename(path.with_name("elsewhere"))
        with pytest.raises(JournalError, match="removed, replaced or hidden"):
            await journal.append("i1", decided())
        await elsewhere.rename(path)
        await journal.append("i1", decided())
        assert journal.fault is None

    async def test_a_bug_in_the_writer_ends_whoever_waits(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "write", lambda _batch: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await journal.append("i1", opened())
        await journal.append("i1", opened())
        assert journal.history("i1") == [opened()]

    async def test_an_id_is_not_used_twice(self, journal: Journal) -> None:
        await journal.append("i1", *RESTART)
        with pytest.raises(sqlite3.IntegrityError):
            await journal.append("i1", opened())
        await journal.append("i2", opened())
        with pytest.raises(IllegalTransitionError):
            await journal.append("i2", opened())

    async def test_no_entries_are_nothing(self, journal: Journal) -> None:
        await journal.append("i1", *RESTART)
        await journal.append("i1")
        await journal.append("i2")
        assert journal.all_restarts() == {"web-1": (5.0,)}
        assert journal.incident("i2") is None

    async def test_closing_writes_what_is_queued(self, path: Path) -> None:
        journal = Journal.open(path)
        async with trio.open_nursery() as nursery:
            with held(path) as other:
                for number in range(10):
                    nursery.start_soon(journal.append, f"i{number}", opened())
                await wait_all_tasks_blocked()
                other.execute("ROLLBACK")
            journal.close()
        with pytest.raises(JournalClosedError):
            await journal.append("i1", decided())
        journal.close()
        with Journal.open(path) as journal:
            assert len(journal.load_open()) == 10


class TestReading:
    async def test_incidents_are_found_by_what_they_are(self, journal: Journal) -> None:
        await journal.append("i1", *restart(10.0, "web-1"))
        await journal.append("i2", *restart(20.0, "db-1", "u-u-i-d"))
        await journal.append("i3", opened(30.0, "web-1"))
        await journal.append("i4", opened(30.0, "db-1", "u-u-i-d"))

        def ids(found: Sequence[Incident]) -> list[str]:
            return [incident.id for incident in found]

        assert ids(journal.incidents()) == ["i4", "i3", "i2", "i1"]
        assert ids(journal.incidents(limit=2)) == ["i4", "i3"]
        assert ids(journal.incidents(domain="web-1")) == ["i3", "i1"]
        assert ids(journal.incidents(domain="u-u-i-d")) == ["i4", "i2"]
        assert ids(journal.incidents(domain="db-1", open_only=True)) == ["i4"]
        assert ids(journal.incidents(since=20.0)) == ["i4", "i3", "i2"]
        assert ids(journal.incidents(until=20.0)) == ["i1"]
        assert ids(journal.incidents(since=10.0, until=30.0, limit=1)) == ["i2"]
        assert ids(journal.load_open()) == ["i3", "i4"]
        await journal.append("i1", Acknowledged(50.0, 1000, "known"))
        await journal.append("i3", Observed(50.0, 'a guest\'s "kind":"acknowledged"'))
        assert ids(journal.incidents(unacknowledged=True)) == ["i4", "i3", "i2"]

    async def test_restarts_are_a_domains_by_its_uuid_else_its_name(self, journal: Journal) -> None:
        await journal.append("i1", *restart(20.0, "web-1"))
        await journal.append("i2", *restart(10.0, "web-1"))
        await journal.append("i3", *restart(30.0, "web-1", "u-u-i-d"))
        await journal.append("i4", opened(40.0), Closed(41.0, Ending.GUEST_RESET))
        assert journal.all_restarts() == {"web-1": (10.0, 20.0), "u-u-i-d": (30.0,)}

    async def test_a_restart_counts_once_whatever_is_said_of_it_afterwards(
        self, journal: Journal
    ) -> None:
        await journal.append("i1", *restart(10.0))
        await journal.append("i1", Acknowledged(20.0, 1000, "known"))
        assert journal.all_restarts() == {"web-1": (10.0,)}
        assert journal.history("i1") == [*restart(10.0), Acknowledged(20.0, 1000, "known")]
        assert await journal.prune(before=15.0) == ["i1"]

    async def test_a_text_that_is_no_utf8_comes_back_as_it_was(self, journal: Journal) -> None:
        """A socket's file name may be any bytes, and JSON lets a guest say half a character."""
        strange = "db\udcff\x00\ud800'"
        await journal.append("i1", *restart(10.0, strange))
        assert journal.history("i1") == [*restart(10.0, strange)]
        assert [i.opened.domain for i in journal.incidents(domain=strange)] == [strange]
        assert journal.all_restarts() == {strange: (10.0,)}
        assert journal.totals().domains == {strange: DomainTotals(panics=1, restarts=1)}


class TestOperations:
    async def test_what_was_asked_is_read_in_its_order(self, path: Path) -> None:
        hold = Operation(9.0, 0, OperationKind.HOLD, "web-\udcff", "say \ud800", until=99.0)
        unhold = Operation(8.0, 1000, OperationKind.UNHOLD, "web-\udcff", "")  # a clock set back
        with Journal.open(path) as journal:
            await journal.append_operation(hold)
            await journal.append_operation(unhold)
        with Journal.open(path) as journal:
            assert journal.operations() == [hold, unhold]

    async def test_one_that_is_written_ends_a_fault(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_database, "BUSY_TIMEOUT", 0.01)
        hold = Operation(9.0, 0, OperationKind.HOLD, "web-1", "maintenance")
        with Journal.open(path) as journal:
            with held(path), pytest.raises(JournalError, match="SQLITE_BUSY"):
                await journal.append_operation(hold)
            assert "SQLITE_BUSY" in (journal.fault or "")
            await journal.append_operation(hold)
            assert journal.fault is None
            assert journal.operations() == [hold]

    @pytest.mark.parametrize("body", ["{", "{}", "[]", '{"kind": "hold"}', "\ufffd"])
    async def test_a_damaged_one_is_named(self, journal: Journal, body: str) -> None:
        await journal.append_operation(Operation(9.0, 0, OperationKind.ACK, "web-1", ""))
        change(journal.path, "UPDATE operation SET body = ?", body)
        with pytest.raises(JournalDamagedError, match="operation 1: "):
            journal.operations()


class TestPruning:
    async def test_old_ends_go_and_totals_stay(self, journal: Journal) -> None:
        await journal.append("i1", *restart(10.0))
        await journal.append("i2", opened(10.0))
        await journal.append("i3", *restart(20.0))
        before = journal.totals()
        assert await journal.prune(before=20.0) == ["i1"]
        assert journal.incident("i1") is None
        assert [i.id for i in journal.incidents()] == ["i3", "i2"]
        assert journal.all_restarts() == {"web-1": (20.0,)}
        assert journal.totals() == before
        with pytest.raises(IllegalTransitionError):
            await journal.append("i1", Repeated(30.0, 1))

    async def test_more_than_one_commits_worth_goes_too(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_module, "PRUNED_AT_ONCE", 3)
        for number in range(7):
            await journal.append(f"i{number}", *restart(10.0 + number))
        removed = await journal.prune(before=100.0)
        assert removed == [f"i{number}" for number in range(7)]
        assert journal.incidents() == []
        with journal_database.reader(journal.path) as database:
            assert database.execute("SELECT count(*) FROM entry").fetchone() == (0,)

    async def test_what_operators_asked_goes_but_for_a_hold_in_force(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_module, "PRUNED_AT_ONCE", 3)
        removed: list[int] = []
        remove = Batch.remove_operations

        def watched(batch: Batch, positions: Sequence[int]) -> None:
            removed.append(len(positions))
            remove(batch, positions)

        monkeypatch.setattr(Batch, "remove_operations", watched)
        hold = Operation(1.0, 0, OperationKind.HOLD, "web-1", "maintenance")
        for number in range(7):
            await journal.append_operation(
                replace(hold, at=10.0 + number, kind=OperationKind.ACK, domain="web-2")
            )
            if number == 3:
                await journal.append_operation(hold)
        new = replace(hold, at=100.0, kind=OperationKind.ACT)
        await journal.append_operation(new)
        await journal.prune_operations(before=100.0)
        assert journal.operations() == [hold, new]
        assert removed == [3, 3, 1]
