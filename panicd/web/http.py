"""The HTTP server, plain or with TLS, in a thread with an event loop of its own.

h11 reads and writes the protocol, trio the sockets. Nothing here touches the daemon's loop. An
answer costs the daemon only its share of the interpreter.

A client may be slow, silent, malformed or numerous, even before the TLS handshake is done, when a
server that gets finished connections does not even know of it. So an exchange has a time limit,
which includes the handshake. Headers and body have a maximum size. Requests are taken one after the
other. If there are too many connections, the server closes one that waits for its client: the one
that has waited longest, of the address that has most.
"""

import contextlib
import contextvars
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final

import h11
import trio

from panicd.config.web import WebConfig
from panicd.host.logs import get_logger
from panicd.qemu.threads import needing_a_thread
from panicd.web.web import Request, Response, WebApp

CONNECTION_LIMIT = 64
"""How many connections at a time. A few Prometheus servers and people need few, and each takes a
file descriptor that a domain's monitor may need."""

BACKLOG: Final = 128
"""Connections that wait in the kernel."""

EXCHANGE_TIMEOUT = 30.0
"""Seconds within which a response must be complete, from the opening of the connection or the end
of its last response. Ends clients that never ask, ask byte by byte, or do not read."""

KEEP_ALIVE_TIMEOUT: Final = 5.0
"""Seconds that an idle connection stays open."""

LINGER: Final = 1.0
"""Seconds for which a client may go on sending after the last response. A connection that is closed
with unread data is reset, and its response is lost (RFC 9112, 9.6)."""

HEADER_LIMIT: Final = 8 * 1024
"""Bytes of an incomplete request's line and headers that are kept."""

BODY_LIMIT: Final = 4 * 1024
"""Bytes that a form may have."""

RECEIVE_SIZE: Final = 4096
"""Bytes that are read at a time; no more of what was sent ahead is ever kept."""

DRAIN_TIMEOUT: Final = 1.0
"""Seconds for a response to finish when the server stops."""

STOP_TIMEOUT: Final = 2.0
"""Seconds after which a server that has not stopped is abandoned, with its thread."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""``struct linger``: a connection that is cut off leaves nothing in the kernel (socket(7))."""


