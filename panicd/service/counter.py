"""Hands requests of another thread to the daemon's event loop, and its answers back."""

import math
import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Final

import trio

from panicd.service.control import Handler, PeerCredentials, Request
from panicd.service.control_client import RefusedError
from panicd.web.page.operating import NotDoneError

PATIENCE: Final = 30.0
"""Seconds that a thread waits for an answer; after 5 the operator is told that it takes longer."""


class Counter:
    """Takes requests of other threads; made in the event loop's thread.

    Args:
        handle: answers, as on the control socket.
    """

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._loop = trio.lowlevel.current_trio_token()
        self._asked, self._taken = trio.open_memory_channel[tuple[Request, Future[object]]](
            math.inf
        )

    async def serve(self) -> None:
        """Answer, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for request, answer in self._taken:
                nursery.start_soon(self._answer, request, answer)

    def ask(self, command: str, arguments: Mapping[str, object], user: str) -> object:
        """Have a request answered; for other threads than the event loop's. Blocking.

        Args:
            command: its name.
            arguments: of the command.
            user: who asks.

        Raises:
            NotDoneError: it was refused, or that is not known.
        """
        own = PeerCredentials(os.getpid(), os.geteuid(), os.getegid())
        request, answer = Request(command, arguments, own, user), Future[object]()
        try:
            self._loop.run_sync_soon(self._asked.send_nowait, (request, answer))
            return answer.result(PATIENCE)
        except RefusedError as error:
            raise NotDoneError(error.message) from error
        except (trio.RunFinishedError, TimeoutError):
            raise NotDoneError("no answer: check whether it was done") from None

    async def _answer(self, request: Request, answer: "Future[object]") -> None:
        try:
            answer.set_result(await self._handle(request))
        except RefusedError as error:
            answer.set_exception(error)
