"""Two panicd, be they of different versions, on one state directory: one of them gives up."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import trio

from panicd.journal.schema import MIGRATIONS
from tests.journal.journals import change
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu

KNOWN = len(MIGRATIONS)


async def refused(configuration: Path) -> str:
    """Start another panicd, which ends at once; return what it says."""
    command = [sys.executable, "-m", "panicd", "--config", str(configuration), "run"]
    done = await trio.run_process(command, check=False, capture_stderr=True)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    return bytes(done.stderr).decode()


async def test_the_second_does_nothing_to_a_vm(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon, vm.running():
        await daemon.wait_armed("vm")
        first = (socket_dir / "panicd.yaml").read_text()
        other = socket_dir / "other.yaml"
        other.write_text(first.replace(str(daemon.control_socket), str(socket_dir / "other.sock")))
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        assert "another process has it open" in await refused(other)
        assert vm.sessions == 1
        assert vm.changing_commands == ["set-action", "system_reset", "cont"]
        assert await daemon.metric("panicd_journal_healthy") == 1


async def test_an_older_one_leaves_a_newer_s_journal_as_it_is(socket_dir: Path) -> None:
    journal = socket_dir / "state" / "journal.sqlite3"
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with vm.running():
        async with RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon:
            await daemon.wait_armed("vm")
            vm.panic()
            await daemon.wait_incident("vm", state="preserved")
        change(journal, "CREATE TABLE of_the_future (what)")
        change(journal, f"PRAGMA user_version = {KNOWN + 1}")
        before, there = digest(journal), names(journal.parent)
        said = await refused(socket_dir / "panicd.yaml")
        assert f"written by a newer panicd: schema version {KNOWN + 1}" in said
        assert (digest(journal), names(journal.parent)) == (before, there)
        assert vm.sessions == 1
        assert vm.changing_commands == ["set-action"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
