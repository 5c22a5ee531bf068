import signal
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import get_args

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from panicd.host import journal as journal_module
from panicd.host import journal_database
from panicd.host.journal import (
    Journal,
    JournalClosedError,
    JournalDamagedError,
    JournalError,
    JournalInUseError,
)
from panicd.host.journal_codec import STEPS, CodecError, decode, encode
from panicd.host.journal_schema import MIGRATIONS
from panicd.host.journal_totals import (
    DomainTotals,
    Increment,
    Total,
    Totals,
    collect,
    increments,
)
from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Decided,
    Ending,
    Enforced,
    IllegalTransitionError,
    Incident,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    Source,
    State,
    StepBegun,
    StepEnded,
    apply,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.operation import Operation, OperationKind
from panicd.rules.plan import (
    AnyStep,
    Cont,
    EnsureStopped,
    OnFailure,
    Plan,
    RunRelaunch,
    SystemReset,
)
from panicd.rules.policy import Decision, Reason
from panicd.rules.qapi import PanicInformation

PATIENCE = 30  # seconds after which a test has failed instead of hanging


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path) as opened_journal:
        yield opened_journal


@contextmanager
def held(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep the journal from writing, until the connection rolls back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End what hangs, in the loop or in ``close``."""

    def end(_number: int, _frame: object) -> None:
        raise TimeoutError(f"{PATIENCE} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def spoil_a_page(path: Path, number: int) -> None:
    """Overwrite a page of the database, counted from 0; negative from the end."""
    size = 4096  # SQLite's default
    content = path.read_bytes()
    pages = [content[start : start + size] for start in range(0, len(content), size)]
    pages[number] = b"\xa5" * size
    path.write_bytes(b"".join(pages))


def change(path: Path, statement: str, *values: object) -> None:
    """Do to the database what the journal never would."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()


class TestOpening:
    def test_only_its_owner_may_read_it(self, journal: Journal) -> None:
        directory = journal.path.parent
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [directory, *directory.iterdir()]}
        assert modes == {
            "state": 0o700,
            "journal.sqlite": 0o600,
            "journal.sqlite-wal": 0o600,
            "journal.sqlite-shm": 0o600,
            "journal.sqlite.lock": 0o600,
        }

    def test_a_commit_waits_for_the_disk(self, path: Path) -> None:
        path.parent.mkdir()
        with closing(journal_database.connect(path)) as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL

    def test_it_is_one_journals_at_a_time(self, path: Path) -> None:
        with Journal.open(path):
            with pytest.raises(JournalInUseError):
                Journal.open(path)
            with pytest.raises(JournalInUseError):
                Journal.set_aside(path)
        Journal.open(path).close()

    def test_a_directory_that_cannot_be_made_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(JournalError, match=r"Not a directory|File exists"):
            Journal.open(tmp_path / "file" / "journal.sqlite")

    def test_a_newer_schema_is_refused(self, path: Path) -> None:
        Journal.open(path).close()
        known = len(MIGRATIONS)
        change(path, f"PRAGMA user_version = {known + 1}")
        message = f"schema version {known + 1}, this one knows {known}"
        with pytest.raises(JournalError, match=message):
            Journal.open(path)

    async def test_an_older_schema_is_brought_forward(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Journal.open(path) as journal:
            await journal.append("i1", *RESTART)
        newer = (*MIGRATIONS, ("CREATE TABLE more (a)", "CREATE TABLE still (b)"))
        monkeypatch.setattr(journal_database, "MIGRATIONS", newer)
        with Journal.open(path) as journal:
            assert journal.history("i1") == [*RESTART]
            with journal_database.reader(path) as database:
                assert database.execute("PRAGMA user_version").fetchone() == (len(newer),)
                assert database.execute("SELECT * FROM still").fetchall() == []

    def test_a_migration_that_fails_leaves_the_old_schema(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Journal.open(path).close()
        failing = (*MIGRATIONS, ("CREATE TABLE more (a)", "no statement"))
        monkeypatch.setattr(journal_database, "MIGRATIONS", failing)
        with pytest.raises(JournalError, match="syntax error"):
            Journal.open(path)
        with journal_database.reader(path) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (len(failing) - 1,)
            assert ("more",) not in database.execute("SELECT name FROM sqlite_schema").fetchall()


class TestDamage:
    def test_what_is_no_database_is_damage(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"no database, and longer than a header would be" * 40)
        with pytest.raises(JournalDamagedError, match="file is not a database"):
            Journal.open(path)

    @pytest.mark.parametrize(
        ("page", "message"),
        [
            pytest.param(-1, "database disk image is malformed", id="sqlite fails"),
            pytest.param(2, "main .* Page 3: ", id="sqlite complains"),
        ],
    )
    async def test_a_damaged_page_is_found_on_opening(
        self, path: Path, page: int, message: str
    ) -> None:
        with Journal.open(path) as journal:
            for number in range(100):
                await journal.append(f"i{number}", *RESTART)
        spoil_a_page(path, page)
        with pytest.raises(JournalDamagedError, match=message):
            Journal.open(path)

    def test_set_aside_makes_room_for_a_new_one(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"damaged" * 1000)
        with pytest.raises(JournalDamagedError):
            Journal.open(path)
        path.with_name("journal.sqlite-wal").write_bytes(b"of the damaged one")
        aside = Journal.set_aside(path)
        assert aside.read_bytes() == b"damaged" * 1000
        assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"of the damaged one"
        assert not path.with_name("journal.sqlite-wal").exists()
        with Journal.open(path) as journal:
            assert journal.incidents() == []

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("UPDATE entry SET body = '{' WHERE position = 1", "i1: entry 1: JSONDecodeError"),
            ("UPDATE entry SET body = x'fffe' WHERE position = 1", "i1: entry 1: .utf-8. codec"),
            (
                """UPDATE entry SET body = replace(body, '"Cont"', '"Contt"')""",
                "i1: entry 1: KeyError: 'Contt'",
            ),
            (
                """UPDATE entry SET body = replace(body, 'on-crash', 'on-cash')""",
                "i1: entry 1: .*reason: Input should be 'on-crash'",
            ),
            (
                """UPDATE entry SET body = '{"kind": "closed", "at": 1}' WHERE position = 2""",
                "i1: entry 2: .*ending: Field required",
            ),
            ("DELETE FROM entry WHERE position = 1", "i1: entry 1 is missing"),
            ("DELETE FROM entry", "i1: entry 0 is missing"),
        ],
    )
    async def test_a_damaged_row_is_named(
        self, path: Path, journal: Journal, damage: str, message: str
    ) -> None:
        await journal.append("i1", *RESTART[:3])
        change(path, damage)
        with pytest.raises(JournalDamagedError, match=message):
            journal.history("i1")
        with pytest.raises(JournalDamagedError, match=message):
            journal.load_open()

    @pytest.mark.parametrize(
        ("position", "message"),
        [(0, "i1: entry 0: i1: step-ended before"), (2, "i1: entry 2: i1: step 7")],
    )
    async def test_entries_that_do_not_follow_each_other_are_damage(
        self, path: Path, journal: Journal, position: int, message: str
    ) -> None:
        await journal.append("i1", *RESTART)
        other = encode(StepEnded(9.0, 7, Outcome.DONE))
        change(path, "UPDATE entry SET body = ? WHERE position = ?", other, position)
        with pytest.raises(JournalDamagedError, match=message):
            journal.incident("i1")

    async def test_a_total_of_nothing_known_is_damage(self, path: Path, journal: Journal) -> None:
        await journal.append("i1", opened())
        change(path, "UPDATE total SET label = 'rumour' WHERE name = 'panics'")
        with pytest.raises(JournalDamagedError, match="rumour"):
            journal.totals()

    async def test_a_damaged_incident_does_not_keep_others_from_being_written(
        self, path: Path
    ) -> None:
        with Journal.open(path) as journal:
            await journal.append("i1", *RESTART[:2])
        change(path, "DELETE FROM entry WHERE position = 0")
        with Journal.open(path) as journal:
            with pytest.raises(JournalDamagedError, match="i1: entry 0 is missing"):
                await journal.append("i1", Repeated(3.0, 1))
            await journal.append("i2", opened())
            assert journal.history("i2") == [opened()]


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
            patch.setattr(journal_database.Batch, "write", lambda _batch: 1 / 0)
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
        assert journal.restarts("web-1", since=0.0) == (5.0,)
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
        assert journal.restarts("web-1", since=0.0) == (10.0, 20.0)
        assert journal.restarts("web-1", since=20.0) == (20.0,)
        assert journal.restarts("u-u-i-d", since=0.0) == (30.0,)
        assert journal.all_restarts() == {"web-1": (10.0, 20.0), "u-u-i-d": (30.0,)}

    async def test_a_restart_counts_once_whatever_is_said_of_it_afterwards(
        self, journal: Journal
    ) -> None:
        await journal.append("i1", *restart(10.0))
        await journal.append("i1", Acknowledged(20.0, 1000, "known"))
        assert journal.restarts("web-1", since=0.0) == (10.0,)
        assert journal.history("i1") == [*restart(10.0), Acknowledged(20.0, 1000, "known")]
        assert await journal.prune(before=15.0) == ["i1"]

    async def test_a_text_that_is_no_utf8_comes_back_as_it_was(self, journal: Journal) -> None:
        """A socket's file name may be any bytes, and JSON lets a guest say half a character."""
        strange = "db\udcff\x00\ud800'"
        await journal.append("i1", *restart(10.0, strange))
        assert journal.history("i1") == [*restart(10.0, strange)]
        assert [i.opened.domain for i in journal.incidents(domain=strange)] == [strange]
        assert journal.restarts(strange, since=0.0) == (10.0,)
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
        assert journal.restarts("web-1", since=0.0) == (20.0,)
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


