"""The journal's file: whose it is, its schema, and what is made of one that is damaged."""

import resource
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
import trio

from panicd.journal import database as journal_database
from panicd.journal import journal as journal_module
from panicd.journal.codec import encode
from panicd.journal.database import LOG_SPACE
from panicd.journal.file import beside
from panicd.journal.journal import Journal, JournalDamagedError, JournalError, JournalInUseError
from panicd.journal.schema import MIGRATIONS
from panicd.rules.incident import Outcome, Repeated, StepEnded
from tests.journal.conftest import PATIENCE
from tests.journal.journals import RESTART, change, opened
from tests.parts.patience import fail_after

pytestmark = pytest.mark.usefixtures("time_limit")


def spoil_a_page(path: Path, number: int) -> None:
    """Overwrite a page of the database, counted from 0; negative from the end."""
    size = 4096  # SQLite's default
    content = path.read_bytes()
    pages = [content[start : start + size] for start in range(0, len(content), size)]
    pages[number] = b"\xa5" * size
    path.write_bytes(b"".join(pages))


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

    def test_its_log_has_room_from_the_start(self, journal: Journal) -> None:
        log = beside(journal.path, "-wal")
        assert log.stat().st_size == LOG_SPACE
        assert log.stat().st_blocks * 512 >= LOG_SPACE  # no hole: that would be as slow

    async def test_its_log_is_tidied_up_when_nobody_waits(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_module, "IDLE", 0.0)
        monkeypatch.setattr(journal_module, "TIDIED_AFTER", 2)
        await journal.append("i1", *RESTART)
        before = journal.path.stat()
        await journal.append("i2", opened())
        with fail_after(PATIENCE):
            while journal.path.stat().st_mtime_ns == before.st_mtime_ns:
                await trio.lowlevel.checkpoint()
        assert journal.history("i1") == [*RESTART]

    def test_log_without_room_is_left_as_it_is(self, path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_SPACE - 1, before[1]))
        try:
            with Journal.open(path):
                assert beside(path, "-wal").stat().st_size < LOG_SPACE // 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

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
            pytest.param(2, "main .* [Pp]age 3: ", id="sqlite complains"),  # small from 3.43 on
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

    @pytest.mark.parametrize(
        "damage",
        [
            "UPDATE incident SET opened_at = 'x'",
            "UPDATE incident SET closed_at = 1e99",
            "UPDATE restart SET at = x'00'",
            "UPDATE total SET value = -1",
            "UPDATE total SET value = 1e99",
            "UPDATE signature SET hash = x'ff'",
            "INSERT INTO operation VALUES (1, 'x', '')",
            "INSERT INTO notification VALUES ('hook', 'i1', 'x')",
        ],
    )
    async def test_what_panicd_never_writes_is_found_on_opening(
        self, path: Path, damage: str
    ) -> None:
        with Journal.open(path) as journal:
            await journal.append("i1", *RESTART)
        change(path, "INSERT INTO signature VALUES ('i1', 'x')")
        Journal.open(path).close()
        change(path, damage)
        with pytest.raises(JournalDamagedError, match="a value that panicd never writes"):
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
            (
                """UPDATE entry SET body = replace(body, '"at":2.0', '"at":2e99')""",
                "i1: entry 1: ValueError: the time 2e\\+99",
            ),
            (
                """UPDATE entry SET body = replace(body, '"timeout":', '"timeout":9e99')""",
                "i1: entry 1: ValueError: the number 9e9",
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


async def test_who_appends_waits_but_briefly_for_a_writer_that_is_held_up(path: Path) -> None:
    with Journal.open(path) as journal, closing(sqlite3.connect(path)) as other:
        await journal.append("i0", *RESTART)
        other.execute("BEGIN IMMEDIATE")
        written = trio.Event()
        began = trio.current_time()
        journal.append_soon("i1", RESTART, lambda _error: written.set())
        assert trio.current_time() - began < journal_database.BUSY_TIMEOUT / 2
        other.rollback()
        await written.wait()
