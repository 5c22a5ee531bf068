"""Writes bundles to the disk while their actions go on.

A bundle is complete in memory before its action. So the action waits for no disk, as long as the
bundles that wait are within limits; beyond them it does wait. One thread writes all bundles,
and waits while first commands are due.

A bundle whose list is on the disk is complete. If panicd ends before, its bundles are lost.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio

from panicd.evidence.bundle import Bundle
from panicd.evidence.host_facts import HostFacts
from panicd.host.timers import Timers
from panicd.qemu.threads import needing_a_thread

MOST: Final = 4096
"""Bundles that wait in memory."""

LOOKS_EVERY: Final = 0.01  # seconds, while first commands are due

MOST_BYTES: Final = 128 << 20
"""Bytes of them: a bundle with a screen and a full kernel log has some 150 KiB."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A bundle that is to be written."""

    bundle: Bundle
    facts: Callable[[], object]
    pid: int
    done: Callable[[str], None]
    ended: trio.Event = field(default_factory=trio.Event)


class BundleWriter:
    """Writes bundles, one after the other.

    Args:
        timers: of all domains.
        is_due: tells whether first commands are due, which go first. Any thread may ask.

    Attributes:
        host: reads the host's files.
    """

    def __init__(self, timers: Timers, is_due: Callable[[], bool]) -> None:
        self.host = HostFacts()
        self._timers = timers
        self._is_due = is_due
        self._looks = False
        self._awaited = 0  # somebody waits: the writer does not
        self._queue: deque[_Waiting] = deque()
        self._under_way: dict[Path, _Waiting] = {}
        self._bytes = 0
        self._expected = 0
        self._works = False

    @property
    def has_room(self) -> bool:
        """True if actions need not wait for their bundles to be written."""
        return len(self._under_way) + self._expected < MOST and self._bytes < MOST_BYTES

    def expect(self) -> None:
        """Keep room for a bundle that is being taken."""
        self._expected += 1

    def expect_no_more(self) -> None:
        """Keep that room no longer."""
        self._expected -= 1

    def write_soon(
        self, bundle: Bundle, facts: Callable[[], object], pid: int, done: Callable[[str], None]
    ) -> None:
        """Have a bundle written.

        Args:
            bundle: complete; nobody else touches it from now on.
            facts: returns panicd's own facts, as JSON can hold them. It is called in a thread.
            pid: of the VM's process; 0: not known.
            done: called when it is written, with an empty text, or with why it is not.
        """
        waiting = _Waiting(bundle, facts, pid, done)
        self._under_way[bundle.directory] = waiting
        self._bytes += bundle.size
        self._queue.append(waiting)
        if not self._looks:
            self._look()

    async def written(self, directory: Path) -> None:
        """Return when a bundle is written, or was not to be."""
        while waiting := self._under_way.get(directory):
            self._awaited += 1
            try:
                self._begin()
                await waiting.ended.wait()
            finally:
                self._awaited -= 1

    async def all_written(self) -> None:
        """Return when all bundles are written."""
        for directory in list(self._under_way):
            await self.written(directory)

    def _look(self) -> None:
        """Begin if there is anything to write, and no first command is due."""
        self._looks = False
        if self._works or not self._queue:
            return
        if self._awaited or not self._is_due():
            self._begin()
        else:
            self._looks = True
            self._timers.after(LOOKS_EVERY, self._look)

    def _begin(self) -> None:
        if self._works or not self._queue:
            return
        token = trio.lowlevel.current_trio_token()
        try:
            with needing_a_thread():
                trio.lowlevel.start_thread_soon(partial(self._work, token), _tell_nobody)
        except OSError as error:
            while self._queue:
                self._end(self._queue.popleft(), str(error))
        else:
            self._works = True

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        """Write what waits. In a thread."""
        with suppress(trio.RunFinishedError):  # nobody waits any more
            try:
                while self._queue and (self._awaited or not self._is_due()):
                    waiting = self._queue.popleft()
                    token.run_sync_soon(self._end, waiting, self._write(waiting))
            except BaseException as bug:  # noqa: BLE001 - the event loop raises it
                token.run_sync_soon(_raise, bug)
            token.run_sync_soon(self._rest)

    def _write(self, waiting: _Waiting) -> str:
        try:
            waiting.bundle.write(waiting.facts(), partial(self.host.of, waiting.pid))
        except OSError as error:
            return str(error)
        return ""

    def _rest(self) -> None:
        self._works = False
        if not self._looks:
            self._look()

    def _end(self, waiting: _Waiting, problem: str) -> None:
        self._bytes -= waiting.bundle.size
        if self._under_way.get(waiting.bundle.directory) is waiting:  # not taken again since
            del self._under_way[waiting.bundle.directory]
        waiting.ended.set()
        waiting.done(problem)


def _tell_nobody(_outcome: object) -> None:
    """Take a thread's result, which has none."""


def _raise(bug: BaseException) -> None:
    raise bug
