"""`panicd probe`: what one VM can do, and what keeps it from being asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from panicd.cli import probing
from panicd.rules.on_crash import OnCrash
from tests.parts.commands import FAILED, ask, ask_json, panicd
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.profile import QEMU_1_5, QEMU_1_6, QEMU_1_7, QEMU_2_0, QEMU_7_2, Profile
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
            assert (seen["domain"], seen["uuid"], seen["panic_device"]) == ("vm", UUID, "requested")
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


BUILTIN_1_6 = replace(QEMU_1_6, builtin_pvpanic=True)


async def test_probe_of_a_builtin_device_says_what_each_policy_would_do(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir, {"on_crash": "restart"})
    fake = FakeQemu(socket_dir / "vm.qmp", profile=BUILTIN_1_6, devices=())
    async with fake.running():
        seen = await ask_json(daemon, "probe", str(fake.socket), status=FAILED)
        said = await ask(daemon, "probe", str(fake.socket), status=FAILED)
    would = {plan["on_crash"]: plan["action"] for plan in seen["policies"]}
    assert would["restart"] == "restart"
    assert would["coredump-destroy"] == "coredump-destroy"
    assert seen["configured"]["action"] == "preserve"
    assert (seen["configured"]["on_crash"], seen["configured"]["unrequested"]) == (
        *("restart", "preserve"),
    )
    assert "None of these applies as configured, but unrequested preserve" in said
    assert "--no-notifier" in " ".join(seen["remedies"])


@pytest.mark.parametrize("profile", [QEMU_1_5, BUILTIN_1_6], ids=["1.5", "1.6"])
async def test_probe_of_a_device_neutralised_on_purpose_advises_nothing_else(
    socket_dir: Path, profile: Profile
) -> None:
    daemon = ObservedDaemon(socket_dir, {"on_crash": "restart"})
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile, devices=(), builtin_port=0)
    async with fake.running():
        seen = await ask_json(daemon, "probe", str(fake.socket))
    assert seen["panic_device"] == "neutralised"
    assert seen["exposures"] == {}
    (left_open,) = seen["remedies"]
    assert left_open.startswith("nothing, if the guest shall report no panic")
    assert "dma-chan" in left_open


@pytest.mark.parametrize("profile", [QEMU_1_7, QEMU_2_0, QEMU_7_2], ids=["1.7", "2.0", "7.2"])
async def test_probe_warns_of_a_port_that_others_use(socket_dir: Path, profile: Profile) -> None:
    daemon = ObservedDaemon(socket_dir)
    devices = ("pvpanic,ioport=0",)
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile, devices=devices)
    async with fake.running():
        seen = await ask_json(daemon, "probe", str(fake.socket))
    (moved,) = seen["remedies"]
    assert moved.startswith("move the panic device from port 0x0, which dma-chan uses too")


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
