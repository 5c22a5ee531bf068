"""Removes evidence beyond the limits, after each panic, without delaying anybody."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from panicd.evidence.bundle_store import remove, sizes
from panicd.host.logs import get_logger
from panicd.journal import database as journal_database
from panicd.journal.journal import JournalError
from panicd.journal.summaries import summaries
from panicd.qemu.threads import NoThreadError, in_thread
from panicd.rules.retention import Bundles
from panicd.rules.settings import Policy

REST: Final = 9.0  # times as long as it took
LOOKS_EVERY: Final = 0.1  # seconds


class BundleRetention:
    """Keeps as many bundles as the limits allow.

    Args:
        journal: which knows the incidents.
        root: the bundles' directory.
        is_due: tells whether first commands are due, which go first. Any thread may ask.
    """

    def __init__(self, journal: Path, root: Path, is_due: Callable[[], bool]) -> None:
        self._journal = journal
        self._root = root
        self._is_due = is_due
        self._due: dict[str, tuple[Policy, str]] = {}
        self._wake = trio.Event()

    def taken(self, domain: str, policy: Policy, incident: str) -> None:
        """Note that evidence of a domain's incident was kept, under this policy."""
        self._due[domain] = policy, incident
        self._wake.set()

    async def run(self) -> None:
        """Remove what is beyond the limits, for ever, but rarely: it looks at all bundles."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._give_way()
            due, self._due = self._due, {}
            began = trio.current_time()
            try:
                removed = await in_thread(partial(self._retire, due))
            except (OSError, JournalError) as error:
                get_logger().warning("old evidence could not be removed", problem=str(error))
            else:
                for incident, why in removed.items():
                    get_logger(incident=incident).info("old evidence removed", why=why)
            await trio.sleep(REST * (trio.current_time() - began))

    async def _give_way(self) -> None:
        with suppress(NoThreadError):
            await in_thread(self._wait)

    def _wait(self) -> None:
        while self._is_due():
            time.sleep(LOOKS_EVERY)

    def _retire(self, due: dict[str, tuple[Policy, str]]) -> dict[str, str]:
        # In this order, so that a bundle that is made meanwhile does not seem to be nobody's.
        there = sizes(self._root)
        with journal_database.reader(self._journal) as database:
            bundles = Bundles(summaries(database), there)
        removed: dict[str, str] = {}
        for domain, (policy, newest) in due.items():
            for incident, why in bundles.expendable(domain, policy, newest).items():
                remove(self._root / incident, why, time.time())
                bundles.removed(incident)
                removed[incident] = why
        return removed
