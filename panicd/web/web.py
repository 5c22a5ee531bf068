"""Which answers there are over HTTP, and who gets them: metrics, health, and the pages.

Metrics are rendered from snapshots, in a worker thread, once at a time; all who ask meanwhile get
the same bytes. Pages are also made one at a time, separately.
"""

import gzip
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Final, Protocol

import trio

from panicd.config.web import WebConfig
from panicd.host.logs import get_logger
from panicd.host.metrics import CONTENT_TYPE
from panicd.web.basic_auth import BasicAuth, Verdict, user_of

READING: Final = frozenset({"GET", "HEAD"})

TEXT: Final = "text/plain; charset=utf-8"

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The headers of every answer, unless it says otherwise: they leave a browser nothing to misuse."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes:
        path: without the query.
        query: what follows ``?``, as it was sent.
        method: such as ``GET``.
        headers: by their names in lower case; of doubled ones the last.
        clients_verified: the client has shown a certificate that was verified.
        authenticated: the client has logged in; set for the pages.
        peer: the client's address; empty if it is not known.
        user: the client's name, if it gave a password; set for the pages.
        operator: the client may act on domains, and asks over TLS or loopback.
        encrypted: it came over TLS.
        body: of a POST.
    """

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    clients_verified: bool = False
    authenticated: bool = False
    peer: str = ""
    query: str = ""
    user: str = ""
    operator: bool = False
    encrypted: bool = False
    body: bytes = b""


class Download(Protocol):
    """A body that is made bit by bit; closed in the end, whether it was read or not."""

    length: int

    def chunks(self) -> Iterator[bytes]:
        """Yield it, in parts. Blocking."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a client. ``headers`` are added to ``HEADERS``; a ``download`` is the body."""

    body: bytes
    status: int = 200
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    download: Download | None = None

    def all_headers(self) -> dict[str, str]:
        """Return every header."""
        length = len(self.body) if self.download is None else self.download.length
        told = {"Content-Length": str(length), "Content-Type": self.content_type}
        return HEADERS | told | dict(self.headers)


OPEN: Final = WebConfig()
"""Everybody may read, without encryption."""

NOT_FOUND: Final = Response(b"There is nothing here.\n", 404)


@dataclass(frozen=True, slots=True)
class Exposition:
    """One rendering of the metrics, plain and compressed."""

    plain: bytes
    compressed: bytes


class SharedRender:
    """Renders once at a time; whoever asks meanwhile shares the outcome.

    Args:
        render: Renders the metrics; called in a thread of its own.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panicd-render")
        self._lock = threading.Lock()
        self._latest: Future[Exposition] | None = None

    def join(self) -> Future[Exposition]:
        """Return the rendering that is under way, or begin one."""
        with self._lock:
            if self._latest is None or self._latest.done():
                self._latest = self._executor.submit(self._render_once)
            return self._latest

    def _render_once(self) -> Exposition:
        plain = self._render()
        # Level 1 takes 2 % of the time of the rendering itself; higher ones take much more.
        return Exposition(plain, gzip.compress(plain, compresslevel=1))


class WebApp:
    """Answers requests, in the server's event loop.

    Args:
        render: returns the metrics (`CONTENT_TYPE`); called in a thread, never twice at a time.
        healthy: tells whether the daemon does its work; called in the server's thread, and must
            return immediately.
        not_ready: yields each reason why the daemon is not ready; called likewise.
        pages: answers everything else; called in a thread, never twice at a time except for a POST.
        web: returns the web configuration in force; the same object for as long as it is.
    """

    def __init__(
        self,
        *,
        render: Callable[[], bytes],
        healthy: Callable[[], bool],
        not_ready: Callable[[], list[str]] = list,
        pages: Callable[[Request], Response] = lambda _request: NOT_FOUND,
        web: Callable[[], WebConfig] = lambda: OPEN,
    ) -> None:
        self._metrics = SharedRender(render)
        self._healthy = healthy
        self._not_ready = not_ready
        self._pages = pages
        self.web = web

    def start(self) -> None:
        """Begin to answer, in the event loop of the caller."""
        self._auth = BasicAuth()
        self._page_turn = trio.CapacityLimiter(1)
        self._post_turn = trio.CapacityLimiter(1)  # a form may wait for what it asks for
        self._scrape_turn = trio.CapacityLimiter(1000)  # as many as there can be connections

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._answer(request)
        except Exception:  # noqa: BLE001 - a bug in a page is no reason to stop the daemon
            get_logger().exception("could not be answered", path=request.path)
            return Response(b"This failed; panicd's log says why.\n", 500)

    async def _answer(self, request: Request) -> Response:
        web = self.web()
        user = ""
        if web.users:
            refusal = await self._refuse(web.users, request)
            if refusal is not None:
                return refusal
            user = user_of(request.headers.get("authorization", ""))
        operator = user in web.operators and (request.encrypted or _is_loopback(request.peer))
        if request.method not in READING and not (request.method == "POST" and operator):
            return Response(b"Only GET and HEAD.\n", 405, headers={"Allow": "GET, HEAD"})
        authenticated = bool(web.users) or request.clients_verified
        return await self._route(
            replace(request, authenticated=authenticated, user=user, operator=operator)
        )

    async def _refuse(self, users: Mapping[str, bytes], request: Request) -> Response | None:
        authorization = request.headers.get("authorization", "")
        match await self._auth.check(users, authorization, request.peer):
            case Verdict.ADMITTED:
                return None
            case Verdict.BUSY:
                again = {"Retry-After": "5"}
                return Response(b"Too many are being checked.\n", 503, headers=again)
            case Verdict.REFUSED:
                challenge = {"WWW-Authenticate": 'Basic realm="panicd", charset="UTF-8"'}
                return Response(b"Who are you?\n", 401, headers=challenge)

    async def _route(self, request: Request) -> Response:
        if request.method == "POST":
            return await trio.to_thread.run_sync(
                self._pages, request, abandon_on_cancel=True, limiter=self._post_turn
            )
        match request.path:
            case "/healthz":
                good = self._healthy()
                return Response(b"ok\n") if good else Response(b"not healthy\n", 503)
            case "/readyz":
                reasons = self._not_ready()
                if not reasons:
                    return Response(b"ok\n")
                return Response("".join(f"{reason}\n" for reason in reasons).encode(), 503)
            case "/metrics":
                return await trio.to_thread.run_sync(
                    self._scrape, request, abandon_on_cancel=True, limiter=self._scrape_turn
                )
            case _:
                return await trio.to_thread.run_sync(
                    self._pages, request, abandon_on_cancel=True, limiter=self._page_turn
                )

    def _scrape(self, request: Request) -> Response:
        exposition = self._metrics.join().result()
        headers = {"Vary": "Accept-Encoding"}
        if _accepts_gzip(request.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
            return Response(exposition.compressed, 200, CONTENT_TYPE, headers)
        return Response(exposition.plain, 200, CONTENT_TYPE, headers)


def _is_loopback(peer: str) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether a client asks for gzip by name and not with a weight of 0 (RFC 9110, 12.5.3)."""
    for item in accept_encoding.lower().split(","):
        coding, *parameters = item.replace(" ", "").split(";")
        if coding == "gzip":
            return not any(
                parameter.startswith("q=") and not parameter[2:].strip("0.")
                for parameter in parameters
            )
    return False
