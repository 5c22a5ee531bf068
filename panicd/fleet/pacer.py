"""Lets a few connections begin in each turn of the event loop.

Thousands that began together would each wait for all the others, longer than a greeting may take,
and begin again immediately, for ever.
"""

from typing import Final

import trio

from panicd.host.garbage import spare

AT_ONCE: Final = 8  # in one turn; each costs half a millisecond until its domain is looked after


class Pacer:
    """Lets ``AT_ONCE`` begin in each turn, in the order in which they came."""

    def __init__(self) -> None:
        self._begun = 0  # in this turn
        self._waiting = trio.lowlevel.ParkingLot()

    async def begin(self) -> None:
        """Return when the caller may begin."""
        if self._begun >= AT_ONCE:
            await self._waiting.park()
            return
        self._begun += 1
        if self._begun == AT_ONCE:
            trio.lowlevel.spawn_system_task(self._next_turn)

    async def _next_turn(self) -> None:
        try:
            while self._waiting:
                await trio.lowlevel.checkpoint()
                spare.begin(AT_ONCE)
                self._waiting.unpark(count=AT_ONCE)
        finally:
            spare.end()
            self._begun = 0
