"""Turns: one at a time, and each client in its turn, however often it asks."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class TooManyError(Exception):
    """Too many wait for their turn."""


class Turns:
    """Turns at something that only one may do at a time; for use in one event loop.

    Args:
        limit: how many may wait.
        of_one: how many of them may be of one client.
    """

    def __init__(self, limit: int, of_one: int) -> None:
        self._limit = limit
        self._of_one = of_one
        self._taken = False
        self._waiting: dict[
            str, deque[trio.Event]
        ] = {}  # the client whose turn is next comes first

    @asynccontextmanager
    async def take(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for as long as the block runs.

        Raises:
            TooManyError: too many wait, or too many of this client's.
        """
        if self._taken:
            await self._wait(client)
        self._taken = True
        try:
            yield
        finally:
            self._hand_on()

    async def _wait(self, client: str) -> None:
        own = self._waiting.get(client, deque())
        everybody = sum(map(len, self._waiting.values()))
        if everybody >= self._limit or len(own) >= self._of_one:
            raise TooManyError
        mine = trio.Event()
        own.append(mine)
        self._waiting[client] = own
        try:
            await mine.wait()
        except trio.Cancelled:
            if mine.is_set():
                self._hand_on()
            else:
                own.remove(mine)
                if not own:
                    del self._waiting[client]
            raise

    def _hand_on(self) -> None:
        self._taken = False
        for client in self._waiting:
            own = self._waiting.pop(client)
            own.popleft().set()
            if own:
                self._waiting[client] = own  # behind the others
            self._taken = True
            return