class HttpBindError(Exception):
    """panicd can't listen on the address for HTTP; the message names it."""


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server that runs, and where it listens."""

    host: str
    port: int


@contextlib.asynccontextmanager
async def serve_http(host: str, port: int, app: WebApp) -> AsyncIterator[HttpServer]:
    """Serve HTTP for as long as the block runs.

    Args:
        host: Address or name to listen on; an empty one stands for all addresses.
        port: TCP port; 0 takes a free one, which the value yielded tells.
        app: What is served, and whether with TLS, which is asked for each new connection.

    Yields:
        The server, which accepts connections.

    Raises:
        HttpBindError: The address can't be listened on. Raised before the block runs.

    Resource handling:
        At the end responses under way get `DRAIN_TIMEOUT`, and all of it takes `STOP_TIMEOUT`
        at most. A failure of the server ends the block.
    """
    sockets = await _bind(host, port)
    port = sockets[0].getsockname()[1]
    server = _Server(sockets, app)
    started, stopped = trio.Event(), trio.Event()
    daemon = trio.lowlevel.current_trio_token()

    def serve() -> None:
        trio.run(server.run, partial(daemon.run_sync_soon, started.set))

    async def run() -> None:
        # A fresh context: the event loop must not take the daemon's task for its own.
        try:
            await trio.to_thread.run_sync(
                partial(contextvars.Context().run, serve),
                abandon_on_cancel=True,
                limiter=trio.CapacityLimiter(1),
                thread_name="panicd-http",
            )
        finally:
            stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await started.wait()
        try:
            yield HttpServer(host, port)
        finally:
            server.stop()
            with trio.move_on_after(STOP_TIMEOUT, shield=True):
                await stopped.wait()
            nursery.cancel_scope.cancel()


async def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA does not allow
        raise HttpBindError(f"can't listen on {host}:{port}: {error}") from error
    # Sockets of the standard library, for another event loop to make its own.
    return [socket.socket(fileno=listener.socket.detach()) for listener in listeners]


@dataclass(eq=False, slots=True)
class _Held:
    """An open connection.

    Attributes:
        peer: the client's address.
        since: when it was opened or its last response ended, on trio's clock.
        scope: ends it.
        answering: the server is at work for it; if not, the server waits for the client.
    """

    peer: str
    since: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    answering: bool = False

    def goes_on(self) -> None:
        """Give the client the full time of an exchange again: it has taken a part of a download."""
        self.scope.deadline = trio.current_time() + EXCHANGE_TIMEOUT


class _Server:
    """Accepts connections and limits their number; lives in the server's thread."""

    def __init__(self, sockets: list[socket.socket], app: WebApp) -> None:
        self._sockets = sockets
        self._app = app
        self._held: dict[_Held, None] = {}
        self._accepting = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until told to stop.

        Args:
            started: called when connections are about to be accepted.
        """
        self._token = trio.lowlevel.current_trio_token()
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in self._sockets
        ]
        self._app.start()
        started()
        async with trio.open_nursery() as connections:
            with self._accepting:
                await trio.serve_listeners(self._serve, listeners, handler_nursery=connections)
            for held in self._held:
                if not held.answering:
                    held.scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + DRAIN_TIMEOUT

    def stop(self) -> None:
        """Tell it to stop; from another thread, after ``started`` was called."""
        assert self._token is not None
        # If it has failed there is nothing to stop.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._accepting.cancel)

    async def _serve(self, stream: trio.SocketStream) -> None:
        held = _Held(_peer(stream), trio.current_time())
        self._held[held] = None
        self._make_room()
        try:
            with held.scope, contextlib.suppress(trio.BrokenResourceError):
                await self._converse(held, stream)
        except h11.LocalProtocolError as error:
            # A bug of ours that one client has found must not end the daemon for all.
            get_logger().exception("malformed HTTP", problem=str(error))
        finally:
            del self._held[held]
            if held.scope.cancelled_caught:
                # It may have ended already.
                with contextlib.suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            await trio.aclose_forcefully(stream)

    def _make_room(self) -> None:
        """Drop a connection that waits for its client if there are too many."""
        kept = [held for held in self._held if not held.scope.cancel_called]
        if len(kept) > CONNECTION_LIMIT:
            crowd = Counter(held.peer for held in kept)
            waiting = [held for held in kept if not held.answering]
            max(waiting, key=lambda held: (crowd[held.peer], -held.since)).scope.cancel()

    async def _converse(self, held: _Held, stream: trio.SocketStream) -> None:
        """Answer a connection's requests, one after the other."""
        web = self._app.web()
        held.scope.deadline = held.since + EXCHANGE_TIMEOUT
        transport: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        if web.tls is not None:
            transport = trio.SSLStream(stream, web.tls, server_side=True, https_compatible=True)
            await transport.do_handshake()
        wire = _Wire(transport, held.peer)
        going_on = True
        while going_on:
            request = await wire.next_request(web)
            if isinstance(request, Request):
                held.answering = True
                response = await self._app.answer(request)
                # From here on the server waits for the client to read everything.
                held.answering = False
            elif request is not None:
                response = request
            else:
                return
            # A connection ends with the configuration that let it in.
            going_on = await wire.respond(response, last=self._is_last(web), goes_on=held.goes_on)
            if going_on:
                held.since = trio.current_time()
                held.scope.deadline = held.since + min(KEEP_ALIVE_TIMEOUT, EXCHANGE_TIMEOUT)
                await wire.wait_for_more()
                held.scope.deadline = held.since + EXCHANGE_TIMEOUT
        with trio.move_on_after(LINGER):
            await _close(stream, transport)

    def _is_last(self, web: WebConfig) -> bool:
        return self._accepting.cancel_called or self._app.web() is not web


