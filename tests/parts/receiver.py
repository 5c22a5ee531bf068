"""A receiver of webhooks on loopback, which does what a test tells it."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import h11
import trio

from tests.parts.background import background


@dataclass(frozen=True)
class Told:
    """One request."""

    target: str
    headers: dict[str, str]
    body: Any

    @property
    def id(self) -> str:
        return self.headers["ce-id"]

    @property
    def notice(self) -> str:
        return self.headers["ce-type"].rpartition(".")[2]


Answer = Callable[[int, Told], bytes | None]
"""Given the number of a request and the request, returns a response; None: never any."""


def status(code: int) -> bytes:
    return b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % code


class Receiver:
    """Listens while in :meth:`start`.

    Attributes:
        port: Where.
        requests: All so far.
        answer: What is answered; may be changed.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[Told] = []
        self.answer: Answer = lambda _number, _told: status(204)
        self._came = trio.lowlevel.ParkingLot()

    @classmethod
    @asynccontextmanager
    async def start(cls, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        receiver = cls(listeners[0].socket.getsockname()[1])
        async with background() as nursery:
            nursery.start_soon(
                partial(trio.serve_listeners, partial(receiver._serve, tls), listeners)
            )
            yield receiver

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/told?x=1"

    async def wait(self, holds: Callable[[list[Told]], bool]) -> None:
        """Wait until a condition on the requests is true."""
        while not holds(self.requests):
            await self._came.park()

    async def _serve(self, tls: ssl.SSLContext | None, raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        if tls is not None:
            stream = trio.SSLStream(raw, tls, server_side=True, https_compatible=True)
        try:
            await self._receive(stream)
        except trio.BrokenResourceError:
            pass  # the client did not trust it, or was ended
        finally:
            await trio.aclose_forcefully(stream)

    async def _receive(self, stream: trio.abc.Stream) -> None:
        parser = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        body = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            match event:
                case h11.Request():
                    request = event
                case h11.Data():
                    body += event.data
                case _:
                    parser.receive_data(bytes(await stream.receive_some(65536)))
        assert request is not None
        headers = {name.decode(): value.decode() for name, value in request.headers}
        told = Told(request.target.decode(), headers, json.loads(body))
        self.requests.append(told)
        self._came.unpark_all()
        answer = self.answer(len(self.requests), told)
        if answer is None:
            await trio.sleep_forever()
        else:
            await stream.send_all(answer)
