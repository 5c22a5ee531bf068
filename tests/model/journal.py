"""What is put in place of the journal: it keeps entries in memory."""

from __future__ import annotations

import trio

from panicd.host.journal import JournalError
from panicd.host.journal_codec import decode, encode
from panicd.rules.incident import AnyEntry, Incident, Opened, apply
from panicd.rules.operation import Operation
from tests.model.clock import LATENCY


class MemoryJournal:
    """A journal that outlives a daemon and no test; it keeps the entries as the real one does."""

    def __init__(self) -> None:
        self.entries: dict[str, list[str]] = {}
        self.operations: list[Operation] = []
        self.full = False
        self.fault: str | None = None
        self._generation = 0

    def bury(self) -> None:
        """Take nothing any more of a daemon that was killed."""
        self._generation += 1

    async def append(self, incident_id: str, *entries: AnyEntry) -> None:
        """Add entries, in a moment."""
        written = self._generation
        await trio.sleep(LATENCY)
        if written != self._generation:
            await trio.sleep_forever()  # it was killed, and this is its ghost
        if self.full:
            raise JournalError("the disk is full")
        self.entries.setdefault(incident_id, []).extend(map(encode, entries))

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
