import gzip
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from panicd.web import http
from panicd.web.http import HttpBindError, HttpServer, serve_http
from panicd.web.web import SharedRender, WebApp
from tests.parts.http import connect, get, read_answer, until_closed, until_reset
from tests.parts.patience import fail_after, patience

BODY = b"# HELP panicd_x A metric.\n# TYPE panicd_x gauge\npanicd_x 1\n"


@asynccontextmanager
async def serving(body: bytes = BODY, *, healthy: bool = True) -> AsyncIterator[HttpServer]:
    app = WebApp(render=lambda: body, healthy=lambda: healthy)
    with fail_after(20):
        async with serve_http("127.0.0.1", 0, app) as server:
            yield server


# What is served


async def test_metrics_are_served_as_they_are() -> None:
    async with serving() as server:
        answer = await get(server, "/metrics")
    assert (answer.status, answer.body) == (200, BODY)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip", True),
        ("deflate, GZIP ;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("x-gzip-not", False),
    ],
)
async def test_metrics_are_compressed_if_accepted(accepted: str, compressed: bool) -> None:
    async with serving() as server:
        answer = await get(server, "/metrics", f"Accept-Encoding: {accepted}")
    assert (answer.headers.get("content-encoding") == "gzip") is compressed
    assert (gzip.decompress(answer.body) if compressed else answer.body) == BODY


@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
async def test_health(healthy: bool, status: int) -> None:
    async with serving(healthy=healthy) as server:
        assert (await get(server, "/healthz")).status == status


@pytest.mark.parametrize("path", ["/metrics/", "/favicon.ico", "/..%2f..%2fetc/passwd", "//"])
async def test_there_is_nothing_else(path: str) -> None:
    async with serving() as server:
        assert (await get(server, path)).status == 404


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/nothing"])
async def test_headers_give_a_browser_nothing_to_misuse(path: str) -> None:
    async with serving() as server:
        headers = (await get(server, path)).headers
    assert "server" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["cache-control"] == "no-store"


async def test_a_bug_in_rendering_is_a_500_and_no_more() -> None:
    def render() -> bytes:
        raise KeyError("bug")

    with fail_after(20):
        app = WebApp(render=render, healthy=lambda: True)
        async with serve_http("127.0.0.1", 0, app) as server:
            assert (await get(server, "/metrics")).status == 500
            assert (await get(server, "/healthz")).status == 200


# Rendering once at a time


def test_who_asks_during_a_rendering_shares_it() -> None:
    begun, finish = threading.Semaphore(0), threading.Semaphore(0)
    renders: list[bytes] = []

    def render() -> bytes:
        begun.release()
        assert finish.acquire(timeout=patience(10))
        renders.append(b"%d" % len(renders))
        return renders[-1]

    shared = SharedRender(render)
    first = shared.join()
    assert begun.acquire(timeout=patience(10))
    second = shared.join()
    finish.release()
    assert [first.result(10).plain, second.result(10).plain] == [b"0", b"0"]
    finish.release()
    assert shared.join().result(10).plain == b"1", "what is over is not shared"


async def test_a_rendering_holds_up_no_health_check() -> None:
    begun, finish = threading.Event(), threading.Event()

    def render() -> bytes:
        begun.set()
        finish.wait(patience(10))
        return BODY

    async def scrape(server: HttpServer) -> None:
        assert (await get(server, "/metrics")).body == BODY

    with fail_after(20):
        app = WebApp(render=render, healthy=lambda: True)
        async with serve_http("127.0.0.1", 0, app) as server, trio.open_nursery() as nursery:
            nursery.start_soon(scrape, server)
            await trio.to_thread.run_sync(begun.wait)
            assert (await get(server, "/healthz")).status == 200
            finish.set()


# Clients that behave badly


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" * 2,
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:20]),
)
async def test_a_bad_client_hinders_no_scrape(sent: bytes) -> None:
    async with serving() as server:
        async with await connect(server) as bad:
            await bad.send_all(sent)
            assert (await get(server, "/metrics")).body == BODY
        assert (await get(server, "/metrics")).body == BODY


async def test_headers_have_a_limit() -> None:
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nX: " + b"x" * http.HEADER_LIMIT)
        assert (await read_answer(stream)).status == 431


async def test_a_client_that_does_not_read_hinders_no_scrape() -> None:
    large = b"x" * 10_000_000
    async with serving(large) as server, await connect(server) as deaf:
        await deaf.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await deaf.receive_some(1)
        assert (await get(server, "/metrics")).body == large


@pytest.mark.parametrize("sent", [b"", b"GET /metr"], ids=["silent", "slow"])
async def test_who_does_not_finish_asking_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "EXCHANGE_TIMEOUT", 0.05)
    async with serving() as server, await connect(server) as slow:
        await slow.send_all(sent)
        assert await until_closed(slow) == b""


async def test_who_does_not_read_the_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "EXCHANGE_TIMEOUT", 0.05)
    large = b"x" * 50_000_000
    async with serving(large) as server, await connect(server) as deaf:
        await deaf.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until_reset(deaf)


async def test_a_kept_connection_is_used_again() -> None:
    async with serving() as server, await connect(server) as kept:
        for _ in range(3):
            await kept.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(kept)).body == BODY


async def test_too_many_connections_cost_the_idlest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_LIMIT", 3)
    async with serving() as server:
        silent = [await connect(server) for _ in range(8)]
        assert (await get(server, "/metrics")).body == BODY
        for stream in silent[:5]:
            assert await until_closed(stream) == b""
        for stream in silent:
            await stream.aclose()


# Start and stop


async def test_an_address_in_use_is_named() -> None:
    async with serving() as server:
        with pytest.raises(HttpBindError, match=rf"127\.0\.0\.1:{server.port}.*in use"):
            async with serve_http("127.0.0.1", server.port, build_app_that_is_not_run()):
                pytest.fail("must not run")


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 64 + ".example"])
async def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(HttpBindError, match=f"can't listen on {host}:0"):
        async with serve_http(host, 0, build_app_that_is_not_run()):
            pytest.fail("must not run")


def build_app_that_is_not_run() -> WebApp:
    return WebApp(render=bytes, healthy=lambda: True)


@pytest.mark.parametrize("client", ["silent", "kept", "deaf", "waiting"])
async def test_it_stops_whatever_its_clients_do(client: str) -> None:
    begun, finish = threading.Event(), threading.Event()

    def render() -> bytes:
        begun.set()
        if client == "waiting":
            finish.wait(patience(15))
        return b"x" * 10_000_000

    app = WebApp(render=render, healthy=lambda: True)
    with fail_after(10):  # less than the rendering above would wait
        async with serve_http("127.0.0.1", 0, app) as server:
            stream = await connect(server)
            match client:
                case "kept":
                    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await read_answer(stream)).status == 200
                case "deaf":
                    await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert await stream.receive_some(1)
                case "waiting":
                    await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                    await trio.to_thread.run_sync(begun.wait)
    assert "panicd-http" not in {thread.name for thread in threading.enumerate()}
    finish.set()
    with pytest.raises(OSError, match="all attempts to connect"):
        await connect(server)
    await stream.aclose()


async def test_a_server_that_fails_ends_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(http._Server, "run", fail)
    with fail_after(10), pytest.RaisesGroup(KeyError):
        async with serve_http("127.0.0.1", 0, build_app_that_is_not_run()):
            await trio.sleep_forever()


async def test_a_failure_inside_the_block_stops_the_server() -> None:
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with serving() as server:
            raise KeyError("elsewhere")
    with pytest.raises(OSError, match="all attempts to connect"):
        await connect(server)
