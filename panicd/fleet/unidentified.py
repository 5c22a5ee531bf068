"""Connections that dialled in and have not yet shown that they are a QEMU: bounded, and told of.

Whoever may connect can do so thousands of times and say nothing. A QEMU says what it is within
milliseconds: so when there are too many strangers the one goes that has been silent for longest,
of the user who has most.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from panicd.host.logs import get_logger

UNIDENTIFIED_AT_MOST: Final = 512  # each holds two file descriptors
TELL_EVERY: Final = 5.0  # seconds between two lines about strangers that were not connected


@dataclass(eq=False, slots=True)
class UnidentifiedConnection:
    """One of them.

    Attributes:
        uid: the user's number at the other end.
        scope: ends the connection.
    """

    uid: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class UnidentifiedConnections:
    """Those who are connected, the first to come first."""

    def __init__(self) -> None:
        self._present: dict[str, UnidentifiedConnection] = {}
        self._untold = 0
        self._told_at = -TELL_EVERY

    @contextmanager
    def admitted(self, address: str, uid: int) -> Iterator[None]:
        """Let one in, until the block ends or, unless it is known by then, there are too many.

        Args:
            address: what its connection is called.
            uid: the user's number at the other end.
        """
        self._present[address] = stranger = UnidentifiedConnection(uid)
        self._make_room()
        try:
            with stranger.scope:
                yield
        finally:
            self.known(address)
        if stranger.scope.cancelled_caught and self.may_tell():
            get_logger(monitor=address).warning(
                "connection refused", reason="too many connections say nothing", uid=uid
            )

    def known(self, address: str) -> None:
        """Take one for a QEMU from here on; whoever is none of them may be named too."""
        self._present.pop(address, None)

    def __contains__(self, address: str) -> bool:
        return address in self._present

    def may_tell(self) -> bool:
        """Whether what became of a stranger may be logged: there is a line now and then."""
        now = trio.current_time()
        if now - self._told_at < TELL_EVERY:
            self._untold += 1
            return False
        if self._untold:
            get_logger().warning("connections without a QEMU were not logged", count=self._untold)
        self._untold, self._told_at = 0, now
        return True

    def _make_room(self) -> None:
        waiting = [each for each in self._present.values() if not each.scope.cancel_called]
        if len(waiting) > UNIDENTIFIED_AT_MOST:
            crowd = Counter(each.uid for each in waiting)
            max(waiting, key=lambda each: crowd[each.uid]).scope.cancel()  # the first of equals
