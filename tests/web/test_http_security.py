"""TLS, users, and clients that mean harm: with real sockets."""

import base64
import itertools
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import bcrypt
import pytest
import trio
import trio.testing

from panicd.config.web import WebConfig, load_web_config
from panicd.web import basic_auth, http
from panicd.web.basic_auth import BasicAuth, Verdict, client_of, cost_of, verify
from panicd.web.http import HttpServer, serve_http
from panicd.web.web import Request, Response, WebApp
from tests.parts.http import Answer, basic, connect, get, read_answer, until_closed, until_reset
from tests.parts.patience import fail_after, patience

TLS = Path(__file__).parents[1] / "parts/tls"
USERS = {"alice": bcrypt.hashpw(b"opensesame", bcrypt.gensalt(4))}
GOOD = basic("alice", "opensesame").partition(" ")[2]
WRONG = basic("alice", "guess").partition(" ")[2]
BODY = b"panicd_x 1\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

T = TypeVar("T")


def with_tls(tmp_path: Path, more: str = "") -> WebConfig:
    path = tmp_path / "web.yaml"
    path.write_text(
        f"tls_server_config: {{cert_file: {TLS}/server.crt, key_file: {TLS}/server.key{more}}}"
    )
    return load_web_config(path)


CLIENTS = f", client_ca_file: {TLS}/ca.crt, client_auth_type: RequireAndVerifyClientCert"


def client_context(
    *, certificate: bool = False, shown: tuple[Path, Path] | None = None
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=TLS / "ca.crt")
    if certificate:
        shown = TLS / "client.crt", TLS / "client.key"
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


class Served:
    """A server whose web configuration can be changed."""

    def __init__(self, server: HttpServer, web: list[WebConfig], seen: list[Request]) -> None:
        self.server = server
        self.web = web
        self.seen = seen


@asynccontextmanager
async def serving(web: WebConfig, body: bytes = BODY) -> AsyncIterator[Served]:
    force, seen = [web], list[Request]()

    def page(request: Request) -> Response:
        seen.append(request)
        return Response(b"page")

    app = WebApp(render=lambda: body, healthy=lambda: True, pages=page, web=lambda: force[0])
    with fail_after(20):
        async with serve_http("127.0.0.1", 0, app) as server:
            yield Served(server, force, seen)


@asynccontextmanager
async def secured(
    server: HttpServer, *, certificate: bool = False, shown: tuple[Path, Path] | None = None
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    stream = trio.SSLStream(
        await connect(server),
        client_context(certificate=certificate, shown=shown),
        server_hostname="localhost",
        https_compatible=True,
    )
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def get_secured(server: HttpServer, *, certificate: bool = False) -> Answer:
    async with secured(server, certificate=certificate) as stream:
        await stream.send_all(GET)
        return await read_answer(stream)


async def test_metrics_are_served_with_tls(tmp_path: Path) -> None:
    async with serving(with_tls(tmp_path)) as served, secured(served.server) as stream:
        for _ in range(3):
            await stream.send_all(GET)
            assert (await read_answer(stream)).body == BODY


async def test_a_client_without_its_certificate_is_turned_away(tmp_path: Path) -> None:
    async with serving(with_tls(tmp_path, CLIENTS)) as served:
        assert (await get_secured(served.server, certificate=True)).body == BODY
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await get_secured(served.server)


def openssl(*arguments: str | Path) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")


def shown_certificate(
    directory: Path, extension: str = "", *, days: int = 1, stranger: bool = False
) -> tuple[Path, Path, Path]:
    """A client's certificate, its key, and its CA's certificate: another CA's for a stranger."""
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    for name in ("ca", "other"):
        files = "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.crt"
        openssl(*new, "-x509", "-subj", "/CN=CA", *files)
    certificate, key, request = (directory / f"client.{suffix}" for suffix in ("crt", "key", "csr"))
    openssl(*new, "-subj", "/CN=client", "-keyout", key, "-out", request)
    (directory / "extensions").write_text(f"basicConstraints=CA:FALSE\n{extension}\n")
    ca = directory / ("other" if stranger else "ca")
    signed = "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", str(days)
    extensions = "-extfile", directory / "extensions"
    openssl("x509", "-req", "-in", request, "-out", certificate, *signed, *extensions)
    return certificate, key, directory / "ca.crt"


@pytest.mark.parametrize("auth", ["RequireAndVerifyClientCert", "VerifyClientCertIfGiven"])
@pytest.mark.parametrize(
    ("made", "good"),
    [
        ({}, True),
        ({"extension": "extendedKeyUsage=clientAuth"}, True),
        ({"extension": "extendedKeyUsage=serverAuth"}, False),
        ({"days": 0}, False),
        ({"stranger": True}, False),
    ],
    ids=str,
)
async def test_a_client_with_a_certificate_that_is_not_good_is_turned_away(
    tmp_path: Path, auth: str, made: dict[str, Any], good: bool
) -> None:
    certificate, key, ca = shown_certificate(tmp_path, **made)

    async def ask(server: HttpServer) -> bytes:
        async with secured(server, shown=(certificate, key)) as stream:
            await stream.send_all(GET)
            return (await read_answer(stream)).body

    web = with_tls(tmp_path, f", client_ca_file: {ca}, client_auth_type: {auth}")
    async with serving(web) as served:
        if good:
            assert await ask(served.server) == BODY
        else:
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                await ask(served.server)
            assert not served.seen


async def test_a_verified_client_is_known_to_the_pages(tmp_path: Path) -> None:
    async with (
        serving(with_tls(tmp_path, CLIENTS)) as served,
        secured(served.server, certificate=True) as stream,
    ):
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_answer(stream)).status == 200
    assert [request.authenticated for request in served.seen] == [True]


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", GET, b"\0" * 100_000],
    ids=["silent", "slow", "half a hello", "plain HTTP", "garbage"],
)
async def test_a_client_that_never_agrees_on_tls_hinders_no_scrape(
    tmp_path: Path, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTION_LIMIT", 3)
    async with serving(with_tls(tmp_path)) as served:
        bad = [await connect(served.server) for _ in range(8)]
        for stream in bad:
            try:
                await stream.send_all(sent)
            except trio.BrokenResourceError:
                continue
        assert (await get_secured(served.server)).body == BODY
        for stream in bad[:5]:
            await until_closed(stream)
        for stream in bad:
            await stream.aclose()


async def test_a_handshake_has_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "EXCHANGE_TIMEOUT", 0.05)
    async with serving(with_tls(tmp_path)) as served, await connect(served.server) as silent:
        assert await until_closed(silent) == b""


