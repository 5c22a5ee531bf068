"""A log that nobody reads (a container's log driver, the next of a pipeline) stops nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import trio

from panicd.host.log_stream import WAITING_LIMIT
from panicd.host.logs import VALUE_LIMIT
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu


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


async def test_panics_are_acted_on_though_nobody_reads_the_log(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with UnreadDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon, fake.running():
        await fake.wait_command("set-action")
        said = 0
        while said < 2 * WAITING_LIMIT:
            await daemon.call("hold", domain="other", why="x" * VALUE_LIMIT)
            said += VALUE_LIMIT
        fake.panic()
        await fake.wait_command("cont")
        daemon.read.set()
        await daemon.wait_log("log is read again")
        missing = sum(line.get("entries_dropped", 0) for line in daemon.log)
        assert missing > 0
        assert await daemon.metric("panicd_log_entries_dropped_total") == missing


async def test_a_daemon_whose_log_nobody_reads_can_be_stopped(socket_dir: Path) -> None:
    async with UnreadDaemon.start(socket_dir) as daemon:
        for _ in range(100):
            await daemon.call("hold", domain="other", why="x" * VALUE_LIMIT)
        daemon._send(signal.SIGTERM)
        assert daemon._process is not None
        assert await daemon._process.wait() == 0
        daemon._end_expected = True
        daemon.read.set()
