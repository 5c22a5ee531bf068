"""The journal's database: its schema, what is written in one transaction, what is read.

Everything here is synchronous and works on a connection that it is given. Faults of SQLite's come
out as ``JournalError``; misuse of it is a bug and comes out as it is.
"""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

from panicd.journal.codec import (
    CodecError,
    decode,
    decode_operation,
    encode,
    encode_operation,
)
from panicd.journal.error import JournalDamagedError, JournalError, faults_named
from panicd.journal.schema import MIGRATIONS
from panicd.journal.signatures import hash_of, keep
from panicd.journal.totals import Total, Totals, collect, increments
from panicd.rules.incident import AnyEntry, IllegalTransitionError, Incident, Opened, apply
from panicd.rules.notification import notice_of
from panicd.rules.operation import Operation, over

ROWS_AT_ONCE: Final = 200
"""Rows inserted by one statement; SQLite before 3.32 takes 999 parameters."""

BUSY_TIMEOUT: Final = 2.0
"""Seconds that SQLite waits for another program's lock, such as the sqlite3 shell's."""


ACKNOWLEDGED: Final = '"kind":"acknowledged"'
"""What the body of an ``Acknowledged`` has in it and no other: a text's quotes are escaped."""


class Stored(NamedTuple):
    """An incident as the journal has it (None: not at all), and the number of its entries."""

    incident: Incident | None
    length: int


# Opening.


def connect(path: Path) -> sqlite3.Connection:
    """Return the writer's connection, its schema up to date; any thread may go on with it.

    Raises:
        JournalDamagedError: SQLite finds the database damaged, or it is none.
        JournalError: it can't be opened, or was written by a newer panicd.
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
        database.execute("PRAGMA temp_store = MEMORY")  # /tmp may be full, or not for writing
        complaints = [
            " ".join(text.split()) for (text,) in database.execute("PRAGMA quick_check(3)")
        ]
        if complaints != ["ok"]:
            raise JournalDamagedError(f"{path}: {'; '.join(complaints)}")
        _migrate(database, version)
        undo.pop_all()
    return database


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
    """Commit at the end; roll back where that, or anything before it, fails."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        # After some failures SQLite has rolled back already (lang_transaction.html, section 3).
        if database.in_transaction:
            database.execute("ROLLBACK")


def _migrate(database: sqlite3.Connection, version: int) -> None:
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        with transaction(database):
            for statement in statements:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {number}")


# Writing.


class Batch:
    """Entries that are written in one transaction, with what they add to the totals.

    Args:
        database: in a transaction.
        known: incidents as they are in it, those that go on; others are looked up.
        channels: by which notifications are to be delivered.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        known: Mapping[str, Stored],
        channels: Sequence[str] = (),
    ) -> None:
        self._database = database
        self._known = known
        self._channels = channels
        self.notifications: list[tuple[object, ...]] = []
        self.changed: dict[str, Stored] = {}
        self._incidents: list[tuple[object, ...]] = []
        self._ends: list[tuple[object, ...]] = []
        self._entries: list[tuple[object, ...]] = []
        self._signatures: list[tuple[str | bytes, str]] = []
        self._restarts: list[tuple[object, ...]] = []
        self._operations: list[tuple[object, ...]] = []
        self._counts: Counter[tuple[Total, str]] = Counter()

    def add(self, incident_id: str, entries: Sequence[AnyEntry]) -> None:
        """Take in entries of an incident: all, or none where this raises.

        Raises:
            IllegalTransitionError: one has no place in the incident.
            JournalDamagedError: what the journal has of the incident can't be read.
        """
        if not entries:
            return
        before = self._before(incident_id, entries[0])
        incident, position = before
        counts: Counter[tuple[Total, str]] = Counter()
        rows: list[tuple[object, ...]] = []
        told: list[tuple[object, ...]] = []
        for entry in entries:
            after = _follow(incident_id, incident, entry)
            for total, label, amount in increments(incident, entry):
                counts[total, label] += amount
            rows.append((_column(incident_id), position, encode(entry)))
            if notice_of(incident, entry) is not None:
                told += [(channel, incident_id, position) for channel in self._channels]
            incident = after
            position += 1
        assert incident is not None, "_follow returns one"
        opened = incident.opened
        if before.incident is None:
            self._incidents.append(
                (
                    _column(incident_id),
                    _column(opened.domain),
                    _column(opened.uuid),
                    opened.at,
                    _column(opened.key),
                )
            )
        if (known_by := hash_of(incident)) != hash_of(before.incident):
            self._signatures.append((_column(incident_id), known_by))
        ended_before = before.incident is not None and not before.incident.is_open
        if incident.closed is not None and not ended_before:
            self._ends.append((incident.closed.at, _column(incident_id)))
            if incident.restarted_at is not None:
                self._restarts.append((_column(opened.domain_key), incident.restarted_at))
        self._entries += rows
        self.notifications += told
        self._counts.update(counts)
        self.changed[incident_id] = Stored(incident, position)

    def add_operation(self, operation: Operation) -> None:
        """Take in what an operator asked."""
        self._operations.append((operation.at, encode_operation(operation)))

    def remove_operations(self, positions: Sequence[int]) -> None:
        """Remove what operators asked before, by its positions."""
        rows = [(position,) for position in positions]
        self._database.executemany("DELETE FROM operation WHERE position = ?", rows)

    def _before(self, incident_id: str, first: AnyEntry) -> Stored:
        known = self.changed.get(incident_id) or self._known.get(incident_id)
        if known is not None:
            return known
        # An id that is used twice is refused by the primary key: one query the less.
        return Stored(None, 0) if isinstance(first, Opened) else stored(self._database, incident_id)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not self.changed and not self._operations

    def write(self) -> None:
        """Write everything that was taken in."""
        _insert(
            self._database, "incident (id, domain, uuid, opened_at, domain_key)", self._incidents
        )
        self._database.executemany("UPDATE incident SET closed_at = ? WHERE id = ?", self._ends)
        _insert(self._database, "entry (incident, position, body)", self._entries)
        _insert(self._database, "restart (domain_key, at)", self._restarts)
        keep(self._database, self._signatures)
        _insert(self._database, "operation (at, body)", self._operations)
        _insert(self._database, "notification (channel, incident, position)", self.notifications)
        _insert(
            self._database,
            "total (name, label, value)",
            [(total, _column(label), amount) for (total, label), amount in self._counts.items()],
            "ON CONFLICT DO UPDATE SET value = value + excluded.value",
        )


def _insert(
    database: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]], tail: str = ""
) -> None:
    """Insert rows, many at a time.

    Each execution lets go of the interpreter, and a busy event loop keeps it for up to
    ``sys.getswitchinterval``: a row each would make a large batch wait that often.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        places = ", ".join([f"({', '.join('?' * len(some[0]))})"] * len(some))
        # S608: names and clauses come from this module, values go into the places.
        database.execute(
            f"INSERT INTO {table} VALUES {places} {tail}",  # noqa: S608 - as said above
            list(chain(*some)),
        )


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


