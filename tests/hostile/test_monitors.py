"""Hostile monitors cost what they are allowed to, end no daemon, and harm no neighbour."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from panicd.fleet import connector, supervision
from tests.fleet.test_connector import NOT_CONNECTED, Tries, impatient, tries
from tests.hostile.monitors import FUTILE, TOLERABLE, Behaviour, serving
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.vitals import open_files, resident_bytes, wait_files_closed

__all__ = ["impatient", "tries"]

ROUNDS = 10
ALL = {**FUTILE, **TOLERABLE}

GROWTH = len(ALL) * (3 << 19)
"""Bytes that panicd may grow by while all of them talk to it: each may fill a buffer or two of
1 MiB. On a busy machine more of them do so at a time."""


async def test_all_at_once_are_borne_and_leave_nothing(socket_dir: Path) -> None:
    good = FakeQemu(socket_dir / "good.qmp", name="good")
    async with RunningDaemon.start(socket_dir, time_limit=60) as daemon, good.running():
        await daemon.wait_armed("good")
        await daemon.call("incidents")  # SQLite keeps what its file was read with
        files, memory = open_files(daemon.pid), resident_bytes(daemon.pid)
        async with AsyncExitStack() as stack:
            for name, behaviour in ALL.items():
                path = socket_dir / f"{name}.qmp"
                await stack.enter_async_context(serving(path, behaviour))
            for name in FUTILE:
                line = await daemon.wait_log(NOT_CONNECTED, monitor=str(socket_dir / f"{name}.qmp"))
                assert line["reason"]
                assert len(line["reason"]) < 400
            for name in TOLERABLE:
                await daemon.wait_log("domain connected", monitor=str(socket_dir / f"{name}.qmp"))
            good.panic()
            await daemon.wait_incident("good", state="preserved")
            status = {
                domain["monitor"]: domain for domain in (await daemon.call("status"))["domains"]
            }
            for name in FUTILE:
                domain = status[str(socket_dir / f"{name}.qmp")]
                assert domain["connected"] or domain["problem"]
        for name in ALL:
            await daemon.wait_log("monitor is gone", monitor=str(socket_dir / f"{name}.qmp"))
        await wait_files_closed(files, daemon.pid)
        assert resident_bytes(daemon.pid) - memory < GROWTH
        assert [d["domain"] for d in (await daemon.call("status"))["domains"]] == ["good"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("behaviour", [b for n, b in FUTILE.items()], ids=list(FUTILE))
async def test_trying_again_and_again_leaks_nothing(
    socket_dir: Path, tries: Tries, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "ANSWER_TIMEOUT", 0.05)
    path = socket_dir / "bad.qmp"
    async with DaemonInside.start(socket_dir) as daemon:

        async def try_again_and_again(rounds: int) -> int:
            """Return how often it was told."""
            mark = daemon.mark()
            async with serving(path, behaviour):
                await tries.wait_more(rounds)
            await daemon.wait_log("monitor is gone", since=mark)
            gc.collect()
            return len(daemon.logged(NOT_CONNECTED, since=mark))

        # What is made once, at the start or by the first try, is no leak.
        await try_again_and_again(1)
        tasks, files = await living_tasks(), open_files()
        told = await try_again_and_again(ROUNDS)
        assert await living_tasks() <= tasks
        await wait_files_closed(files)
        assert 1 <= told <= supervision.TOLD_AT_MOST


async def living_tasks() -> int:
    """How many tasks there are when nothing is under way."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    return trio.lowlevel.current_statistics().tasks_living