async def test_who_does_not_read_over_tls_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "EXCHANGE_TIMEOUT", 1.0)
    async with (
        serving(with_tls(tmp_path), b"x" * 50_000_000) as served,
        secured(served.server) as deaf,
    ):
        await deaf.send_all(GET)
        await until_reset(deaf.transport_stream)


async def test_a_reload_ends_what_was_let_in_before(tmp_path: Path) -> None:
    async with serving(WebConfig()) as served, await connect(served.server) as kept:
        await kept.send_all(GET)
        assert (await read_answer(kept)).status == 200
        served.web[0] = with_tls(tmp_path)
        await kept.send_all(GET)
        assert (await read_answer(kept)).headers["connection"] == "close"
        assert await until_closed(kept) == b""
        assert (await get_secured(served.server)).body == BODY


# Clients that mean harm


async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async with serving(WebConfig()) as served, await connect(served.server) as stream:
        await stream.send_all(GET * 3 + GET.replace(b"metrics", b"healthz"))
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 4 or not answers.endswith(b"ok\n"):
            answers += await stream.receive_some()
        assert answers.count(BODY) == 3


async def test_a_flood_of_requests_ahead_hinders_no_scrape() -> None:
    async with serving(WebConfig()) as served, await connect(served.server) as stream:

        async def flood() -> None:  # and nothing is read of what comes back
            while True:
                await stream.send_all(GET * 100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            for _ in range(3):
                assert (await get(served.server, "/metrics")).body == BODY
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_a_body_is_not_read(head: bytes) -> None:
    async with serving(WebConfig()) as served, await connect(served.server) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + head + GET)
        answer = await read_answer(stream)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await until_closed(stream) == b"", "what follows a body is no request"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
        ),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_what_is_answered_to_odd_requests(sent: bytes, status: int) -> None:
    async with serving(WebConfig()) as served, await connect(served.server) as stream:
        await stream.send_all(sent)
        await stream.send_eof()
        received = await until_closed(stream)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert (BODY in received) is (status == 200 and not sent.startswith(b"HEAD"))


FRAGMENTS = [
    GET,
    GET.replace(b"GET", b"HEAD"),
    GET.replace(b"1.1", b"1.0"),
    GET.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
    GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"),
    GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"CONNECT example:443 HTTP/1.1\r\nHost: example:443\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x/metrics#y HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"\0garbage\r\n\r\n",
    b"\r\n",
    b"",
]


async def test_no_sequence_of_requests_ends_the_server() -> None:
    async with serving(WebConfig()) as served:
        for first, second in itertools.product(FRAGMENTS, repeat=2):
            async with await connect(served.server) as stream:
                await stream.send_all(first + second)
                await stream.send_eof()
                await until_closed(stream)
        assert (await get(served.server, "/metrics")).body == BODY


