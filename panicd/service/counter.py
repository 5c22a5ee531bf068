"""Hands what another thread asks for to the daemon's event loop, and its answer back."""

import math
from concurrent.futures import Future
from typing import Final

import trio

from panicd.service.control import Handler, Request
from panicd.service.control_client import RefusedError

PATIENCE: Final = 30.0
"""Seconds that a thread waits for an answer; an operator is told after 5 that something goes on."""


class Counter:
    """Where other threads ask; made in the event loop's thread.

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

    def ask(self, request: Request) -> object:
        """Have a request answered; for any other thread than the event loop's. Blocking.

        Raises:
            RefusedError: there is no answer; its kind and message say why.
        """
        answer: Future[object] = Future()
        try:
            self._loop.run_sync_soon(self._asked.send_nowait, (request, answer))
            return answer.result(PATIENCE)
        except (trio.RunFinishedError, TimeoutError):
            raise RefusedError("unknown", "no answer: look whether it was done") from None

    async def _answer(self, request: Request, answer: "Future[object]") -> None:
        try:
            answer.set_result(await self._handle(request))
        except RefusedError as error:
            answer.set_exception(error)
