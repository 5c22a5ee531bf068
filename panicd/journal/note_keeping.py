"""How notes begin: what a killed panicd left goes into the journal."""

from pathlib import Path

from panicd.host.logs import get_logger
from panicd.journal.codec import CodecError
from panicd.journal.journal import Journal, JournalError
from panicd.journal.notes import Notes, NotesError
from panicd.rules.incident import IllegalTransitionError
from panicd.rules.settings import RecordFirst


def keep_notes(control_socket: Path, journal: Journal, first: RecordFirst) -> Notes | None:
    """Write what a killed panicd noted, and note from now on; before the first ``append``.

    Args:
        control_socket: beside which the notes are, in the runtime directory.
        journal: which they are for.
        first: where a panic's first entries go; with the disk, only old notes are written.

    Returns:
        None: nothing is noted, so that panicd acts when the journal is on the disk. The log tells
        why, if it is not so configured.
    """
    path = control_socket.with_suffix(".notes")
    if first is RecordFirst.DISK and not path.exists():
        return None
    log = get_logger(notes=str(path))
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        notes = Notes.open(path, journal.path.absolute())
    except (OSError, NotesError) as error:
        log.warning("panicd waits for the disk before it acts", why=str(error))
        return None
    try:
        for incident_id in journal.take_up(notes):
            log.warning("panicd was killed before the disk had this", incident=incident_id)
    except (JournalError, CodecError, IllegalTransitionError) as error:
        notes.close()
        log.critical("what a killed panicd noted can't be written", problem=str(error))
        return None
    if first is RecordFirst.DISK:
        notes.close()
        path.unlink()
        return None
    return notes