def after(*entries: AnyEntry) -> Incident:
    return fold("i1", (opened(uuid="u"), *entries))


@pytest.mark.parametrize(
    ("before", "entry", "expected"),
    [
        (None, opened(), {(Total.DOMAIN_PANICS, "web-1"): 1, (Total.PANICS, "event"): 1}),
        (
            None,
            Opened(1.0, "web-1", "u", "m", "", Source.RECONCILIATION),
            {(Total.DOMAIN_PANICS, "u"): 1, (Total.PANICS, "reconciliation"): 1},
        ),
        (
            after(),
            Repeated(2.0, 41),
            {(Total.DOMAIN_PANICS, "u"): 41, (Total.PANICS, "event"): 41},
        ),
        (after(), decided(), {}),
        (after(), decided(reason=Reason.UNREQUESTED_DEVICE), {}),
        (after(), decided(reason=Reason.BUDGET_SPENT), {(Total.FALLBACKS, "budget-spent"): 1}),
        (after(decided()), StepBegun(3.0, 0), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.DONE), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.SKIPPED), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.UNKNOWN), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.FAILED), {}),
        *(
            (
                after(decided()),
                decided(reason=reason),
                {
                    (Total.FALLBACKS, reason): 1,
                    (Total.ACTION_FAILURES, "restart"): 1,
                    (Total.DOMAIN_ACTION_FAILURES, "u"): 1,
                },
            )
            for reason in (Reason.ACTION_FAILED, Reason.DUMP_FAILED)
        ),
        (after(decided()), Settled(3.0, State.PRESERVED), {(Total.ACTIONS, "preserve"): 1}),
        (after(decided()), Settled(3.0, State.RUNNING_ON), {(Total.ACTIONS, "ignore"): 1}),
        (
            after(decided()),
            Settled(3.0, State.FAILED),
            {(Total.ACTION_FAILURES, "restart"): 1, (Total.DOMAIN_ACTION_FAILURES, "u"): 1},
        ),
        (after(), Asked(2.0, 1000, "release", "seen enough"), {}),
        (after(), Acknowledged(2.0, 1000, "known"), {}),
        (after(), Observed(2.0, "RESUME"), {}),
        (after(), Enforced(2.0), {(Total.FOREIGN_ACTIONS, "resume"): 1}),
        *(
            (after(decided()), Closed(3.0, ending), counted)
            for ending, counted in [
                (Ending.DESTROYED, {(Total.ACTIONS, "destroy"): 1}),
                (
                    Ending.RESTARTED,
                    {(Total.ACTIONS, "restart"): 1, (Total.DOMAIN_RESTARTS, "u"): 1},
                ),
                (
                    Ending.RELAUNCHED,
                    {(Total.ACTIONS, "restart"): 1, (Total.DOMAIN_RESTARTS, "u"): 1},
                ),
                (Ending.RELEASED, {(Total.ACTIONS, "release"): 1}),
                (Ending.RAN_ON, {}),
                (Ending.QEMU_EXITED, {}),
                (Ending.QEMU_GONE, {(Total.FOREIGN_ACTIONS, "exit"): 1}),
                (Ending.MIGRATED, {(Total.FOREIGN_ACTIONS, "migration"): 1}),
                (Ending.GUEST_RESET, {}),
                (Ending.FOREIGN_RESET, {(Total.FOREIGN_ACTIONS, "reset"): 1}),
                (Ending.FOREIGN_RESUME, {(Total.FOREIGN_ACTIONS, "resume"): 1}),
            ]
        ),
    ],
)
def test_an_entry_counts(
    before: Incident | None, entry: AnyEntry, expected: dict[tuple[Total, str], int]
) -> None:
    assert sum_up(increments(before, entry)) == expected


