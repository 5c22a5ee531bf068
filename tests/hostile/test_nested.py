"""Answers that are nested as deeply as panicd just takes them are borne wherever they go."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import trio

from panicd.rules.foreign_json import MOST
from tests.hostile.monitors import STATUS, converse, serving
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.wire import Message, encode

DEPTHS = (*range(MOST - 20, MOST + 20, 2), 900, 950, 990, 1490, 9990)
NESTED = {"add-fd", "human-monitor-command", "query-block", "query-version", "query-chardev"}
"""Commands whose answers are used in a command, as text, or in a file."""


def answer(depth: int, call: Message) -> bytes:
    """The answer of a panicked QEMU."""
    value = f"{'[' * depth}{']' * depth}"
    if call["execute"] == "add-fd":
        value = f'{{"fd": 0, "fdset-id": {value}}}'
    if call["execute"] in NESTED:
        return f'{{"id": "{call["id"]}", "return": {value}}}\n'.encode()
    values = {"query-status": {**STATUS, "status": "guest-panicked"}}
    return encode({"return": values.get(call["execute"], {}), "id": call["id"]})


async def panicked(depth: int, stream: trio.SocketStream) -> None:
    with suppress(RecursionError):  # the test's own, if its answer comes back
        await converse(stream, partial(answer, depth))


async def test_whatever_is_read_can_be_used(socket_dir: Path) -> None:
    good = FakeQemu(socket_dir / "good.qmp", name="good")
    async with (
        RunningDaemon.start(socket_dir, {"evidence": {}}) as daemon,
        good.running(),
        AsyncExitStack() as stack,
    ):
        await daemon.wait_armed("good")
        for depth in DEPTHS:
            path = socket_dir / f"{depth}.qmp"
            await stack.enter_async_context(serving(path, partial(panicked, depth)))
        for depth in DEPTHS:
            await daemon.wait_log("incident stays open", domain=str(depth))
        good.panic()
        incident = await daemon.wait_incident("good", state="preserved")
        await daemon.wait_kept(incident)
        assert await daemon.call("incident", incident=incident.id)
