"""`panicd probe`: what one VM can do, and what keeps it from being asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.cli import probing
from panicd.rules.on_crash import OnCrash
from tests.parts.commands import FAILED, ask, ask_json, panicd
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu

TIME_LIMIT = 20.0

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f54"


def test_probe_of_nothing_fails(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    result = panicd("--config", daemon.config_file, "probe", socket_dir / "no.qmp")
    assert result.exit_code == FAILED
    assert "no.qmp: No such file or directory" in result.output


@pytest.mark.real
async def test_probe_tells_what_a_real_qemu_can_do_and_changes_nothing(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, devices=["pvpanic", "pvpanic-pci"], uuid=UUID) as vm:
            daemon = ObservedDaemon(socket_dir)
            seen = await ask_json(daemon, "probe", str(vm.socket))
            assert (seen["name"], seen["uuid"], seen["panic_device"]) == ("vm", UUID, "requested")
            assert seen["device_types"] == ["pvpanic", "pvpanic-pci"]
            assert {plan["on_crash"] for plan in seen["policies"]} == set(OnCrash)
            assert seen["remedies"] == []
            assert "pvpanic-pci" in await ask(daemon, "probe", str(vm.socket))
            await vm.panic()
            assert await vm.wait_exit() == 0  # as QEMU does where nobody armed it


@pytest.mark.real
async def test_probe_says_what_is_missing(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, devices=[], extra=["-no-reboot"]) as vm:
            daemon = ObservedDaemon(socket_dir)
            seen = await ask_json(daemon, "probe", str(vm.socket), status=FAILED)
            assert seen["panic_device"] == "none"
            assert any("pvpanic" in remedy for remedy in seen["remedies"])
            (restart,) = [plan for plan in seen["policies"] if plan["on_crash"] == "restart"]
            assert restart["reason"] == "reset-impossible"


@pytest.mark.real
async def test_probe_of_a_monitor_that_is_taken_says_so(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "GREETING_TIMEOUT", 0.05)
    async with (
        DaemonInside.start(socket_dir) as daemon,
        RealQemu.start(socket_dir) as vm,
    ):
        await daemon.wait_armed("vm")
        said = await ask(daemon, "probe", str(vm.socket), status=FAILED)
        assert "another client has this monitor" in said
