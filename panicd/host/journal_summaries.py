"""As much of every incident as tells whether its evidence is kept, without reading its entries."""

import sqlite3

from panicd.host.journal_database import ACKNOWLEDGED, text_of
from panicd.rules.retention import Summary


def summaries(database: sqlite3.Connection) -> list[Summary]:
    """Return every incident, the oldest first."""
    rows = database.execute(
        """SELECT id, CASE uuid WHEN '' THEN domain ELSE uuid END AS key, opened_at, closed_at,
            EXISTS (SELECT 1 FROM restart
                WHERE domain_key = CASE uuid WHEN '' THEN domain ELSE uuid END AND at = closed_at),
            EXISTS (SELECT 1 FROM entry WHERE incident = id AND instr(body, :acknowledged))
        FROM incident ORDER BY id""",
        {"acknowledged": ACKNOWLEDGED},
    )
    return [
        Summary(text_of(name), text_of(key), opened_at, closed_at, bool(restarted), bool(seen))
        for name, key, opened_at, closed_at, restarted, seen in rows
    ]