async def test_who_does_not_read_makes_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_LIMIT", 3)
    large = b"x" * 10_000_000
    async with serving(WebConfig(), large) as served:
        deaf = [await connect(served.server) for _ in range(3)]
        for stream in deaf:
            await stream.send_all(GET)
            assert await stream.receive_some(1)
        assert (await get(served.server, "/metrics")).body == large
        for stream in deaf:
            await stream.aclose()


# Users


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/nothing"])
async def test_everything_asks_for_a_name(path: str) -> None:
    async with serving(WebConfig(users=USERS)) as served:
        refused = await get(served.server, path)
        assert refused.status == 401
        assert refused.headers["www-authenticate"].startswith("basic realm=")
        admitted = await get(served.server, path, basic("alice", "opensesame"))
        assert admitted.status == 200
    assert all(request.authenticated for request in served.seen)


async def test_without_users_nobody_is_known_to_the_pages() -> None:
    async with serving(WebConfig()) as served:
        await get(served.server, "/", basic("alice", "opensesame"))
    assert [request.authenticated for request in served.seen] == [False]


@pytest.mark.parametrize(
    "header",
    [
        basic("alice", "opensesam"),
        basic("alice", "opensesame\0"),
        basic("alice", "x" * 1000),
        basic("bob", "opensesame"),
        basic("", ""),
        "Authorization: Basic !!!",
        "Authorization: Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Authorization: Basic",
        "Authorization: Bearer opensesame",
    ],
)
async def test_others_are_refused(header: str) -> None:
    async with serving(WebConfig(users=USERS)) as served:
        assert (await get(served.server, "/metrics", header)).status == 401


async def test_a_good_password_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[bytes] = []
    check = bcrypt.checkpw

    def checkpw(password: bytes, hashed: bytes) -> bool:
        computed.append(password)
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    async with serving(WebConfig(users=USERS)) as served:
        for _ in range(3):
            good = await get(served.server, "/metrics", basic("alice", "opensesame"))
            assert good.status == 200
        assert computed == [b"opensesame"]
        other = {"alice": bcrypt.hashpw(b"other", bcrypt.gensalt(4))}
        served.web[0] = replace(served.web[0], users=other)
        changed = await get(served.server, "/metrics", basic("alice", "opensesame"))
        assert changed.status == 401, "a changed password is asked for anew"


async def test_checks_hold_up_nobody_who_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = threading.Event()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()
    verdicts: list[Verdict] = []
    auth = BasicAuth()
    assert await auth.check(USERS, GOOD, "192.0.2.1") is Verdict.ADMITTED

    def checkpw(_password: bytes, _hashed: bytes) -> bool:
        token.run_sync_soon(begun.set)
        return not finish.wait(patience(10))

    async def guess(peer: str) -> None:
        verdicts.append(await auth.check(USERS, WRONG, peer))

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    with fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guess, "192.0.2.1")
            await begun.wait()
            for number in range(basic_auth.WAITING_LIMIT):
                nursery.start_soon(guess, f"192.0.2.{number}")
            await trio.testing.wait_all_tasks_blocked()
            await guess("192.0.2.99")
            assert verdicts == [Verdict.BUSY]
            assert await auth.check(USERS, GOOD, "192.0.2.1") is Verdict.ADMITTED
            finish.set()
    assert verdicts == [Verdict.BUSY, *[Verdict.REFUSED] * (basic_auth.WAITING_LIMIT + 1)]


async def test_one_client_does_not_take_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = threading.Event()
    verdicts = dict[str, list[Verdict]](guesser=[], other=[])
    auth = BasicAuth()

    def checkpw(_password: bytes, _hashed: bytes) -> bool:
        return not finish.wait(patience(10))

    async def guess(client: str) -> None:
        peer = "192.0.2.1" if client == "guesser" else "192.0.2.2"
        verdicts[client].append(await auth.check(USERS, WRONG, peer))

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    asked = basic_auth.WAITING_LIMIT * 2
    with fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(asked):
                nursery.start_soon(guess, "guesser")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(guess, "other")
            await trio.testing.wait_all_tasks_blocked()
            finish.set()
    looked_at = 1 + basic_auth.WAITING_OF_ONE
    refused = [Verdict.REFUSED] * looked_at
    assert verdicts["guesser"] == [Verdict.BUSY] * (asked - looked_at) + refused
    assert verdicts["other"] == [Verdict.REFUSED]


