"""Decides whose memory is dumped now and who waits: so many at a time, each user in turn.

The next turn goes to the user who has fewest dumps under way, and to the guest of his that came
first. So a user whose many guests panic makes others wait for one turn, not for all of his.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from panicd.dumps.standby import Standby
from panicd.dumps.writer import DumpProgress
from panicd.rules.settings import DumpFormat


@dataclass(eq=False, slots=True)
class DumpTurn:
    """A domain's place in the queue.

    Attributes:
        wake: called when its turn comes.
        format: the dump's.
        owner: the guest's user, for whom the host vouches.
        since: when its wait began or, once its turn has come, its dump; seconds since the epoch.
        has_come: whether it is its turn.
        ahead: how many wait before it.
        progress: how far its dump is.
    """

    wake: Callable[[], None]
    format: DumpFormat
    owner: int
    since: float
    has_come: bool = False
    ahead: int = 0
    progress: DumpProgress = field(default_factory=DumpProgress)


class DumpQueue:
    """The host's dumps.

    Args:
        at_once: how many may be under way.
        clock: returns the seconds since the epoch.
        standby: has a filter ready for the next dump; None: nothing has.

    Attributes:
        standby: likewise.
    """

    def __init__(
        self, at_once: int, clock: Callable[[], float], standby: Standby | None = None
    ) -> None:
        self.standby = standby
        self._at_once = at_once
        self._clock = clock
        self._under_way: set[DumpTurn] = set()
        self._waiting: list[DumpTurn] = []

    def allow(self, at_once: int) -> None:
        """Change how many dumps may be under way; those under way go on."""
        self._at_once = at_once
        self._advance()

    @contextmanager
    def turn(self, wake: Callable[[], None], kind: DumpFormat, owner: int) -> Iterator[DumpTurn]:
        """Take a place in the queue, and leave it when the block ends, waiting or not.

        Args:
            wake: called when its turn comes, perhaps before this returns.
            kind: the dump's format.
            owner: the guest's user, for whom the host vouches.
        """
        turn = DumpTurn(wake, kind, owner, self._clock())
        self._waiting.append(turn)
        self._advance()
        try:
            yield turn
        finally:
            if turn.has_come:
                self._under_way.remove(turn)
            else:
                self._waiting.remove(turn)
            self._advance()

    def _advance(self) -> None:
        while self._waiting and len(self._under_way) < self._at_once:
            turn = self._in_order()[0]
            self._waiting.remove(turn)
            turn.has_come, turn.since = True, self._clock()
            self._under_way.add(turn)
            turn.wake()
        for ahead, turn in enumerate(self._in_order()):
            turn.ahead = ahead

    def _in_order(self) -> list[DumpTurn]:
        """Return the waiting turns, by how many of the same user are under way or before each."""
        before = Counter(turn.owner for turn in self._under_way)
        place: dict[DumpTurn, int] = {}
        for turn in self._waiting:
            place[turn] = before[turn.owner]
            before[turn.owner] += 1
        return sorted(self._waiting, key=lambda turn: place[turn])


class DumpState(StrEnum):
    """Where a dump stands."""

    WAITING = "waiting"  # for its turn
    DUMPING = "dumping"


@dataclass(frozen=True, slots=True)
class DumpStatus:
    """A dump that goes on, as ``panicd status`` shows it.

    Attributes:
        state: where it stands.
        since: when this state began, in seconds since the epoch.
        ahead: how many dumps wait before a waiting one.
        format: the file's.
        done: bytes of guest memory read.
        total: bytes of guest memory to read; None if QEMU has not told.
        rate: bytes of guest memory a second, since it began; None before there are any.
        left: seconds that the rest will take at that rate; None if unknown.
        left_out: bytes of guest memory that the dump will not hold, empty pages apart.
        written: bytes that the file takes so far.
        expected: about how many bytes the file will take; None if unknown.
    """

    state: DumpState
    since: float
    ahead: int
    format: DumpFormat
    done: int
    total: int | None
    rate: float | None
    left: float | None
    left_out: int
    written: int
    expected: int | None


def dump_status(turn: DumpTurn, now: float) -> DumpStatus:
    """Return how a dump stands.

    Args:
        turn: its place in the queue.
        now: seconds since the epoch.
    """
    progress = turn.progress
    done, total = progress.completed, progress.total
    if turn.format.of_qemu == DumpFormat.ELF.value:  # what comes is the memory as it is
        done = max(done, progress.received)
    done = done if total is None else min(done, total)
    elapsed = now - turn.since
    rate = done / elapsed if turn.has_come and done and elapsed > 0 else None
    return DumpStatus(
        state=DumpState.DUMPING if turn.has_come else DumpState.WAITING,
        since=turn.since,
        ahead=turn.ahead,
        format=turn.format,
        done=done,
        total=total,
        rate=rate,
        left=(total - done) / rate if rate and total is not None else None,
        left_out=progress.left_out,
        written=progress.written,
        expected=_expected(progress, done),
    )


def _expected(progress: DumpProgress, done: int) -> int | None:
    """Return about how many bytes the file will take: those written, and the rest in proportion."""
    if progress.expected is None or not progress.total:
        return None
    left = max(0, progress.total - done)
    return progress.written + progress.expected * left // progress.total
