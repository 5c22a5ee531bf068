"""The journal's database: its schema, what one transaction writes, what is read.

Everything here is synchronous and works on a connection that it gets. SQLite's faults come out as
``JournalError``; wrong use of SQLite is a bug and comes out as it is.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

from panicd.journal.codec import (
    CodecError,
    decode,
    decode_operation,
)
from panicd.journal.error import JournalDamagedError, JournalError, faults_named
from panicd.journal.file import beside
from panicd.journal.schema import MIGRATIONS, WRITTEN
from panicd.journal.totals import Total, Totals, collect
from panicd.rules.incident import AnyEntry, IllegalTransitionError, Incident, Opened, apply
from panicd.rules.operation import Operation, over

BUSY_TIMEOUT: Final = 2.0
"""Seconds that SQLite waits for another program's lock, such as the sqlite3 shell's."""


LOG_SPACE: Final = 1 << 22
"""Bytes of SQLite's log that are there from the start. A commit into a log that must grow waits for
the file system's own journal too."""
MOST_IN_LOG: Final = 4000
"""Pages in the log after which a commit copies them into the database, if ``tidy`` has not."""

ACKNOWLEDGED: Final = '"kind":"acknowledged"'
"""What only the body of an ``Acknowledged`` has in it: quotes in a text are escaped."""


class Stored(NamedTuple):
    """An incident as the journal has it (None: not at all), and the number of its entries."""

    incident: Incident | None
    length: int

    @property
    def goes_on(self) -> bool:
        """Whether more entries may follow."""
        return self.incident is not None and self.incident.is_open


# Opening.


