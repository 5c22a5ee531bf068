"""Which incidents were the same panic: by the signatures that the journal keeps beside them.

Weak signatures (``panicd.rules.signature``) are not kept here, as nothing is the same as they.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from panicd.journal.schema import DOMAIN_KEY
from panicd.rules.incident import Incident

_DOMAINS: Final = f"count(DISTINCT {DOMAIN_KEY})"
_NEWEST: Final = (
    "substr(max(printf('%020.6f', opened_at) || id), 21)"  # ids of one second have no order
)
_GROUP: Final = f"count(*), {_DOMAINS}, min(opened_at), max(opened_at), {_NEWEST}"


@dataclass(frozen=True, slots=True)
class Group:
    """The incidents of one signature.

    Attributes:
        signature: its hash.
        count: how many they are.
        domains: on how many domains.
        first_at: when the first began, of those that the journal still has; since the epoch.
        last_at: when the newest began.
        newest: the id of the newest.
    """

    signature: str
    count: int
    domains: int
    first_at: float
    last_at: float
    newest: str


def hash_of(incident: Incident | None) -> str:
    """Return the signature that an incident's panic is compared by; empty: none."""
    known = incident.signature if incident is not None else None
    return known.hash if known is not None else ""


def keep(database: sqlite3.Connection, rows: Sequence[tuple[str | bytes, str]]) -> None:
    """Write the signatures of incidents: for each its id, as in the database, and a hash."""
    database.executemany(
        "INSERT INTO signature (incident, hash) VALUES (?, ?)"
        " ON CONFLICT DO UPDATE SET hash = excluded.hash",
        rows,
    )


def groups(database: sqlite3.Connection, since: float, limit: int) -> list[Group]:
    """Return the signatures of incidents that began since a time, the latest seen first.

    Args:
        database: the journal's.
        since: in seconds since the epoch.
        limit: at most so many; negative for all.
    """
    rows = database.execute(
        f"SELECT hash, {_GROUP} FROM signature JOIN incident ON incident = id"  # noqa: S608 - constants
        " WHERE opened_at >= ? GROUP BY hash ORDER BY max(opened_at) DESC, hash LIMIT ?",
        (since, limit),
    )
    return [Group(*row) for row in rows]


def group(database: sqlite3.Connection, signature: str) -> Group | None:
    """Return the incidents of a signature; None if there are none, or the journal is older."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'signature'").fetchone():
        return None
    count, *rest = database.execute(
        f"SELECT {_GROUP} FROM signature JOIN incident ON incident = id WHERE hash = ?",  # noqa: S608 - as above
        (signature,),
    ).fetchone()
    return Group(signature, count, *rest) if count else None
