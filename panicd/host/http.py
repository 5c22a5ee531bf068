"""The HTTP endpoint: metrics and health, in a thread with an event loop of its own.

Nothing here touches the daemon's loop: a scrape is rendered from snapshots, in a worker thread,
once at a time, and all who ask meanwhile get the same bytes. Of the daemon's it costs its share
of the interpreter, and nothing else.

A client may be slow, silent, malformed or many. An exchange has a time limit, headers have a
size, and when there are too many connections the one that has asked nothing for longest goes.
"""

import contextlib
import contextvars
import gzip
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from panicd.host.metrics import CONTENT_TYPE

CONNECTION_LIMIT = 64
"""Connections at a time: a few Prometheus servers and people need few, and each holds a file
descriptor that a domain's monitor may need."""

BACKLOG: Final = 128
"""Connections that wait in the kernel, and that are accepted at one go."""

EXCHANGE_TIMEOUT = 30.0
"""Seconds from the opening of a connection, or the end of its last response, in which the next
response must be complete. It ends what never asks, asks byte by byte, or does not read."""

KEEP_ALIVE_TIMEOUT: Final = 5
"""Seconds that a connection stays open when nothing more is asked on it."""

HEADER_LIMIT: Final = 8 * 1024
"""Bytes of a request's line and headers that are kept while their end has not come."""

DRAIN_TIMEOUT: Final = 1
"""Seconds that a response under way gets to finish when the server stops."""

STOP_TIMEOUT: Final = 2.0
"""Seconds after which a server that has not stopped is left behind, its thread with it."""

_HEADERS: Final = [
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]

_INDEX: Final = """<!DOCTYPE html>
<html lang="en">
<title>panicd</title>
<h1>panicd</h1>
<ul>
<li><a href="/metrics">Metrics</a>
<li><a href="/healthz">Health</a>
</ul>
</html>
"""


class HttpBindError(Exception):
    """The address for HTTP can't be listened on; the message names it."""


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server that runs, and where it listens."""

    host: str
    port: int


# The application


@dataclass(frozen=True, slots=True)
class Exposition:
    """One rendering of the metrics, as it is and compressed."""

    plain: bytes
    compressed: bytes


class SharedRender:
    """Renders once at a time; who asks while it does shares the outcome.

    Args:
        render: Renders the metrics; called in a thread of its own.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panicd-render")
        self._lock = threading.Lock()
        self._latest: Future[Exposition] | None = None

    def join(self) -> Future[Exposition]:
        """Return the rendering under way, and begin one if there is none."""
        with self._lock:
            if self._latest is None or self._latest.done():
                self._latest = self._executor.submit(self._render_once)
            return self._latest

    def _render_once(self) -> Exposition:
        plain = self._render()
        # Level 1 takes 2 % of the time of the rendering itself; higher ones take much more.
        return Exposition(plain, gzip.compress(plain, compresslevel=1))


def build_app(*, render: Callable[[], bytes], healthy: Callable[[], bool]) -> Starlette:
    """Make the application: `/metrics`, `/healthz` and an index.

    Args:
        render: Returns the metrics (`CONTENT_TYPE`); called in a thread, never twice at a time.
        healthy: Tells whether the daemon does its work; called in the server's thread, and must
            return at once.
    """
    shared = SharedRender(render)

    def metrics(request: Request) -> Response:  # not async: it may wait, in a worker thread
        exposition = shared.join().result()
        headers = {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding"}
        if _accepts_gzip(request.headers.get("accept-encoding", "")):
            return Response(exposition.compressed, headers=headers | {"Content-Encoding": "gzip"})
        return Response(exposition.plain, headers=headers)

    async def healthz(_request: Request) -> Response:
        if healthy():
            return PlainTextResponse("ok\n")
        return PlainTextResponse("not healthy\n", status_code=503)

    async def index(_request: Request) -> Response:
        return HTMLResponse(_INDEX)

    app = Starlette(
        routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/", index)]
    )
    app.router.redirect_slashes = False
    return app


def _accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether gzip is asked for by name and not with a weight of 0 (RFC 9110, 12.5.3)."""
    for item in accept_encoding.lower().split(","):
        coding, *parameters = item.replace(" ", "").split(";")
        if coding == "gzip":
            return not any(
                parameter.startswith("q=") and not parameter[2:].strip("0.")
                for parameter in parameters
            )
    return False


# The server


class _Connection(H11Protocol):
    """uvicorn's connection, with the limits that uvicorn has not got."""

    dropped = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._restart_timer()
        self._make_room()

    def on_response_complete(self) -> None:
        self.exchange_timer.cancel()
        self._restart_timer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.exchange_timer.cancel()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close at once, whatever is still to be sent."""
        self.dropped = True
        self.transport.abort()

    def _restart_timer(self) -> None:
        self.exchange_timer = self.loop.call_later(EXCHANGE_TIMEOUT, self.drop)

    def _make_room(self) -> None:
        """Drop the connection that has gone without a request for longest, if there are too many.

        This one, which is new, is the last that it can be.
        """
        held = [c for c in self.connections if isinstance(c, _Connection) and not c.dropped]
        if len(held) > CONNECTION_LIMIT:
            idle = [c for c in held if c.cycle is None or c.cycle.response_complete]
            min(idle, key=lambda c: c.exchange_timer.when()).drop()


@contextlib.asynccontextmanager
async def serve_http(host: str, port: int, app: Starlette) -> AsyncIterator[HttpServer]:
    """Serve HTTP for as long as the block runs.

    Args:
        host: Address or name to listen on; an empty one stands for all addresses.
        port: TCP port; 0 takes a free one, which the value yielded tells.
        app: What is served.

    Yields:
        The server, which accepts connections.

    Raises:
        HttpBindError: The address can't be listened on. Raised before the block runs.

    Resource handling:
        At the end responses under way get `DRAIN_TIMEOUT`, and all of it takes `STOP_TIMEOUT`
        at most. A failure of the server ends the block.
    """
    sockets = await _bind(host, port)
    server = Server(
        Config(
            app,
            http=_Connection,
            interface="asgi3",
            lifespan="off",
            ws="none",
            backlog=BACKLOG,
            log_config=None,
            log_level="error",  # below it are mistakes of clients, at a rate that they choose
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=_HEADERS,
            h11_max_incomplete_event_size=HEADER_LIMIT,
            timeout_keep_alive=KEEP_ALIVE_TIMEOUT,
            timeout_graceful_shutdown=DRAIN_TIMEOUT,
        )
    )
    stopped = trio.Event()

    async def run() -> None:
        # A fresh context: the event loop must not take the daemon's task for its own. Outside
        # the main thread uvicorn installs no signal handlers.
        try:
            await trio.to_thread.run_sync(
                contextvars.Context().run,
                server.run,
                sockets,
                abandon_on_cancel=True,
                limiter=trio.CapacityLimiter(1),
                thread_name="panicd-http",
            )
        finally:
            stopped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield HttpServer(host, sockets[0].getsockname()[1])
        finally:
            server.should_exit = True
            with trio.move_on_after(STOP_TIMEOUT, shield=True):
                await stopped.wait()
            nursery.cancel_scope.cancel()


async def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA does not allow
        raise HttpBindError(f"can't listen on {host}:{port}: {error}") from error
    # uvicorn wants sockets of the standard library: the same ones, under another class.
    return [socket.socket(fileno=listener.socket.detach()) for listener in listeners]
