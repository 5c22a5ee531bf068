"""Reloads with an open incident, and the daemon's own end with a step in progress."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from panicd.demo.guests import Guest
from panicd.service.control_client import RefusedError
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu

RESTART = {"on_crash": "restart"}
PRESERVE = {"on_crash": "preserve"}
STOPS_WITHIN = 8.0  # seconds; systemd gives 90


async def test_open_incident_keeps_its_decision_when_the_configuration_changes(
    socket_dir: Path,
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")

        daemon.write_config(defaults={"on_crash": "explode"})
        with pytest.raises(RefusedError, match="on_crash"):
            await daemon.call("reload")
        assert await daemon.metric("panicd_config_last_reload_successful") == 0
        assert (await daemon.domain("vm"))["on_crash"] == "preserve"

        mark = daemon.mark()
        daemon.write_config(defaults={**RESTART, "evidence": {"budget": "0s"}})
        await daemon.call("reload")
        await daemon.wait_armed("vm", since=mark)
        assert await daemon.metric("panicd_config_last_reload_successful") == 1
        status = await daemon.domain("vm")
        assert (status["on_crash"], status["incident"]) == ("restart", incident.id)
        assert status["incident_state"] == "preserved"
        assert fake.acting_commands == []

        await daemon.call("act", domain="vm", action="restart", why="it was looked at")
        fake.panic()
        again = await daemon.wait_incident("vm", ending="restarted", count=2)
        assert again.decisions == [("restart", "on-crash")]
        assert fake.acting_commands == ["system_reset", "cont"] * 2


async def test_hangup_with_a_bad_file_changes_nothing(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, PRESERVE) as daemon, fake.running():
        await daemon.wait_armed("vm")
        daemon.write_config(defaults={"on_crash": "explode"})
        daemon.hang_up()
        refused = await daemon.wait_log("configuration refused", level="warning")
        assert "on_crash" in refused["mistake"]
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "on-crash")]
        assert fake.sessions == 1


@pytest.mark.parametrize("executed", [False, True], ids=["not-carried-out", "carried-out"])
async def test_stop_leaves_a_step_in_progress_to_the_next_start(
    socket_dir: Path, executed: bool
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fault = (fake.hold_reply if executed else fake.hold)("system_reset")
        fake.panic()
        await fault.reached.wait()
        with fail_after(STOPS_WITHIN):
            await daemon.terminate()
        fault.cut()
        await daemon.start_again()
        await daemon.wait_incident("vm", ending="restarted")
        assert len(daemon.incidents()) == 1
        resets = ["system_reset"] * (1 if executed else 2)  # the first one was lost
        assert fake.acting_commands == [*resets, "cont"]
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 1


async def test_stop_does_not_wait_for_a_dump(socket_dir: Path) -> None:
    policy = {"on_crash": "coredump-restart", "coredump": {"min_free": "1MiB"}}
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, policy) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.hold_dumps()
        fake.panic()
        await fake.wait_command("dump-guest-memory")
        with fail_after(STOPS_WITHIN):
            await daemon.terminate()
        await daemon.start_again()
        fake.release_dumps()
        await daemon.wait_incident("vm", ending="restarted")
        (dump,) = (socket_dir / "state" / "coredumps" / str(os.geteuid()) / "vm").iterdir()
        assert dump.suffix == ".zst"
        assert fake.acting_commands[-2:] == ["system_reset", "cont"]


@pytest.mark.real
async def test_stop_does_not_wait_for_a_qemu_that_hangs(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        with daemon.frozen():
            await vm.press_key()
            await vm.wait_event("STOP")
            os.kill(vm.pid, signal.SIGSTOP)
        await daemon.wait_log("step begins", step="AwaitQuiet")
        with fail_after(STOPS_WITHIN):
            await daemon.terminate()
        os.kill(vm.pid, signal.SIGCONT)
        await daemon.start_again()
        assert await vm.wait_exit() == 0
        await daemon.wait_incident("vm", ending="destroyed")
        assert len(daemon.incidents()) == 1


@pytest.mark.real
async def test_relaunch_that_a_stop_cut_short_is_not_begun_again(
    socket_dir: Path,
) -> None:
    told = trio.Path(socket_dir / "told")
    command = ["/bin/sh", "-c", f"echo begun >>{told}; exec sleep 1000"]
    policy = {"on_crash": "restart", "relaunch": {"command": command}}
    uuid = "b7a0c3c2-6f5e-4a43-9a8b-6f1de1c0a004"
    async with RunningDaemon.start(socket_dir, policy) as daemon:
        async with RealQemu.start(
            socket_dir, guest=Guest.COUNT, uuid=uuid, extra=("-action", "reboot=shutdown")
        ) as vm:
            await daemon.wait_armed("vm")
            await vm.panic()
            await vm.wait_exit()
            while not (await told.exists() and await told.read_text()):
                await trio.lowlevel.checkpoint()  # nothing tells when it has written
        with fail_after(STOPS_WITHIN):
            await daemon.terminate()
        await daemon.start_again()
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, uuid=uuid):
            await daemon.wait_incident("vm", ending="relaunched")
            assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 1
        assert await told.read_text() == "begun\n"


async def test_panic_that_qemu_is_about_to_end_with_is_on_record_after_a_stop(
    socket_dir: Path,
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    policy = {"on_crash": "destroy", "timeouts": {"stop": "1h"}}
    async with fake.running():
        async with DaemonInside.start(socket_dir, policy) as daemon:
            await daemon.wait_armed("vm")
            fake.machine.emit("GUEST_PANICKED", {"action": "poweroff"})
            fake.machine.emit("STOP", None)  # so that it shows when both were heard
            while (await daemon.domain("vm"))["run_state"] == "running":
                pass
            assert daemon.incidents() == []
        (kept,) = daemon.journal()
        assert (kept.opened.source, kept.state) == ("event", "detected")
        assert fake.acting_commands == []
