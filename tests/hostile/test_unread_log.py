"""A log that nobody reads (a container's log driver, the next of a pipeline) stops nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from panicd.host.log_stream import WAITING_LIMIT
from panicd.service.control_client import RefusedError
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu

MISTAKES = 2000
DROPPED = "panicd_log_entries_dropped_total"


class UnreadDaemon(RunningDaemon):
    """A daemon whose log is read by nobody before that is asked for."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]  # passed on as they are
        self.read = trio.Event()

    async def _read_log(self, process: object) -> None:
        await self.read.wait()
        await super()._read_log(process)  # type: ignore[arg-type]  # as above

    def _check_journal(self) -> None:
        """Compare nothing: entries are missing in the log, and are to be."""


async def say_more_than_may_wait(daemon: RunningDaemon) -> None:
    """Have it refuse configurations with many mistakes, each of which it logs."""
    wrong = [{"match": f"{number}-{'x' * 200}", "on_crash": "no"} for number in range(MISTAKES)]
    daemon.write_config(domains=wrong)
    said = 0
    while said < 2 * WAITING_LIMIT:
        with pytest.raises(RefusedError) as refused:
            await daemon.call("reload")
        said += len(refused.value.message)


async def test_panics_are_acted_on_though_nobody_reads_the_log(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with UnreadDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon, fake.running():
        await fake.wait_command("set-action")
        await say_more_than_may_wait(daemon)
        fake.panic()
        await fake.wait_command("cont")
        daemon.read.set()

        def missing() -> int:
            return sum(line.get("entries_dropped", 0) for line in daemon.log)

        while not missing() or await daemon.metric(DROPPED) != missing():
            await trio.lowlevel.checkpoint()  # what waited is still being read


async def test_a_daemon_whose_log_nobody_reads_can_be_stopped(socket_dir: Path) -> None:
    async with UnreadDaemon.start(socket_dir) as daemon:
        await say_more_than_may_wait(daemon)
        daemon._send(signal.SIGTERM)
        assert daemon._process is not None
        assert await daemon._process.wait() == 0
        daemon._end_expected = True
        daemon.read.set()
