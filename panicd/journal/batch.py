"""What one transaction writes: entries, and what follows from them.

Everything here is synchronous and works on a connection that it is given.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Final

from panicd.journal.codec import encode, encode_operation
from panicd.journal.database import Stored, column_of, fold, follow, stored
from panicd.journal.ready import Ready
from panicd.journal.signatures import hash_of, keep
from panicd.journal.totals import Total, increments
from panicd.rules.incident import AnyEntry, Incident, Opened
from panicd.rules.notification import notice_of
from panicd.rules.operation import Operation

ROWS_AT_ONCE: Final = 200
"""Rows inserted by one statement; SQLite before 3.32 takes 999 parameters."""


class Begun:
    """An incident of which the journal has only the first entries, which were ready."""

    goes_on = True

    def __init__(self, incident_id: str, entries: Ready) -> None:
        self._id = incident_id
        self._entries = entries
        self.length = len(entries)

    @cached_property
    def incident(self) -> Incident | None:
        """The incident with them; made when the next entries come."""
        return fold(self._id, self._entries)


class Batch:
    """Entries that one transaction writes, with what they add to the totals.

    Args:
        database: in a transaction.
        known: open incidents as they are in it; others are looked up.
        channels: by which notifications are to be delivered.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        known: Mapping[str, Stored | Begun],
        channels: Sequence[str] = (),
    ) -> None:
        self._database = database
        self._known = known
        self._channels = channels
        self.notifications: list[tuple[object, ...]] = []
        self.changed: dict[str, Stored | Begun] = {}
        self._incidents: list[tuple[object, ...]] = []
        self._ends: list[tuple[object, ...]] = []
        self._entries: list[tuple[object, ...]] = []
        self._signatures: list[tuple[str | bytes, str]] = []
        self._restarts: list[tuple[object, ...]] = []
        self._operations: list[tuple[object, ...]] = []
        self._counts: Counter[tuple[Total, str]] = Counter()

    def add(self, incident_id: str, entries: Sequence[AnyEntry]) -> None:
        """Take in entries of an incident: all, or none if this raises.

        Raises:
            IllegalTransitionError: one has no place in the incident.
            JournalDamagedError: the journal's record of the incident can't be read.
        """
        if not entries:
            return
        if isinstance(entries, Ready):
            self._begin(incident_id, entries)
            return
        before = self._before(incident_id, entries[0])
        incident, position = before.incident, before.length
        counts: Counter[tuple[Total, str]] = Counter()
        rows: list[tuple[object, ...]] = []
        told: list[tuple[object, ...]] = []
        for entry in entries:
            after = follow(incident_id, incident, entry)
            for total, label, amount in increments(incident, entry):
                counts[total, label] += amount
            rows.append((column_of(incident_id), position, encode(entry)))
            if notice_of(incident, entry) is not None:
                told += [(channel, incident_id, position) for channel in self._channels]
            incident = after
            position += 1
        assert incident is not None, "follow returns one"
        opened = incident.opened
        if before.incident is None:
            self._open(incident_id, opened, opened.at)
        if (known_by := hash_of(incident)) != hash_of(before.incident):
            self._signatures.append((column_of(incident_id), known_by))
        ended_before = before.incident is not None and not before.incident.is_open
        if incident.closed is not None and not ended_before:
            self._ends.append((incident.closed.at, column_of(incident_id)))
            if incident.restarted_at is not None:
                self._restarts.append((column_of(opened.domain_key), incident.restarted_at))
        self._entries += rows
        self.notifications += told
        self._counts.update(counts)
        self.changed[incident_id] = Stored(incident, position)

    def _begin(self, incident_id: str, entries: Ready) -> None:
        """Take in the first entries of an incident, which are known completely."""
        self._open(incident_id, entries.opened, entries.at)
        name = column_of(incident_id)
        self._entries += [(name, i, text) for i, text in enumerate(entries.texts)]
        for position in entries.told:
            self.notifications += [(channel, incident_id, position) for channel in self._channels]
        for count, amount in entries.counts:
            self._counts[count] += amount
        self.changed[incident_id] = Begun(incident_id, entries)

    def _open(self, incident_id: str, opened: Opened, at: float) -> None:
        columns = (incident_id, opened.domain, opened.uuid, opened.key)
        name, domain, uuid, key = map(column_of, columns)
        self._incidents.append((name, domain, uuid, at, key))

    def add_operation(self, operation: Operation) -> None:
        """Take in an operator's request."""
        self._operations.append((operation.at, encode_operation(operation)))

    def remove_operations(self, positions: Sequence[int]) -> None:
        """Remove operators' earlier requests, by their positions."""
        rows = [(position,) for position in positions]
        self._database.executemany("DELETE FROM operation WHERE position = ?", rows)

    def _before(self, incident_id: str, first: AnyEntry) -> Stored | Begun:
        known = self.changed.get(incident_id) or self._known.get(incident_id)
        if known is not None:
            return known
        # The primary key refuses an id that is used twice, which saves a query.
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
            [(total, column_of(label), amount) for (total, label), amount in self._counts.items()],
            "ON CONFLICT DO UPDATE SET value = value + excluded.value",
        )


def _insert(
    database: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]], tail: str = ""
) -> None:
    """Insert rows, many at a time.

    Each execution releases the interpreter, and a busy event loop keeps it for up to
    ``sys.getswitchinterval``. With one execution for each row, a large batch would wait that often.
    """
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        places = ", ".join([f"({', '.join('?' * len(some[0]))})"] * len(some))
        # S608: names and clauses come from this module, values go into the places.
        database.execute(
            f"INSERT INTO {table} VALUES {places} {tail}",  # noqa: S608 - as said above
            list(chain(*some)),
        )
