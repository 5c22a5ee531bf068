"""Monitors that are anything but: each serves every client in its own bad way."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tests.parts.background import background
from tests.parts.proxy import listen
from tests.parts.wire import JsonSplitter, Message, encode

Behaviour = Callable[[trio.SocketStream], Awaitable[None]]
Answer = Callable[[Message], bytes]

CHUNK = b"A" * (64 << 10)
GIGABYTE = 1 << 30
FUTURE = {"major": 99, "minor": 0, "micro": 0, "nano": 7}
STATUS = {"status": "running", "running": True, "singlestep": False}


def greeting(version: object = FUTURE, **more: object) -> bytes:
    """A greeting, of a QEMU that nobody has seen yet."""
    about = {"version": {"qemu": version, "package": "x"}, "capabilities": ["oob", "telepathy"]}
    return encode({"QMP": {**about, **more}, "since": "tomorrow"})


def sane(call: Message) -> bytes:
    """What a QEMU would answer, more or less."""
    values: dict[str, object] = {"query-status": STATUS, "qom-list": [], "query-block-jobs": []}
    about = {"id": call["id"]} if "id" in call else {}
    return encode({"return": values.get(call["execute"], {}), **about})


def event(name: object, data: object = None, **more: object) -> bytes:
    """An event, well-formed or not."""
    stamp = {"seconds": 1, "microseconds": 1}
    return encode({"timestamp": stamp, "event": name, "data": data, **more})


async def converse(
    stream: trio.SocketStream,
    answer: Answer = sane,
    sending: trio.Lock | None = None,
    version: object = FUTURE,
) -> None:
    """Greet, and answer commands, each in this way, until the client leaves."""
    sending = sending or trio.Lock()
    await stream.send_all(greeting(version))
    splitter = JsonSplitter()
    async for data in stream:
        for text in splitter.feed(bytes(data)):
            call: Message = json.loads(text)
            negotiates = call["execute"] == "qmp_capabilities"
            async with sending:
                await stream.send_all(sane(call) if negotiates else answer(call))


def says(*parts: bytes, then_closes: bool = False) -> Behaviour:
    """Say this instead of a greeting."""

    async def behave(stream: trio.SocketStream) -> None:
        for part in parts:
            await stream.send_all(part)
        if not then_closes:
            await until_left(stream)

    return behave


def answers(answer: Answer) -> Behaviour:
    """Greet, and answer like this."""

    async def behave(stream: trio.SocketStream) -> None:
        await converse(stream, answer)

    return behave


def then_says(parts: Callable[[], Iterable[bytes]]) -> Behaviour:
    """Be a QEMU until the client has asked what it is, then say this."""

    async def behave(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            asked, sending = trio.Event(), trio.Lock()

            def answer(call: Message) -> bytes:
                if call["execute"] == "query-dump-guest-memory-capability":
                    asked.set()
                return sane(call)

            nursery.start_soon(converse, stream, answer, sending)
            await asked.wait()
            for part in parts():
                async with sending:
                    await stream.send_all(part)

    return behave


async def until_left(stream: trio.SocketStream) -> None:
    """Read what comes, and wait for the end of it."""
    async for _ in stream:
        pass


async def never_reads(stream: trio.SocketStream) -> None:
    """Greet, and read nothing."""
    await stream.send_all(greeting())
    await trio.sleep_forever()


async def a_byte_a_second(stream: trio.SocketStream) -> None:
    """Greet so slowly."""
    for byte in greeting():
        await stream.send_all(bytes([byte]))
        await trio.sleep(1)  # nothing is waited for: it is how slow it is


def gigabyte() -> Iterable[bytes]:
    """A line of a gigabyte."""
    return itertools.repeat(CHUNK, GIGABYTE // len(CHUNK))


def odd_events() -> Iterable[bytes]:
    """Events that make no sense."""
    names: list[object] = ["GUEST_PANICKED", "RESET", "STOP", "SHUTDOWN", "DUMP_COMPLETED", 7, None]
    datas: list[object] = [None, [], "x", 7, {"action": 7}, {"action": []}, {"info": "x"}]
    datas += [{"action": "run", "info": {"type": "hyper-v", "arg1": "x" * 1000}}]
    datas += [{"guest": "yes", "reason": {}}, {"result": []}, {"result": {"status": 7}}]
    for name, data in itertools.product(names, datas):
        yield event(name, data)
        yield event(name, data, timestamp="now")
        yield event(name, data, timestamp={"seconds": -1e308, "microseconds": None})
        yield event(name, data, timestamp={"seconds": 10**400, "microseconds": 10**400})


NESTED = b'{"a": ' * 100_000

FUTILE: dict[str, Behaviour] = {
    "garbage": says(*(os.urandom(4096) + b"\n" for _ in range(4))),
    "half-a-message": says(b'{"QMP": {"version": {"qe'),
    "half-a-message-and-gone": says(b'{"QMP": {"version": {"qe', then_closes=True),
    "not-utf-8": says(b'{"QMP": "\xff\xfe\xc3\x28"}\n'),
    "deep": says(NESTED + b"\n"),
    "line-of-a-gigabyte": says(*[CHUNK] * (GIGABYTE // len(CHUNK))),
    "empty-lines": says(*[b"\n" * len(CHUNK)] * 1000),
    "greeting-with-words": says(greeting("eight"), greeting([]), greeting({"major": {}})),
    "huge-version": partial(converse, version={"major": 10**400, "minor": 0, "micro": 0}),
    "endless-version": partial(converse, version={"major": math.inf, "minor": 0, "micro": 0}),
    "worded-version": partial(converse, version={"major": 7, "minor": "x", "micro": None}),
    "nothing": says(),
    "gone-at-once": says(then_closes=True),
    "a-byte-a-second": a_byte_a_second,
    "never-reads": never_reads,
    "wrong-ids": answers(lambda _: encode({"return": {}, "id": "of-another"})),
    "ids-of-odd-types": answers(lambda call: encode({"return": {}, "id": {"of": [call["id"]]}})),
    "no-ids": answers(lambda _: encode({"return": {}})),
    "refuses": answers(
        lambda call: encode({"error": {"class": "No", "desc": "x" * 9000}, "id": call["id"]})
    ),
    "odd-errors": answers(lambda call: encode({"error": [], "id": call["id"]})),
    "neither-nor": answers(lambda call: encode({"id": call["id"]})),
    "answers-deeply": answers(lambda _: NESTED + b"\n"),
    "answers-half": answers(lambda call: sane(call)[:-9]),
    "says-no-more": answers(lambda _: b""),
}
"""With these there is no session, and a reason why."""

TOLERABLE: dict[str, Behaviour] = {
    "from-the-future": converse,
    "replies-twice": answers(lambda call: sane(call) * 2),
    "replies-unasked": then_says(lambda: [encode({"return": {}, "id": "nobody's"})] * 10),
    "odd-events": then_says(odd_events),
    "odd-values": answers(lambda call: encode({"return": 7, "id": call["id"]})),
    "events-without-end": then_says(lambda: itertools.repeat(event("POWERDOWN") * 500)),
    "line-without-end": then_says(gigabyte),
}
"""With these there is a session, at least for a while."""


@asynccontextmanager
async def serving(path: Path, behaviour: Behaviour) -> AsyncIterator[None]:
    """Serve all clients in this way, several at once, until this ends; the socket goes with it."""
    listener = trio.SocketListener(listen(path))

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await behaviour(stream)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it has left

    async with background() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        try:
            yield
        finally:
            os.unlink(path)  # noqa: PTH108 - as quick, and trio's own way would be cancelled