async def test_a_check_that_was_given_up_counts_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread computes on, for nothing can end it: no other begins before, nor at once then."""
    finish, begun = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    times: list[float] = []
    seconds = 0.05
    auth = BasicAuth()

    def verify(_hashed: bytes, _password: bytes, _highest: int) -> tuple[bool, float]:
        times.append(time.monotonic())
        token.run_sync_soon(begun.set)
        assert finish.wait(patience(10))
        times.append(time.monotonic())
        return False, seconds

    monkeypatch.setattr(basic_auth, "verify", verify)
    with fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auth.check, USERS, WRONG, "192.0.2.1")
            await begun.wait()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auth.check, USERS, WRONG, "192.0.2.2")
            await trio.testing.wait_all_tasks_blocked()
            finish.set()
    _, first_ended, second_began, _ = times
    assert second_began - first_ended >= seconds / basic_auth.SHARE - seconds


async def test_few_good_passwords_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[bytes] = []
    checkpw = bcrypt.checkpw

    def counting(password: bytes, hashed: bytes) -> bool:
        computed.append(hashed)
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    monkeypatch.setattr(basic_auth, "REMEMBERED", 2)
    auth = BasicAuth()
    first, second, third, _ = COSTS
    for name in (first, second, first, third, first, second):
        right = basic(name, "x").partition(" ")[2]
        assert await auth.check(COSTS, right, "") is Verdict.ADMITTED
    assert computed == [COSTS[name] for name in (first, second, third, second)]


COSTS = {f"cost-{cost}": bcrypt.hashpw(b"x", bcrypt.gensalt(cost)) for cost in (6, 4, 9, 8)}


@pytest.mark.parametrize("name", [*COSTS, "nobody", ""])
async def test_a_refusal_costs_the_same_whoever_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rounds: list[int] = []

    def computing(compute: Callable[[bytes, bytes], T]) -> Callable[[bytes, bytes], T]:
        def computed(password: bytes, hashed: bytes) -> T:
            rounds.append(2 ** cost_of(hashed))
            return compute(password, hashed)

        return computed

    for function in ("checkpw", "hashpw"):
        monkeypatch.setattr(bcrypt, function, computing(getattr(bcrypt, function)))
    wrong = basic(name, "guess").partition(" ")[2]
    assert await BasicAuth().check(COSTS, wrong, "") is Verdict.REFUSED
    assert sum(rounds) == 2**9


@pytest.mark.parametrize("name", [*COSTS, "nobody"])
def test_a_refusal_s_seconds_are_those_that_it_took(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    now = iter((100.0, 107.0))
    monkeypatch.setattr(time, "thread_time", lambda: next(now))
    assert verify(COSTS.get(name, b""), b"guess", 9) == (False, 7.0)


@pytest.mark.parametrize("name", COSTS)
async def test_each_password_lets_in(name: str) -> None:
    right = basic(name, "x").partition(" ")[2]
    assert await BasicAuth().check(COSTS, right, "") is Verdict.ADMITTED


async def test_refusals_take_a_share_of_one_cpu(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    seconds = 1.0

    def verify(hashed: bytes, password: bytes, _highest: int) -> tuple[bool, float]:
        return hashed != b"" and password == b"opensesame", seconds

    monkeypatch.setattr(basic_auth, "verify", verify)
    auth = BasicAuth()
    for number in range(10):
        assert await auth.check(USERS, WRONG, f"192.0.2.{number}") is Verdict.REFUSED
    rest = seconds / basic_auth.SHARE - seconds
    assert autojump_clock.current_time() == pytest.approx(9 * rest)
    assert await auth.check(USERS, GOOD, "") is Verdict.ADMITTED
    assert autojump_clock.current_time() == pytest.approx(10 * rest)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("", "192.0.2.1", False),
    ],
)
def test_clients_are_told_apart(one: str, other: str, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same


async def test_wrong_passwords_keep_nobody_from_scraping() -> None:
    """A flood over many connections, with a hash of a usual cost."""
    users = {"alice": bcrypt.hashpw(b"opensesame", bcrypt.gensalt(10))}
    statuses: Counter[int] = Counter()

    async def flood(server: HttpServer, number: int) -> None:
        while True:
            name = "alice" if number % 2 else f"nobody-{number}"
            answer = await get(server, "/metrics", basic(name, "guess"))
            statuses[answer.status] += 1

    async with serving(WebConfig(users=users)) as served:
        assert (await get(served.server, "/metrics", basic("alice", "opensesame"))).status == 200
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(flood, served.server, number)
            while statuses[401] < 3:
                scraped = await get(served.server, "/metrics", basic("alice", "opensesame"))
                assert (scraped.status, scraped.body) == (200, BODY)
            nursery.cancel_scope.cancel()
    assert statuses[503], "who comes too often is asked to come again"
    assert set(statuses) == {401, 503}