def connect(path: Path) -> sqlite3.Connection:
    """Return the writer's connection, with its schema up to date; any thread may use it then.

    Raises:
        JournalDamagedError: SQLite finds the database damaged, or it is none.
        JournalError: it can't be opened, or a newer panicd wrote it.
    """
    with contextlib.ExitStack() as undo, faults_named(path):
        database = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        undo.callback(database.close)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise JournalError(
                f"{path}: written by a newer panicd: schema version {version}, "
                f"this one knows {len(MIGRATIONS)}"
            )
        (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalError(f"{path}: its file system has no shared memory for SQLite's WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA temp_store = MEMORY")  # /tmp may be full or read-only
        complaints = [
            " ".join(text.split()) for (text,) in database.execute("PRAGMA quick_check(3)")
        ]
        if complaints != ["ok"]:
            raise JournalDamagedError(f"{path}: {'; '.join(complaints)}")
        database.execute(f"PRAGMA wal_autocheckpoint = {MOST_IN_LOG}")
        _migrate(database, version)
        _check(database, path)
        _make_room(beside(path, "-wal"))
        undo.pop_all()
    return database


def _make_room(log: Path) -> None:
    """Extend the log by zeros, which SQLite takes for no frames (fileformat2.html, section 4.1)."""
    with contextlib.suppress(OSError), log.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        wanted = max(0, LOG_SPACE - end)
        try:
            complete = file.write(bytes(wanted)) == wanted
        except OSError:
            complete = False
        if complete:
            os.fsync(file.fileno())
        else:  # the disk is full, and others may need its last bytes more
            file.truncate(end)


def tidy(database: sqlite3.Connection) -> None:
    """Copy the log into the database, as far as no reader needs it."""
    with contextlib.suppress(sqlite3.Error):  # the next commit finds out what is wrong
        database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


@contextlib.contextmanager
def reader(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a read-only connection for a while.

    Raises:
        JournalError: the database can't be opened, or what is done with it fails.
    """
    address = f"file:{quote_from_bytes(bytes(path.absolute()))}?mode=ro"
    with (
        faults_named(path),
        contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT)) as database,
    ):
        database.execute("PRAGMA temp_store = MEMORY")  # as above
        yield database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end; roll back if that, or anything before it, fails."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        # After some failures SQLite has already rolled back (lang_transaction.html, section 3).
        if database.in_transaction:
            database.execute("ROLLBACK")


def _migrate(database: sqlite3.Connection, version: int) -> None:
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        with transaction(database):
            for statement in statements:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {number}")


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Check that all values are such as panicd writes.

    Raises:
        JournalDamagedError: one is not.
    """
    for table, columns in WRITTEN.items():
        sound = " AND ".join(f"({each.format(column)})" for column, each in columns.items())
        query = f"SELECT 1 FROM {table} WHERE NOT ({sound}) LIMIT 1"  # noqa: S608 - constants
        if database.execute(query).fetchone():
            raise JournalDamagedError(f"{path}: {table}: a value that panicd never writes")


# Pruning.


def prune(database: sqlite3.Connection, before: float, limit: int) -> list[str]:
    """Remove at most ``limit`` incidents closed before a time, and every restart that old.

    Returns:
        The ids of the incidents.
    """
    database.execute("DELETE FROM restart WHERE at < ?", (before,))
    ids = database.execute(
        "SELECT id FROM incident WHERE closed_at < ? ORDER BY opened_at LIMIT ?", (before, limit)
    ).fetchall()
    database.executemany("DELETE FROM entry WHERE incident = ?", ids)
    database.executemany("DELETE FROM notification WHERE incident = ?", ids)
    database.executemany("DELETE FROM signature WHERE incident = ?", ids)
    database.executemany("DELETE FROM incident WHERE id = ?", ids)
    return [text_of(column) for (column,) in ids]


# Reading.


def has(database: sqlite3.Connection, incident_id: str) -> bool:
    """True if there is such an incident."""
    query = "SELECT 1 FROM incident WHERE id = ?"
    return database.execute(query, (column_of(incident_id),)).fetchone() is not None


def history(database: sqlite3.Connection, incident_id: str) -> list[AnyEntry]:
    """Return an incident's entries in their order; none where there is no such incident.

    Raises:
        JournalDamagedError: an entry is missing or unreadable.
    """
    rows = database.execute(
        "SELECT position, CAST(body AS BLOB) FROM incident LEFT JOIN entry ON incident = id"
        " WHERE id = ? ORDER BY position",
        (column_of(incident_id),),
    )
    return _entries(incident_id, rows)


def stored(database: sqlite3.Connection, incident_id: str) -> Stored:
    """Return an incident as it is in the journal.

    Raises:
        JournalDamagedError: an entry is missing, unreadable, or has no place in the incident.
    """
    entries = history(database, incident_id)
    return Stored(fold(incident_id, entries), len(entries))


def incidents(
    database: sqlite3.Connection,
    *,
    domain: str | None,
    open_only: bool,
    unacknowledged: bool = False,
    since: float | None,
    until: float | None,
    limit: int,
    signature: str | None = None,
) -> list[Incident]:
    """Return incidents, the newest first; the arguments are ``Journal.incidents``'s.

    Raises:
        JournalDamagedError: an entry is missing, unreadable, or has no place in its incident.
    """
    # Named only if it is asked for: a journal that no newer daemon has opened yet has none.
    same = "1" if signature is None else "id IN (SELECT incident FROM signature WHERE hash = :hash)"
    rows = database.execute(
        f"""SELECT id, position, CAST(body AS BLOB) FROM (
            SELECT id, opened_at FROM incident
            WHERE (:domain IS NULL OR :domain IN (domain, uuid))
                AND (closed_at IS NULL OR NOT :open_only)
                AND NOT (:unacknowledged AND EXISTS (
                    SELECT 1 FROM entry WHERE incident = id AND instr(body, :acknowledged)))
                AND (:since IS NULL OR opened_at >= :since)
                AND (:until IS NULL OR opened_at < :until)
                AND {same}
            ORDER BY opened_at DESC, id DESC LIMIT :limit
        ) LEFT JOIN entry ON incident = id ORDER BY opened_at DESC, id DESC, position""",  # noqa: S608 - constants
        {
            "domain": None if domain is None else column_of(domain),
            "open_only": open_only,
            "unacknowledged": unacknowledged,
            "acknowledged": ACKNOWLEDGED,
            "since": since,
            "until": until,
            "hash": signature,
            "limit": limit,
        },
    )
    found = []
    for column, group in groupby(rows, key=lambda row: row[0]):
        incident_id = text_of(column)
        incident = fold(incident_id, _entries(incident_id, (row[1:] for row in group)))
        assert incident is not None, "_entries refuses an incident without any"
        found.append(incident)
    return found


def totals(database: sqlite3.Connection) -> Totals:
    """Return every total.

    Raises:
        JournalDamagedError: one has an unknown name or label.
    """
    rows = database.execute("SELECT name, label, value FROM total")
    try:
        return collect({(Total(name), text_of(label)): value for name, label, value in rows})
    except ValueError as error:
        raise JournalDamagedError(f"totals: {error}") from None


def operations(database: sqlite3.Connection) -> dict[int, Operation]:
    """Return operators' requests by their positions, in order.

    Raises:
        JournalDamagedError: one can't be read.
    """
    rows = database.execute("SELECT position, body FROM operation ORDER BY position")
    found = {}
    for position, body in rows:
        try:
            found[position] = decode_operation(body)
        except CodecError as error:
            raise JournalDamagedError(f"operation {position}: {error}") from None
    return found


def operations_over(path: Path, before: float) -> list[int]:
    """Return the positions of operators' requests that were over before a time.

    Raises:
        JournalDamagedError: one can't be read.
        JournalError: the journal can't be read.
    """
    with reader(path) as database:
        return over(operations(database), before)


def all_restarts(database: sqlite3.Connection) -> dict[str, tuple[float, ...]]:
    """Return every restart's time, by domain key; the oldest first."""
    found: dict[str, list[float]] = {}
    for key, at in database.execute("SELECT domain_key, at FROM restart ORDER BY at"):
        found.setdefault(text_of(key), []).append(at)
    return {key: tuple(times) for key, times in found.items()}


def _entries(incident_id: str, rows: Iterable[tuple[int | None, bytes]]) -> list[AnyEntry]:
    entries = []
    for expected, (position, body) in enumerate(rows):
        if position != expected:
            raise JournalDamagedError(f"incident {incident_id}: entry {expected} is missing")
        try:
            entries.append(decode(body.decode()))
        except (CodecError, UnicodeDecodeError) as error:
            raise JournalDamagedError(
                f"incident {incident_id}: entry {expected}: {error}"
            ) from None
    return entries


def fold(incident_id: str, entries: Sequence[AnyEntry]) -> Incident | None:
    """Return an incident from its entries; None if there are none."""
    incident = None
    for position, entry in enumerate(entries):
        try:
            incident = follow(incident_id, incident, entry)
        except IllegalTransitionError as error:
            raise JournalDamagedError(
                f"incident {incident_id}: entry {position}: {error}"
            ) from None
    return incident


def follow(incident_id: str, incident: Incident | None, entry: AnyEntry) -> Incident:
    """Return an incident with one more entry, which may be its first."""
    if incident is not None:
        return apply(incident, entry)
    if isinstance(entry, Opened):
        return Incident(incident_id, entry)
    raise IllegalTransitionError(f"{incident_id}: {entry.kind} before it was opened")


def column_of(text: str) -> str | bytes:
    """Return a text as SQLite takes it: one with lone surrogates is not UTF-8, so its bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def text_of(column: str | bytes) -> str:
    """Return the text that ``column_of`` made this of.

    Raises:
        JournalDamagedError: it made it of none.
    """
    try:
        return column if isinstance(column, str) else column.decode(errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise JournalDamagedError(f"a text: {error}") from None
