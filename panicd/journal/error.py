"""The journal's faults, which include SQLite's."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path


class JournalError(Exception):
    """The journal can't be opened, read or written: it is full, read-only, broken or too new."""


class JournalDamagedError(JournalError):
    """The journal can't have been written as it is."""


@contextlib.contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Turn SQLite's faults into ``JournalError``.

    Raises:
        JournalDamagedError: SQLITE_CORRUPT, SQLITE_NOTADB (https://www.sqlite.org/rescode.html), or
            text that is not UTF-8.
        JournalError: a fault of the disk, the file system or its rights.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # of a message of SQLite's that quotes the database
        raise JournalDamagedError(f"{path}: {error}") from error
    except sqlite3.OperationalError as error:
        if not hasattr(error, "sqlite_errorname"):  # the sqlite3 module's own: text is not UTF-8
            raise JournalDamagedError(f"{path}: {error}") from error
        raise JournalError(f"{path}: {error} ({error.sqlite_errorname})") from error
    except sqlite3.DatabaseError as error:
        # Misuse has subclasses of this; corruption has none.
        if type(error) is not sqlite3.DatabaseError:
            raise
        raise JournalDamagedError(f"{path}: {error}") from error


class JournalInUseError(JournalError):
    """Another process has the journal open."""


class JournalClosedError(JournalError):
    """The journal was closed before."""
