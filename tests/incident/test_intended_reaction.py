"""A panic whose first entries are an intent: the command does not wait for the disk."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from panicd.journal.batch import Batch
from panicd.journal.journal import Journal, JournalError
from panicd.rules.incident import AnyEntry
from panicd.service import daemon as service_daemon
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState

Done = Callable[[BaseException | None], None]
IN_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs on any Linux


class HeldUp:
    """The journal's disk, which takes nothing until it is let go.

    Attributes:
        waiting: What waits for it.
        asked: It was given something.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.asked = trio.Event()
        self._is_held = True
        append_soon = Journal.append_soon

        def held(
            journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
        ) -> None:
            def append() -> None:
                append_soon(journal, incident_id, entries, done)

            self.asked.set()
            if self._is_held:
                self.waiting.append(append)
            else:
                append()

        monkeypatch.setattr(Journal, "append_soon", held)

    def let_go(self) -> None:
        """Have it take everything, now and later."""
        self._is_held = False
        for append in self.waiting:
            append()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> HeldUp:
    """A disk that hangs."""
    return HeldUp(monkeypatch)


@asynccontextmanager
async def connected(
    directory: Path, on_crash: str = "restart", budget: str = "0s"
) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    vm = FakeQemu(directory / "vm.qmp")
    policy = {"on_crash": on_crash, "evidence": {"budget": budget}}
    async with DaemonInside.start(directory, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        yield daemon, vm


@pytest.mark.parametrize("budget", ["0s", "3s"])
async def test_the_first_command_does_not_wait_for_the_disk(
    socket_dir: Path, disk: HeldUp, budget: str
) -> None:
    async with connected(socket_dir, budget=budget) as (daemon, vm):
        vm.panic()
        await vm.wait_command("system_reset")
        await disk.asked.wait()
        assert daemon.journal(), "it is an intent"
        assert "cont" not in vm.commands
        disk.let_go()
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.commands.count("system_reset") == 1
        assert vm.commands.count("cont") == 1


async def test_what_is_intended_is_written_though_qemu_does_not_answer(
    socket_dir: Path, disk: HeldUp
) -> None:
    async with connected(socket_dir) as (daemon, vm):
        held = vm.hold_reply("query-status")
        vm.panic()
        await held.reached.wait()
        await disk.asked.wait()  # within a second
        disk.let_go()
        held.release()
        await daemon.wait_incident("vm", ending="restarted")


async def test_what_the_next_panicd_can_not_write_it_goes_on_with(
    socket_dir: Path, disk: HeldUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_daemon, "LAST_WORDS", 0.0)
    is_full, write = True, Batch.write

    def full(batch: Batch) -> None:
        if is_full:
            raise JournalError("no space left on device")
        write(batch)

    policy, vm = {"on_crash": "restart"}, FakeQemu(socket_dir / "vm.qmp")
    with tempfile.TemporaryDirectory(prefix="panicd-", dir=IN_MEMORY) as runtime:
        control_socket = str(Path(runtime) / "control.sock")
        async with vm.running():
            async with DaemonInside.start(
                socket_dir, policy, control_socket=control_socket
            ) as daemon:
                await daemon.wait_armed("vm")
                vm.panic()
                await vm.wait_command("system_reset")
            disk.waiting.clear()  # as if it had been killed
            disk.let_go()
            monkeypatch.setattr(Batch, "write", full)
            async with DaemonInside.start(
                socket_dir, policy, control_socket=control_socket
            ) as daemon:
                await daemon.wait_log("what a killed panicd intended can't be written")
                await daemon.wait_log("the journal can't be written")
                assert "cont" not in vm.commands
                is_full = False
                await daemon.wait_incident("vm", ending="restarted")
                assert vm.commands.count("system_reset") == 1
                assert vm.machine.state is RunState.RUNNING


async def test_after_a_failure_the_disk_comes_first(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_soon, asked = Journal.append_soon, trio.Event()
    problem = JournalError("no space left on device")
    is_full = True

    def full(journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done) -> None:
        if not is_full:
            append_soon(journal, incident_id, entries, done)
            return
        asked.set()
        journal._fault = str(problem)
        trio.lowlevel.current_trio_token().run_sync_soon(done, problem)

    monkeypatch.setattr(Journal, "append_soon", full)
    async with connected(socket_dir) as (daemon, vm):
        vm.panic()
        await vm.wait_command("system_reset")
        await asked.wait()
        other = FakeQemu(socket_dir / "other.qmp", name="other")
        async with other.running():
            await daemon.wait_armed("other")
            await daemon.wait_log("the journal can't be written", domain="vm")
            other.panic()
            await daemon.wait_log("the journal can't be written", domain="other")
            assert "system_reset" not in other.commands
            assert "cont" not in vm.commands
            is_full = False
            await daemon.wait_incident("vm", ending="restarted")
            await daemon.wait_incident("other", ending="restarted")
            for each in (vm, other):
                assert each.commands.count("system_reset") == 1
                assert each.machine.state is RunState.RUNNING