def sum_up(added: Iterable[Increment]) -> Counter[tuple[Total, str]]:
    counts: Counter[tuple[Total, str]] = Counter()
    for total, label, amount in added:
        counts[total, label] += amount
    return counts


def replay(histories: Iterable[Sequence[AnyEntry]]) -> Totals:
    counts: Counter[tuple[Total, str]] = Counter()
    for history in histories:
        incident = None
        for entry in history:
            counts.update(sum_up(increments(incident, entry)))
            incident = apply(incident, entry) if incident else fold("i", [entry])
    return collect(counts)


times = st.floats(0, 2**40)
texts = st.text(st.characters(), max_size=20)  # with lone surrogates
steps: st.SearchStrategy[AnyStep] = st.one_of(
    *(st.builds(kind, timeout=times) for kind in get_args(AnyStep) if kind is not RunRelaunch),
    st.builds(RunRelaunch, timeout=times, command=st.lists(texts, max_size=3).map(tuple)),
)
plans = st.builds(Plan, steps=st.lists(steps, max_size=4).map(tuple))
fields = st.tuples(texts, st.one_of(texts, st.integers(-(2**63), 2**64 - 1)))
information = st.builds(PanicInformation, texts, st.lists(fields, max_size=4).map(tuple))
openings = st.builds(Opened, times, texts, texts, texts, texts, information=st.none() | information)
later_entries: st.SearchStrategy[AnyEntry] = st.one_of(
    st.builds(Repeated, times, st.integers(1, 2**40)),
    st.builds(Decided, times, plans),
    st.builds(StepBegun, times, st.integers(0, 3)),
    st.builds(StepEnded, times, st.integers(0, 3), detail=texts),
    st.builds(Settled, times),
    st.builds(Closed, times, detail=texts),
    st.builds(Asked, times, what=texts, why=texts),
    st.builds(Acknowledged, times, why=texts),
    st.builds(Observed, times, texts),
    st.builds(Enforced, times),
)


