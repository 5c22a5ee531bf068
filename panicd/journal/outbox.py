"""The journal's notifications: which are still to be delivered, and by which channel.

They are written in the transaction of the entries that they tell of, and removed when they were
delivered. So none is lost, whatever ends the daemon in between; one may come twice.
"""

import sqlite3
from collections.abc import Collection
from typing import Final, NamedTuple

AT_ONCE: Final = 500
"""How many notifications are looked at together; the others wait in the journal."""


class Pending(NamedTuple):
    """A notification that is to be delivered.

    Attributes:
        incident: the id of the incident that it is about.
        position: of the entry that it tells of, in the incident's history.
    """

    incident: str
    position: int


def pending(database: sqlite3.Connection, channel: str) -> list[Pending]:
    """Return the next notification of each incident, the oldest first."""
    rows = database.execute(
        "SELECT incident, MIN(position) FROM notification WHERE channel = ?"
        " GROUP BY incident ORDER BY incident LIMIT ?",
        (channel, AT_ONCE),
    )
    return [Pending(incident, position) for incident, position in rows]


def remove(database: sqlite3.Connection, channel: str, delivered: Pending) -> None:
    """Remove a notification."""
    database.execute(
        "DELETE FROM notification WHERE channel = ? AND incident = ? AND position = ?",
        (channel, *delivered),
    )


def keep_only(database: sqlite3.Connection, channels: Collection[str]) -> None:
    """Remove the notifications of all other channels."""
    places = ", ".join("?" * len(channels))
    # S608: only placeholders are put into the text.
    database.execute(
        f"DELETE FROM notification WHERE channel NOT IN ({places})",  # noqa: S608 - as said above
        tuple(channels),
    )
