"""Which incidents of the journal an operator means."""

import sqlite3


def called(database: sqlite3.Connection, text: str) -> list[str]:
    """Return the ids that begin with a text, or whose last part does; an exact match alone."""
    rows = database.execute(
        "SELECT id FROM incident WHERE substr(id, 1, length(?1)) = ?1 "
        "OR substr(id, instr(id, '-') + 1, length(?1)) = ?1 ORDER BY opened_at DESC LIMIT 8",
        (text,),
    )
    found = [incident_id for (incident_id,) in rows]
    return [text] if text in found else found


def newest(database: sqlite3.Connection) -> list[str]:
    """Return the id of the newest incident, if there is any."""
    rows = database.execute("SELECT id FROM incident ORDER BY opened_at DESC, id DESC LIMIT 1")
    return [incident_id for (incident_id,) in rows]
