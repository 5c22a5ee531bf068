"""All QEMUs of a host vanish at once and come back at once."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from panicd.fleet.backoff import FIRST_RETRY, LAST_RETRY
from tests.bench.fleet import LAST_QUESTION, Fleet, compile_program
from tests.hostile.scale import whole
from tests.parts.daemon import RunningDaemon
from tests.parts.vitals import open_files, wait_files_closed

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the fleet is to be compiled")

COUNT = 2000 if whole() else 200
AWAY = "monitor is not connected"


@contextmanager
def fleet(program: Path, directory: Path) -> Iterator[Fleet]:
    """Serve all monitors, until this ends as a host's power does."""
    for path in directory.glob("*.qmp"):
        path.unlink()
    served = Fleet(program, directory, COUNT)
    try:
        yield served
    finally:
        served.end()


async def test_all_come_back_and_no_herd_thunders(socket_dir: Path) -> None:
    program = socket_dir / "fleet"
    await trio.to_thread.run_sync(compile_program, Path("tests/bench/fleet.c"), program)
    monitors = socket_dir / "m"
    monitors.mkdir()
    config = [{"glob": str(monitors / "*.qmp")}]
    async with RunningDaemon.start(socket_dir, monitors=config, time_limit=120) as daemon:
        with fleet(program, monitors) as first:
            await trio.to_thread.run_sync(first.ask, f"heard {LAST_QUESTION}")
            await daemon.wait_log("policy in force", count=COUNT)
            await daemon.call("incidents")  # SQLite keeps what its file was read with
            files = open_files(daemon.pid)
            ended = time.monotonic()
        await daemon.wait_log("connection ended", count=COUNT)
        await daemon.wait_log(AWAY, count=COUNT)
        tries = [0]
        while min(tries) < 6:
            tries = [domain["attempts"] for domain in (await daemon.call("status"))["domains"]]
        assert len(tries) == COUNT
        # Each waits twice as long after each try, so they are few, however long it lasts.
        lasted = time.monotonic() - ended
        assert max(tries) <= math.log2(lasted / FIRST_RETRY) + 3 + lasted / LAST_RETRY
        mark = daemon.mark()
        with fleet(program, monitors) as second:
            heard = await trio.to_thread.run_sync(second.ask, f"heard {LAST_QUESTION}")
            await daemon.wait_log("policy in force", since=mark, count=COUNT)
            print(f"{COUNT} attached again in {heard['seconds']:.1f} s")
            domains = (await daemon.call("status"))["domains"]
            assert all(domain["connected"] for domain in domains)
            await wait_files_closed(files, daemon.pid)
            told = [line for line in daemon.log[mark:] if line["event"] == AWAY]
            assert len(told) <= 3 * COUNT
