"""What is put in place of the journal: it keeps entries in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from panicd.journal.codec import decode, encode
from panicd.journal.journal import JournalError
from panicd.rules.incident import AnyEntry, Incident, Opened, apply
from panicd.rules.operation import Operation
from tests.model.clock import LATENCY


class MemoryJournal:
    """A journal that outlives a daemon and no test; it keeps the entries as the real one does."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.entries: dict[str, list[str]] = {}
        self.operations: list[Operation] = []
        self.full = False
        self.fault: str | None = None
        self._generation = 0

    def bury(self) -> None:
        """Take nothing any more of a daemon that was killed."""
        self._generation += 1

    def opened(self) -> OpenJournal:
        """Open it, for one daemon."""
        return OpenJournal(self, self._generation)

    def append_soon(
        self,
        written: int,
        incident_id: str,
        entries: Sequence[AnyEntry],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """Add entries, in a moment."""
        self._nursery.start_soon(self._append, written, incident_id, entries, done)

    async def _append(
        self,
        written: int,
        incident_id: str,
        entries: Sequence[AnyEntry],
        done: Callable[[BaseException | None], None],
    ) -> None:
        await trio.sleep(LATENCY)
        if written != self._generation:
            return  # it was killed, and this is its ghost
        if self.full:
            done(JournalError("the disk is full"))
            return
        self.entries.setdefault(incident_id, []).extend(map(encode, entries))
        done(None)

    def incidents(self) -> list[Incident]:
        """Every incident, as it follows from its entries."""
        found = []
        for incident_id, texts in self.entries.items():
            opened, *rest = map(decode, texts)
            assert isinstance(opened, Opened)
            incident = Incident(incident_id, opened)
            for entry in rest:
                incident = apply(incident, entry)
            found.append(incident)
        return found

    def restarts(self) -> dict[str, tuple[float, ...]]:
        """When panicd restarted each domain."""
        found: dict[str, tuple[float, ...]] = {}
        for incident in self.incidents():
            if incident.restarted_at is not None:
                key = incident.opened.domain_key
                found[key] = (*found.get(key, ()), incident.restarted_at)
        return found


class OpenJournal:
    """The journal as one daemon has it open; of one that was killed nothing is written."""

    fault: str | None = None

    def __init__(self, journal: MemoryJournal, generation: int) -> None:
        self._journal = journal
        self._generation = generation

    def append_soon(
        self,
        incident_id: str,
        entries: Sequence[AnyEntry],
        done: Callable[[BaseException | None], None],
    ) -> None:
        """Add entries, in a moment."""
        self._journal.append_soon(self._generation, incident_id, entries, done)

    def stand_aside(self) -> None:
        """Leave the interpreter to nobody."""
