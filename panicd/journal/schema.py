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

FIRST_MOMENT: Final = -62_135_596_800.0
LAST_MOMENT: Final = 253_402_300_799.0
"""The years 1 to 9999, in seconds since the epoch: the moments that have a date."""

_PLAIN: Final = "typeof({0}) = 'text'"
_TEXT: Final = "typeof({0}) IN ('text', 'blob')"  # see ``database.column_of``
_COUNT: Final = "typeof({0}) = 'integer' AND {0} >= 0"
_MOMENT: Final = f"typeof({{0}}) = 'real' AND {{0}} BETWEEN {FIRST_MOMENT} AND {LAST_MOMENT}"

WRITTEN: Final[dict[str, dict[str, str]]] = {
    "incident": {
        "id": _PLAIN,
        **dict.fromkeys(("domain", "uuid", "domain_key"), _TEXT),
        "opened_at": _MOMENT,
        "closed_at": f"{{0}} IS NULL OR {_MOMENT}",
    },
    "entry": {"incident": _PLAIN, "position": _COUNT, "body": _PLAIN},
    "total": {"name": _PLAIN, "label": _TEXT, "value": _COUNT},
    "restart": {"domain_key": _TEXT, "at": _MOMENT},
    "operation": {"at": _MOMENT, "body": _PLAIN},
    "notification": {"channel": _PLAIN, "incident": _PLAIN, "position": _COUNT},
    "signature": {"incident": _PLAIN, "hash": _PLAIN},
}
"""What panicd writes into the columns: SQLite's own checks allow anything anywhere."""
