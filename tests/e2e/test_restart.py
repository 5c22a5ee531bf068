"""Restarts: by relaunching, again and again, and as far as the budget goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from panicd.host.sdnotify import OF_ONE_PROCESS
from tests.parts.daemon import RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

UUID = "b7a0c3c2-6f5e-4a43-9a8b-6f1de1c0a001"

NO_REBOOT = ("-action", "reboot=shutdown")


def relaunching(told: Path) -> dict[str, Any]:
    """A policy with a command that only writes down what it was told: the test starts the VM."""
    script = f'printf "%s %s" "$PANICD_DOMAIN" "$PANICD_UUID" >{told}'
    return {"on_crash": "restart", "relaunch": {"command": ["/bin/sh", "-c", script]}}


@pytest.mark.parametrize("proxied", [False, True], ids=["known-beforehand", "found-out"])
async def test_vm_that_cannot_reset_is_relaunched(socket_dir: Path, proxied: bool) -> None:
    told = socket_dir / "told"
    async with RunningDaemon.start(socket_dir, relaunching(told)) as daemon:
        async with RealQemu.start(
            socket_dir, guest=Guest.PANIC_ON_KEY, uuid=UUID, proxied=proxied, extra=NO_REBOOT
        ) as vm:
            await daemon.wait_armed("vm")
            mark = vm.witness.mark()
            await vm.press_key()
            assert await vm.wait_exit() == 0
            await daemon.wait_log("step ended", step="RunRelaunch", outcome="done")
            shutdown = await vm.wait_event("SHUTDOWN", since=mark)
            command = "host-qmp-system-reset" if proxied else "host-qmp-quit"
            assert shutdown["data"]["reason"] == command
        assert told.read_text() == f"vm {UUID}"
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, uuid=UUID) as again:
            incident = await daemon.wait_incident("vm", ending="relaunched")
            actions = [action for action, _ in incident.decisions]
            assert actions == ["restart", "restart"] if proxied else ["restart"]
            assert await again.status() == "running"
            await again.wait_counting()
            assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 1


async def test_no_command_is_told_what_systemd_told_panicd(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OF_ONE_PROCESS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("INVOCATION_ID", "of the unit")

    def telling(name: str) -> list[str]:
        return ["/bin/sh", "-c", f"env >{socket_dir}/{name}"]

    policy = {"on_crash": "restart", "relaunch": {"command": telling("relaunch")}}
    hook = {"hook": {"command": telling("hook")}}
    async with (
        RunningDaemon.start(socket_dir, policy, notify=hook) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=NO_REBOOT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        await daemon.wait_log("step ended", step="RunRelaunch", outcome="done")
        await daemon.wait_log("notification delivered")
    for name in ("relaunch", "hook"):
        lines = (socket_dir / name).read_text().splitlines()
        variables = dict(line.split("=", 1) for line in lines if "=" in line)
        assert not set(OF_ONE_PROCESS) & set(variables), name
        assert variables["INVOCATION_ID"] == "of the unit"


async def test_vm_that_can_neither_reset_nor_be_relaunched_takes_the_fallback(
    socket_dir: Path,
) -> None:
    policy = {"on_crash": "restart", "fallback": "destroy"}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=NO_REBOOT) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        assert await vm.wait_exit() == 0
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [("destroy", "reset-impossible")]
        fallbacks = await daemon.metric("panicd_fallbacks_total", reason="reset-impossible")
        assert fallbacks == 1


async def test_restart_that_is_refused_takes_the_fallback(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "fallback": "destroy"}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        vm.proxy.refuse("system_reset", "no resets today")
        await vm.press_key()
        assert await vm.wait_exit() == 0
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [("restart", "on-crash"), ("destroy", "action-failed")]
        assert "GenericError: no resets today" in incident.details
        assert vm.proxy.changing_commands == ["set-action", "system_reset", "quit"]


async def test_crash_loop_ends_with_the_budget(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "restart": {"max": 2}}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ONCE, paused=True, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.witness.execute("cont")

        await daemon.wait_incident("vm", state="preserved")
        first, second, third = daemon.incidents()
        assert (first.ending, second.ending, third.ending) == ("restarted", "restarted", "")
        assert third.decisions == [("preserve", "crash-loop")]
        assert await vm.status() == "guest-panicked"
        assert vm.proxy.changing_commands == ["set-action", *["system_reset", "cont"] * 2]
        stands = await daemon.domain("vm")
        assert (stands["restarts_left"], stands["incident_reason"]) == (0, "crash-loop")
        assert await daemon.metric("panicd_restarts_suppressed_total") == 1
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 2
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 3

        await daemon.terminate()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        stands = await daemon.domain("vm")
        assert (stands["restarts_left"], stands["incident_reason"]) == (0, "crash-loop")
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 3
        assert len(daemon.incidents()) == 3