def history(database: sqlite3.Connection, incident_id: str) -> list[AnyEntry]:
    """Return an incident's entries in their order; none where there is no such incident.

    Raises:
        JournalDamagedError: an entry is missing or unreadable.
    """
    rows = database.execute(
        "SELECT position, CAST(body AS BLOB) FROM incident LEFT JOIN entry ON incident = id"
        " WHERE id = ? ORDER BY position",
        (_column(incident_id),),
    )
    return _entries(incident_id, rows)


def stored(database: sqlite3.Connection, incident_id: str) -> Stored:
    """Return an incident as it is in the journal.

    Raises:
        JournalDamagedError: an entry is missing, unreadable, or has no place in the incident.
    """
    entries = history(database, incident_id)
    return Stored(_fold(incident_id, entries), len(entries))


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
    # Not named where it is not asked for: a journal that no newer daemon has had yet has none.
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
            "domain": None if domain is None else _column(domain),
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
        incident = _fold(incident_id, _entries(incident_id, (row[1:] for row in group)))
        assert incident is not None, "_entries refuses an incident without any"
        found.append(incident)
    return found


def totals(database: sqlite3.Connection) -> Totals:
    """Return every total.

    Raises:
        JournalDamagedError: one has a name or label that there is none of.
    """
    rows = database.execute("SELECT name, label, value FROM total")
    try:
        return collect({(Total(name), text_of(label)): value for name, label, value in rows})
    except ValueError as error:
        raise JournalDamagedError(f"totals: {error}") from None


def restarts(database: sqlite3.Connection, domain: str, since: float) -> tuple[float, ...]:
    """Return when panicd restarted a domain, the oldest first."""
    rows = database.execute(
        "SELECT at FROM restart WHERE domain_key = ? AND at >= ? ORDER BY at",
        (_column(domain), since),
    )
    return tuple(at for (at,) in rows)


def operations(database: sqlite3.Connection) -> dict[int, Operation]:
    """Return what operators asked, by its position, in that order.

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
    """Return the positions of what operators asked that was over before a time.

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


def _fold(incident_id: str, entries: Sequence[AnyEntry]) -> Incident | None:
    incident = None
    for position, entry in enumerate(entries):
        try:
            incident = _follow(incident_id, incident, entry)
        except IllegalTransitionError as error:
            raise JournalDamagedError(
                f"incident {incident_id}: entry {position}: {error}"
            ) from None
    return incident


def _follow(incident_id: str, incident: Incident | None, entry: AnyEntry) -> Incident:
    """Return an incident with one more entry, which may be its first."""
    if incident is not None:
        return apply(incident, entry)
    if isinstance(entry, Opened):
        return Incident(incident_id, entry)
    raise IllegalTransitionError(f"{incident_id}: {entry.kind} before it was opened")


def _column(text: str) -> str | bytes:
    """Return a text as SQLite takes it: one with lone surrogates is no UTF-8, so its bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def text_of(column: str | bytes) -> str:
    """Return the text that ``_column`` made this of."""
    return column if isinstance(column, str) else column.decode(errors="surrogatepass")