@given(openings | later_entries)
def test_an_entry_comes_back_from_its_text(entry: AnyEntry) -> None:
    text = encode(entry)
    assert text.isascii()
    back = decode(text)
    assert back == entry
    assert repr(back) == repr(entry)  # types too: 1 == True == 1.0


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(str))
def test_any_other_text_is_named_as_such(text: str) -> None:
    with pytest.raises(CodecError):
        decode(text)


def test_every_kind_of_step_has_its_name() -> None:
    assert sorted(STEPS) == sorted(kind.__name__ for kind in get_args(AnyStep))


def test_what_the_journal_of_version_1_says_is_still_read() -> None:
    assert (
        decode(
            '{"at":2.0,"plan":{"decision":{"wanted":"restart","action":"restart","coredump":false,'
            '"reason":"on-crash","relaunch":false},"steps":['
            '{"timeout":2.0,"on_failure":"fall-back","step":"EnsureStopped"},'
            '{"timeout":10.0,"on_failure":"fall-back","step":"SystemReset"},'
            '{"timeout":10.0,"on_failure":"preserve","step":"Cont"}]},"kind":"decided"}'
        )
        == decided()
    )


@st.composite
def histories(draw: st.DrawFn) -> list[AnyEntry]:
    """Draw an incident's entries, each in its place."""
    history: list[AnyEntry] = [draw(openings)]
    incident = fold("i", history)
    for entry in draw(st.lists(later_entries, max_size=8)):
        try:
            incident = apply(incident, entry)
        except IllegalTransitionError:
            continue
        history.append(entry)
    return history


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(histories(), max_size=5), st.randoms(use_true_random=False), times)
def test_totals_are_those_of_a_replay(
    drawn: list[list[AnyEntry]], random: Random, pruned_before: float
) -> None:
    async def append_all(journal: Journal, incident_id: str, history: list[AnyEntry]) -> None:
        left = history
        while left:
            count = random.randint(1, len(left))
            await journal.append(incident_id, *left[:count])
            left = left[count:]

    async def main(path: Path) -> None:
        with Journal.open(path) as journal:
            async with trio.open_nursery() as nursery:
                for number, history in enumerate(drawn):
                    nursery.start_soon(append_all, journal, f"i{number}", history)
            for number, history in enumerate(drawn):
                assert journal.history(f"i{number}") == history
                assert journal.incident(f"i{number}") == fold(f"i{number}", history)
            assert journal.totals() == replay(drawn)
            removed = await journal.prune(pruned_before)
            kept = {i.id for i in journal.incidents(limit=-1)}
            assert kept.isdisjoint(removed)
            assert kept.union(removed) == {f"i{number}" for number in range(len(drawn))}
            assert journal.totals() == replay(drawn)

    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, Path(directory) / "journal.sqlite")
