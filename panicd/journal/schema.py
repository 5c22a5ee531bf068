"""The schema of the journal's database, by its versions."""

from typing import Final

DOMAIN_KEY: Final = (
    "CASE WHEN domain_key != '' THEN domain_key WHEN uuid != '' THEN uuid ELSE domain END"
)
"""An incident's ``Opened.domain_key``, from a row of ``incident``."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE incident (
            id TEXT PRIMARY KEY,
            domain TEXT NOT NULL,
            uuid TEXT NOT NULL,
            opened_at REAL NOT NULL,
            closed_at REAL
        ) WITHOUT ROWID""",
        "CREATE INDEX incident_opened_at ON incident (opened_at)",
        """CREATE TABLE entry (
            incident TEXT NOT NULL,
            position INTEGER NOT NULL,
            body TEXT NOT NULL,
            PRIMARY KEY (incident, position)
        ) WITHOUT ROWID""",
        """CREATE TABLE total (
            name TEXT NOT NULL,
            label TEXT NOT NULL,
            value INTEGER NOT NULL,
            PRIMARY KEY (name, label)
        ) WITHOUT ROWID""",
        "CREATE TABLE restart (domain_key TEXT NOT NULL, at REAL NOT NULL)",
        "CREATE INDEX restart_by_domain ON restart (domain_key, at)",
    ),
    (
        """CREATE TABLE operation (
            position INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            body TEXT NOT NULL
        )""",
    ),
    (
        """CREATE TABLE notification (
            channel TEXT NOT NULL,
            incident TEXT NOT NULL,
            position INTEGER NOT NULL,
            PRIMARY KEY (channel, incident, position)
        ) WITHOUT ROWID""",
    ),
    ("ALTER TABLE incident ADD COLUMN domain_key TEXT NOT NULL DEFAULT ''",),
    (
        "CREATE TABLE signature (incident TEXT PRIMARY KEY, hash TEXT NOT NULL) WITHOUT ROWID",
        "CREATE INDEX signature_hash ON signature (hash)",
    ),
)
"""Statements that lead from each schema version to the next. Only ever add to them."""
