"""A client of panicd's HTTP server, which sees the bytes on the wire."""

import base64
from dataclasses import dataclass

import trio

from panicd.web.http import HttpServer


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def read_answer(stream: trio.abc.ReceiveStream) -> Answer:
    """Read one response; its headers must say its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = await stream.receive_some()
        assert chunk, received
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header must not come twice"
    if "content-length" not in headers:
        return Answer(int(first.split()[1]), headers, body)
    while len(body) < int(headers["content-length"]):
        body += await stream.receive_some()
    return Answer(int(first.split()[1]), headers, body)


async def connect(server: HttpServer) -> trio.SocketStream:
    return await trio.open_tcp_stream(server.host, server.port)


async def get(server: HttpServer, path: str, *headers: str) -> Answer:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    async with await connect(server) as stream:
        await stream.send_all("\r\n".join(lines).encode())
        return await read_answer(stream)


async def until_closed(stream: trio.SocketStream) -> bytes:
    """Read until the server closes, in order or abruptly."""
    received = b""
    try:
        async for chunk in stream:
            received += chunk
    except trio.BrokenResourceError:
        pass
    return received


async def until_reset(stream: trio.SocketStream) -> None:
    """Wait for a reset without reading anything."""
    try:
        while True:
            await stream.send_all(b"x")
    except trio.BrokenResourceError:
        return


def basic(name: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


# TLS
