"""Connections that dialled in and have not yet shown that they are a QEMU: limited, and logged.

Whoever may connect can do so thousands of times and say nothing. A QEMU identifies itself within
milliseconds. So if there are too many strangers, panicd closes the one that has been silent
longest, of the user who has most.
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
    """One such connection.

    Attributes:
        uid: the user's number at the other end.
        scope: ends the connection.
    """

    uid: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class UnidentifiedConnections:
    """Those that are connected, the oldest first."""

    def __init__(self) -> None:
        self._present: dict[str, UnidentifiedConnection] = {}
        self._untold = 0
        self._told_at = -TELL_EVERY

    @contextmanager
    def admitted(self, address: str, uid: int) -> Iterator[None]:
        """Let one in until the block ends; it may be closed before it is identified.

        Args:
            address: the connection's name.
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
        """Take one for a QEMU from now on; it may also be none of them."""
        self._present.pop(address, None)

    def __contains__(self, address: str) -> bool:
        return address in self._present

    def may_tell(self) -> bool:
        """Whether a stranger's end may be logged: there is one line now and then."""
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
            max(waiting, key=lambda each: crowd[each.uid]).scope.cancel()  # the first of equal ones