class _Wire:
    """HTTP/1.1 on one connection."""

    def __init__(self, transport: trio.abc.Stream, peer: str) -> None:
        self._transport = transport
        self._peer = peer
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self._bodiless = False

    async def next_request(self, web: WebConfig) -> Request | Response | None:
        """Return the next request; or the answer to a malformed one; None at the end."""
        self._bodiless = False
        try:
            event = await self._next_event()
            if not isinstance(event, h11.Request):
                return None
            headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in event.headers}
            method, target = event.method.decode("ascii"), event.target.decode("latin-1")
            self._bodiless = method == "HEAD"
            length = int(headers.get("content-length", "0"))
            if "transfer-encoding" in headers or length > BODY_LIMIT * (method == "POST"):
                return Response(b"A request has no such body here.\n", 413)
            body = await self._body()
        except h11.RemoteProtocolError as error:
            return Response(b"That is no HTTP request.\n", error.error_status_hint)
        path, _, query = target.partition("?")
        return Request(
            path,
            method,
            headers,
            web.clients_verified,
            peer=self._peer,
            query=query,
            encrypted=web.tls is not None,
            body=body,
        )

    async def respond(self, response: Response, *, last: bool, goes_on: Callable[[], None]) -> bool:
        """Send a response, and return whether another request may follow.

        Args:
            response: what is sent.
            last: no other request may follow.
            goes_on: called whenever the client has taken a part of a download.
        """
        try:
            return await self._respond(response, last=last, goes_on=goes_on)
        finally:
            if response.download is not None:
                response.download.close()

    async def _respond(
        self, response: Response, *, last: bool, goes_on: Callable[[], None]
    ) -> bool:
        parser = self._parser
        headers = response.all_headers()
        if last or parser.their_state in {h11.SEND_BODY, h11.ERROR}:
            headers["Connection"] = "close"
        head = h11.Response(
            status_code=response.status,
            reason=HTTPStatus(response.status).phrase,
            headers=[(name, value) for name, value in headers.items()],
        )
        sent = parser.send(head) or b""
        if not self._bodiless and response.download is not None:
            chunks = response.download.chunks()
            try:
                while chunk := await _next_of(chunks):
                    sent += parser.send(h11.Data(data=chunk)) or b""
                    await self._transport.send_all(sent)
                    sent = b""
                    goes_on()
            except OSError as error:  # the client sees that it is incomplete
                get_logger().warning("a file was not sent completely", problem=str(error))
                return False
        elif not self._bodiless:
            sent += parser.send(h11.Data(data=response.body)) or b""
        sent += parser.send(h11.EndOfMessage()) or b""
        await self._transport.send_all(sent)
        if parser.states != {h11.SERVER: h11.DONE, h11.CLIENT: h11.DONE}:
            return False
        parser.start_next_cycle()
        return True

    async def wait_for_more(self) -> None:
        """Return when the client has sent more than it was asked for, or has closed."""
        if not self._parser.trailing_data[0]:
            await self._receive()

    async def _body(self) -> bytes:
        """Return the rest of a request; its length is known to be within the limit."""
        body = b""
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
        return body

    async def _next_event(self) -> object:
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                await self._receive()
            else:
                return event

    async def _receive(self) -> None:
        received = await self._transport.receive_some(RECEIVE_SIZE)
        self._parser.receive_data(bytes(received))


async def _next_of(chunks: Iterator[bytes]) -> bytes:
    """Return a download's next part; empty at its end.

    Raises:
        OSError: it can't be read, or no thread is left to read it in.
    """
    with needing_a_thread():
        return await trio.to_thread.run_sync(next, chunks, b"")


def _peer(stream: trio.SocketStream) -> str:
    try:
        address = stream.socket.getpeername()
    except OSError:  # it ended before this looked at it
        return ""
    return str(address[0])


async def _close(
    stream: trio.SocketStream, transport: trio.SocketStream | trio.SSLStream[trio.SocketStream]
) -> None:
    """Close in order: read what the client still sends, so that it can read its response."""
    if transport is stream:
        await stream.send_eof()
        while await stream.receive_some(RECEIVE_SIZE):
            pass
    else:
        await transport.aclose()
