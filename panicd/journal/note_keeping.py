"""How notes begin: what a killed panicd left goes into the journal."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from panicd.host.logs import get_logger
from panicd.journal import database as journal_database
from panicd.journal.chronicle import Chronicle, Keeping
from panicd.journal.codec import CodecError, decode
from panicd.journal.journal import Journal, JournalDamagedError, JournalError
from panicd.journal.notes import Note, Notes, NotesError
from panicd.rules.incident import AnyEntry
from panicd.rules.settings import RecordFirst

Entries = tuple[AnyEntry, ...]


class Kept(NamedTuple):
    """The notes from now on.

    Attributes:
        notes: None: nothing is noted, so that panicd acts when the journal is on the disk.
        unwritten: entries of incidents that a killed panicd noted and the journal can't take yet.
    """

    notes: Notes | None
    unwritten: Mapping[str, Entries]


def keep_notes(control_socket: Path, journal: Journal, first: RecordFirst) -> Kept:
    """Write what a killed panicd noted, and note from now on; before the first ``append``.

    What can't be written stays noted, and nothing is added to it until it is written.

    Args:
        control_socket: beside which the notes are, in the runtime directory.
        journal: which they are for.
        first: where a panic's first entries go; with the disk, only old notes are written.

    Returns:
        The notes; the log tells why there are none, if it is not so configured.

    Raises:
        JournalError: the journal can't be read.
    """
    path = control_socket.with_suffix(".notes")
    if first is RecordFirst.DISK and not path.exists():
        return Kept(None, {})
    log = get_logger(notes=str(path))
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        notes = Notes.open(path, journal.path.absolute())
    except (OSError, NotesError) as error:
        log.warning("panicd waits for the disk before it acts", why=str(error))
        return Kept(None, {})
    new = _not_in(journal, notes)
    try:
        journal.take_up(new)
    except JournalError as error:
        log.critical("what a killed panicd noted can't be written", problem=str(error))
    else:
        for incident_id in new:
            log.warning("panicd was killed before the disk had this", incident=incident_id)
            notes.written(incident_id)
        new = {}
    if first is RecordFirst.DISK:
        notes.end()
        if notes.are_all_written:
            notes.close()
            path.unlink()
            return Kept(None, {})
    return Kept(notes, new)


def open_chronicles(
    journal: Journal, unwritten: Mapping[str, Entries], keeping: Keeping
) -> list[Chronicle]:
    """Return the records of all open incidents, with those that are only noted.

    Raises:
        JournalError: the journal can't be read.
    """
    known = [Chronicle(incident, keeping) for incident in journal.load_open()]
    return known + [Chronicle.left(*each, keeping) for each in unwritten.items()]


def _not_in(journal: Journal, notes: Notes) -> dict[str, Entries]:
    """Return what the journal has not; the rest is written, or no panicd's of this version."""
    new = {}
    with journal_database.reader(journal.path) as database:
        for note in notes.left:
            if journal_database.has(database, note.incident_id):
                notes.written(note.incident_id)
            elif (entries := _read(note)) is not None:
                new[note.incident_id] = entries
    return new


def _read(note: Note) -> Entries | None:
    try:
        entries = tuple(map(decode, note.entries))
        journal_database.fold(note.incident_id, entries)
    except (CodecError, JournalDamagedError) as error:
        log = get_logger(incident=note.incident_id)
        log.critical("what a killed panicd noted can't be read", problem=str(error))
        return None
    return entries
