"""The journal: every incident's entries on the disk.

SQLite in WAL mode with ``synchronous=FULL``: a commit is on the disk when it returns
(https://www.sqlite.org/pragma.html#pragma_synchronous).

```
append ─► queue ─► writer thread: fold, insert, count ─► one COMMIT ─► wakes every append in it
history, incidents, totals ─► a read-only connection each
```

Whatever waits during one commit goes into the next one together. If the journal is damaged, full or
in use, it reports that by a named error, and by ``fault``. It never loses an entry silently.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Final, Self

import trio

from panicd.journal import database as journal_database
from panicd.journal import outbox as journal_outbox
from panicd.journal.batch import Batch, Begun
from panicd.journal.database import Stored
from panicd.journal.error import (
    JournalClosedError,
    JournalDamagedError,
    JournalError,
    JournalInUseError,
    faults_named,
)
from panicd.journal.file import beside, check_identity, has_room, identity, lock, sync_directory
from panicd.journal.outbox import Pending
from panicd.journal.request import Request, Requests
from panicd.journal.totals import Totals
from panicd.rules.incident import AnyEntry, Incident
from panicd.rules.operation import Operation

__all__ = [
    "Journal",
    "JournalDamagedError",
    "JournalError",
    "JournalInUseError",
]

PRUNED_AT_ONCE: Final = 200
"""How many incidents, or operations, one commit removes, so that no append waits long for it."""

IDLE: Final = 1.0  # seconds without a request
TIDIED_AFTER: Final = 64  # commits
"""SQLite copies its log into the database (https://www.sqlite.org/wal.html, "Checkpointing").
That takes some milliseconds, so the writer does it when it has nothing else to do."""


class Journal:
    """An open journal.

    ``append`` and ``prune`` are called from trio tasks. Functions that read are synchronous and
    meant for ``trio.to_thread.run_sync``; they see everything that ``append`` has returned from.

    Attributes:
        path: of the database.
        channels: by which notifications of new entries are to be delivered.
        on_notification: called in trio's thread when there are new ones.
    """

    def __init__(self, path: Path, database: sqlite3.Connection, held: int) -> None:
        self.path = path
        self.channels: tuple[str, ...] = ()
        self.on_notification: Callable[[], None] = lambda: None
        self._database = database
        self._lock = held
        self._identity = identity(path)
        self._closed = False
        self._fault: str | None = None
        self._has_room = has_room(path)
        self._has_news = False  # only the writer thread's
        self._commits = 0  # since the log was tidied; only the writer thread's
        self._open: dict[str, Stored | Begun] = {}  # as committed; only the writer thread's
        self._requests = Requests()
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)  # of this thread (setpriority(2), "BUGS")
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Open the journal, or make a new one.

        A missing directory is made with mode 0700, the database with 0600, and a lock beside it.

        Raises:
            JournalInUseError: another process has it open.
            JournalDamagedError: SQLite finds the database damaged, or it is none.
            JournalError: it can't be opened, or a newer panicd wrote it.
        """
        with contextlib.ExitStack() as undo:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                taken = lock(path)
                undo.callback(os.close, taken)
                # SQLite gives its -wal and -shm files the mode of the database.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
                sync_directory(path.parent)
            except OSError as error:
                raise JournalError(f"{path}: {error.strerror}") from error
            database = journal_database.connect(path)
            undo.pop_all()
        return cls(path, database, taken)

    @staticmethod
    def set_aside(path: Path) -> Path:
        """Rename a damaged journal, so that ``open`` makes a new one.

        Returns:
            Its new path, which has the date and time in it.

        Raises:
            JournalInUseError: a process has it open.
            JournalError: it can't be renamed.
        """
        aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        try:
            taken = lock(path)
            try:
                # The database goes last: SQLite would replay a -wal that is left beside a new one.
                for suffix in ("-shm", "-wal", ""):
                    with contextlib.suppress(FileNotFoundError):
                        beside(path, suffix).rename(beside(aside, suffix))
                sync_directory(path.parent)
            finally:
                os.close(taken)
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}") from error
        return aside

    def close(self) -> None:
        """Write what is queued, and end; in the thread that calls ``append``."""
        if self._closed:
            return
        self._closed = True
        self._requests.end()
        self._writer.join()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fault(self) -> str | None:
        """Why the last commit failed; None if it did not."""
        return self._fault

    @property
    def is_sound(self) -> bool:
        """True if the next commit can be expected to succeed."""
        return self._fault is None and self._has_room

    async def append(self, incident_id: str, *entries: AnyEntry) -> None:
        """Add entries to an incident; they are on the disk when this returns.

        The entries of one call are written together or not at all, those of several calls in the
        order of the calls. If this is cancelled, they may have been written or not. The same is
        true if the disk fails (not if it is full) and power is lost before the next append.

        Args:
            incident_id: a new one is begun by ``Opened``.
            entries: in their order.

        Raises:
            JournalError: none of the entries was written.
            JournalDamagedError: likewise, and the journal's record can't be read.
            JournalClosedError: the journal was closed.
            IllegalTransitionError: an entry has no place in the incident; none was written.
        """
        await self._submit(partial(Batch.add, incident_id=incident_id, entries=entries))

    def append_soon(
        self,
        incident_id: str,
        entries: Sequence[AnyEntry],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """Add entries to an incident, and call back when they are on the disk; see ``append``.

        Args:
            incident_id: a new one is begun by ``Opened``.
            entries: in their order.
            done: called in trio's thread, with the error that ``append`` would raise, or None.
        """
        self._request(partial(Batch.add, incident_id=incident_id, entries=entries), done)

    def take_up(self, noted: Mapping[str, Sequence[AnyEntry]]) -> None:
        """Write incidents that a killed panicd only noted; before the first ``append``.

        Args:
            noted: the entries by the incidents' ids; the journal has none of these.

        Raises:
            JournalError: none was written.
        """
        batch = Batch(self._database, self._open, self.channels)
        with faults_named(self.path), journal_database.transaction(self._database):
            for incident_id, entries in noted.items():
                batch.add(incident_id, entries)
            batch.write()

    def stand_aside(self) -> None:
        """Leave the interpreter to an idle writer thread for a moment, if it has got something.

        The event loop calls this when it has nothing to do that is in more of a hurry.
        """
        self._requests.stand_aside()

    async def prune(self, before: float) -> list[str]:
        """Remove old closed incidents, and old restarts; open incidents and totals stay.

        Args:
            before: when the incident ended or the restart was made, in seconds since the epoch. No
                restart budget's window may reach back further.

        Returns:
            The ids of the removed incidents.

        Raises:
            JournalError: not everything could be removed.
        """
        removed: list[str] = []
        known = -PRUNED_AT_ONCE
        while len(removed) - known >= PRUNED_AT_ONCE:
            known = len(removed)
            await self._submit(partial(self._prune, before=before, removed=removed))
        return removed

    async def prune_operations(self, before: float) -> None:
        """Remove operators' requests before a time; a hold that ends later, or never, stays.

        Raises:
            JournalError: not everything could be removed.
        """
        old = await trio.to_thread.run_sync(journal_database.operations_over, self.path, before)
        for start in range(0, len(old), PRUNED_AT_ONCE):
            some = old[start : start + PRUNED_AT_ONCE]
            await self._submit(partial(Batch.remove_operations, positions=some))

    def load_open(self) -> list[Incident]:
        """Return every open incident, the oldest first.

        Raises:
            JournalDamagedError: an incident can't be read; the message names it and the entry.
            JournalError: the journal can't be read.
        """
        return self.incidents(open_only=True, limit=-1)[::-1]

    def incident(self, incident_id: str) -> Incident | None:
        """Return an incident; None if there is none with that id.

        Raises:
            JournalDamagedError: it can't be read.
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return journal_database.stored(database, incident_id).incident

    def history(self, incident_id: str) -> list[AnyEntry]:
        """Return an incident's entries in their order; none where there is no such incident.

        Raises:
            JournalDamagedError: one can't be read.
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return journal_database.history(database, incident_id)

    def incidents(
        self,
        *,
        domain: str | None = None,
        open_only: bool = False,
        unacknowledged: bool = False,
        since: float | None = None,
        until: float | None = None,
        limit: int = 100,
        signature: str | None = None,
    ) -> list[Incident]:
        """Return incidents, the newest first.

        Args:
            domain: those of this domain, by name or UUID.
            open_only: those that are open.
            unacknowledged: those that nobody has acknowledged.
            since: those that began then or later, in seconds since the epoch.
            until: those that began before.
            limit: at most so many; negative for all.
            signature: those with this hash.

        Raises:
            JournalDamagedError: one can't be read; the message names it and the entry.
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return journal_database.incidents(
                database,
                domain=domain,
                open_only=open_only,
                unacknowledged=unacknowledged,
                since=since,
                until=until,
                limit=limit,
                signature=signature,
            )

    def totals(self) -> Totals:
        """Return the counters that outlive incidents.

        Raises:
            JournalDamagedError: one has an unknown name or label.
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return journal_database.totals(database)

    async def append_operation(self, operation: Operation) -> None:
        """Add an operator's request; it is on the disk when this returns.

        Raises:
            JournalError: it was not written.
        """
        await self._submit(partial(Batch.add_operation, operation=operation))

    def operations(self) -> list[Operation]:
        """Return operators' requests, in order.

        Raises:
            JournalDamagedError: one can't be read.
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return list(journal_database.operations(database).values())

    def all_restarts(self) -> dict[str, tuple[float, ...]]:
        """Return when panicd restarted each domain, by domain key; the oldest first.

        Raises:
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return journal_database.all_restarts(database)

    def pending(self, channel: str) -> list[Pending]:
        """Return the next notification of each incident, the oldest first.

        Raises:
            JournalError: the journal can't be read.
        """
        with journal_database.reader(self.path) as database:
            return journal_outbox.pending(database, channel)

    async def delivered(self, channel: str, notification: Pending) -> None:
        """Note that a notification was delivered, or was given up.

        Raises:
            JournalError: that was not written.
        """
        await self._submit(
            lambda _batch: journal_outbox.remove(self._database, channel, notification)
        )

    async def drop_other_channels(self) -> None:
        """Remove the notifications of channels that no longer exist.

        Raises:
            JournalError: that was not written.
        """
        channels = self.channels
        await self._submit(lambda _batch: journal_outbox.keep_only(self._database, channels))

    async def _submit(self, work: Callable[[Batch], None]) -> None:
        finished = trio.Event()
        errors: list[BaseException] = []

        def done(error: BaseException | None) -> None:
            errors.extend([error] if error is not None else [])
            finished.set()

        self._request(work, done)
        await finished.wait()
        for error in errors:
            raise error

    def _request(
        self, work: Callable[[Batch], None], done: Callable[[BaseException | None], None]
    ) -> None:
        if self._closed:
            raise JournalClosedError(f"{self.path}: closed")
        self._requests.put(Request(work, trio.lowlevel.current_trio_token(), done))

    # From here on: the writer thread.

    def _write(self) -> None:
        """Commit what is queued, over and over, until None comes, which is always the last."""
        with contextlib.suppress(PermissionError):  # as the unit has it, new threads begin at 0
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        going_on = True
        while going_on:
            requests, going_on = self._next()
            if requests:
                self._commit(requests)
                self._has_room = has_room(self.path)
                # Whoever waited ended with the loop.
                with contextlib.suppress(trio.RunFinishedError):
                    requests[-1].token.run_sync_soon(_wake, requests)
                    if self._has_news:
                        self._has_news = False
                        requests[-1].token.run_sync_soon(self.on_notification)
        self._database.close()

    def _next(self) -> tuple[list[Request], bool]:
        while True:
            with contextlib.suppress(Empty):
                return self._requests.take(timeout=IDLE)
            self._has_room = has_room(self.path)
            if self._commits >= TIDIED_AFTER:
                self._commits = 0
                journal_database.tidy(self._database)

    def _commit(self, requests: list[Request]) -> None:
        self._commits += 1
        batch = Batch(self._database, self._open, self.channels)
        try:
            with faults_named(self.path):
                check_identity(self.path, self._identity)
                with journal_database.transaction(self._database):
                    for request in requests:
                        request.carry_out(batch)
                    batch.write()
                    for request in requests:
                        request.is_prepared.release()
        except JournalError as error:
            self._fault = str(error)
            for request in requests:
                request.error = request.error or type(error)(*error.args)
        except BaseException as error:  # noqa: BLE001  # a bug must end those who wait, not only this thread
            for request in requests:
                request.error = request.error or error
        else:
            self._has_news = bool(batch.notifications)
            if not batch.empty:
                self._fault = None
            for incident_id, stored in batch.changed.items():
                if stored.goes_on:
                    self._open[incident_id] = stored
                else:
                    self._open.pop(incident_id, None)

    def _prune(self, _batch: Batch, *, before: float, removed: list[str]) -> None:
        removed += journal_database.prune(self._database, before, PRUNED_AT_ONCE)


def _wake(requests: list[Request]) -> None:
    for request in requests:
        request.done(request.error)
