"""How intents begin: those of a killed panicd go into the journal."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from panicd.host.logs import get_logger
from panicd.journal import database as journal_database
from panicd.journal.chronicle import Chronicle, Keeping
from panicd.journal.codec import CodecError, decode
from panicd.journal.file import beside
from panicd.journal.intents import Intent, Intents, IntentsError
from panicd.journal.journal import Journal, JournalDamagedError, JournalError
from panicd.rules.incident import AnyEntry
from panicd.rules.settings import RecordFirst

Entries = tuple[AnyEntry, ...]


class Kept(NamedTuple):
    """The intents from now on.

    Attributes:
        intents: None: there are none, so panicd acts when the journal is on the disk.
        unwritten: the entries that a killed panicd intended and the journal can't take yet.
    """

    intents: Intents | None
    unwritten: Mapping[str, Entries]


def keep_intents(control_socket: Path, journal: Journal, first: RecordFirst) -> Kept:
    """Write what a killed panicd intended; before the first ``append``.

    What can't be written stays there, and nothing is added to it until it is written.

    Args:
        control_socket: beside which the intents are, in the runtime directory.
        journal: which they are for.
        first: where a panic's first entries go; with the disk, only old intents are written.

    Returns:
        The intents; the log tells why there are none, if it is not so configured.

    Raises:
        JournalError: the journal can't be read.
    """
    path = beside(control_socket, ".intents")
    if first is RecordFirst.DISK and not path.exists():
        return Kept(None, {})
    log = get_logger(intents=str(path))
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        intents = Intents.open(path, journal.path.absolute())
    except (OSError, IntentsError) as error:
        log.warning("panicd waits for the disk before it acts", why=str(error))
        return Kept(None, {})
    new = _not_in(journal, intents)
    try:
        journal.take_up(new)
    except JournalError as error:
        log.critical("what a killed panicd intended can't be written", problem=str(error))
    else:
        for incident_id in new:
            log.warning("panicd was killed before the disk had this", incident=incident_id)
            intents.written(incident_id)
        new = {}
    if first is RecordFirst.DISK:
        intents.end()
        if intents.are_all_written:
            intents.close()
            path.unlink()
            return Kept(None, {})
    return Kept(intents, new)


def open_chronicles(
    journal: Journal, unwritten: Mapping[str, Entries], keeping: Keeping
) -> list[Chronicle]:
    """Return the records of all open incidents, with those that are only intents.

    Raises:
        JournalError: the journal can't be read.
    """
    known = [Chronicle(incident.id, incident, keeping) for incident in journal.load_open()]
    return known + [Chronicle.left(*each, keeping) for each in unwritten.items()]


def _not_in(journal: Journal, intents: Intents) -> dict[str, Entries]:
    """Return what the journal has not; the rest is written, or no panicd's of this version."""
    new = {}
    with journal_database.reader(journal.path) as database:
        for intent in intents.left:
            if journal_database.has(database, intent.incident_id):
                intents.written(intent.incident_id)
            elif (entries := _read(intent)) is not None:
                new[intent.incident_id] = entries
    return new


def _read(intent: Intent) -> Entries | None:
    try:
        entries = tuple(map(decode, intent.entries))
        journal_database.fold(intent.incident_id, entries)
    except (CodecError, JournalDamagedError) as error:
        log = get_logger(incident=intent.incident_id)
        log.critical("what a killed panicd intended can't be read", problem=str(error))
        return None
    return entries
