"""What decides whether an incident's evidence is kept, without reading its entries."""

import sqlite3

from panicd.journal.database import ACKNOWLEDGED, text_of
from panicd.journal.schema import DOMAIN_KEY
from panicd.rules.identity import owner_of
from panicd.rules.retention import Summary


def summaries(database: sqlite3.Connection) -> list[Summary]:
    """Return every incident, the oldest first."""
    rows = database.execute(
        f"""SELECT id, key, opened_at, closed_at,
            EXISTS (SELECT 1 FROM restart WHERE restart.domain_key = key AND at = closed_at),
            EXISTS (SELECT 1 FROM entry WHERE incident = id AND instr(body, :acknowledged))
        FROM (
            SELECT id, opened_at, closed_at, {DOMAIN_KEY} AS key FROM incident
        ) ORDER BY id""",  # noqa: S608 - a constant
        {"acknowledged": ACKNOWLEDGED},
    )
    return [
        Summary(
            text_of(name),
            text_of(key),
            opened_at,
            closed_at,
            restarted=bool(restarted),
            acknowledged=bool(seen),
            owner=owner_of(text_of(key)),
        )
        for name, key, opened_at, closed_at, restarted, seen in rows
    ]
