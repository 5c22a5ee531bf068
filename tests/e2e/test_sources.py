"""Every way in which a panic is raised: on a real QEMU where one raises it here, else as recorded.

docs/matrix.md lists them, and says which is which: ``tests/test_matrix.py``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import HYPERV_BUG_CHECK, Guest, write_rom
from panicd.demo.qemu import machine_arguments
from panicd.demo.qmp import QmpCommandError
from panicd.rules.payload import MEMBERS
from panicd.rules.qapi import PanicAction
from tests.parts import machines
from tests.parts.commands import ask
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.qemu import RealQemu, accelerator, qemu_binary

HYPERV = {"type": "hyper-v", "arg1": 0x7E, "arg2": 0x11, "arg3": 0x22, "arg4": 0x33, "arg5": 0x44}
S390 = {
    "type": "s390",
    "core": 0,
    "psw-mask": 562956395872256,
    "psw-addr": 1102832,
    "reason": "disabled-wait",
}
TDX = {"type": "tdx", "error-code": 0, "message": "TD misconfiguration", "gpa": 4096}
SEV = {"type": "sev", "set": 1, "code": 4}

NO_EVIDENCE = {"evidence": {"budget": "0s"}}


def hyperv_cpu() -> tuple[str, ...]:
    """The arguments of a CPU with crash registers."""
    return ("-cpu", "qemu64,hv-crash")


def kvm_has_hyperv(directory: Path) -> bool:
    """Tell whether this host's KVM lets a guest write Hyper-V's registers.

    QEMU takes ``hv-crash`` without a word where it does not: under TCG, and on a kernel without
    CONFIG_KVM_HYPERV. So a guest is run whose bug check ends QEMU, where it is heard.
    """
    if accelerator() != "kvm":
        return False
    rom = directory / "hyperv.rom"
    write_rom(Guest.PANIC_BY_HYPERV, rom)
    command = [*machine_arguments(qemu_binary(), "kvm"), *hyperv_cpu(), "-bios", str(rom)]
    try:
        trial = subprocess.run(command, capture_output=True, timeout=3, check=False)
    except subprocess.TimeoutExpired:
        return False
    return trial.returncode == 0


@pytest.mark.real
@pytest.mark.parametrize(
    ("guest", "device"),
    [
        (Guest.PANIC_ONCE, "pvpanic"),
        (Guest.PANIC_BY_PCI, "pvpanic-pci,addr=4"),
    ],
    ids=["isa", "pci"],
)
async def test_pvpanic_of_a_real_guest(socket_dir: Path, guest: Guest, device: str) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "destroy", **NO_EVIDENCE}) as daemon,
        RealQemu.start(socket_dir, guest=guest, devices=(device,), paused=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.start_guest()
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [("destroy", "on-crash")]
        assert await vm.wait_exit() == 0


@pytest.mark.real
@pytest.mark.skipif(shutil.which(machines.S390.qemu) is None, reason="no QEMU for s390")
async def test_s390_disabled_wait_of_a_real_guest(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve", **NO_EVIDENCE}) as daemon,
        RealQemu.start(socket_dir, machine=machines.S390, devices=(), paused=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.start_guest()
        incident = await daemon.wait_incident("vm", state="preserved")
        (line,) = daemon.logged("guest panicked")
        waits = {"psw-mask": 0x0002000180000000, "psw-addr": machines.S390_WAITS_AT}
        assert line["information"] == {**S390, **waits}
        await daemon.wait_kept(incident)
        shown = await ask(daemon, "incident", incident.id)
        assert "s390 core 0 has crashed: it waits with interrupts disabled" in shown


@pytest.mark.real
async def test_hyperv_bug_check_of_a_real_guest(socket_dir: Path) -> None:
    if not kvm_has_hyperv(socket_dir):
        pytest.skip("this host's KVM has no Hyper-V registers (CONFIG_KVM_HYPERV)")
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve", **NO_EVIDENCE}) as daemon,
        RealQemu.start(
            socket_dir,
            guest=Guest.PANIC_BY_HYPERV,
            devices=(),
            paused=True,
            extra=hyperv_cpu(),
        ) as vm,
    ):
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["panic_device"] == "requested"
        await vm.start_guest()
        await daemon.wait_kept(await daemon.wait_incident("vm", state="preserved"))
        (incident,) = daemon.journal()
        assert incident.opened.information is not None
        fields = dict(incident.opened.information.fields)
        assert [fields[f"arg{n}"] for n in range(1, 6)] == list(HYPERV_BUG_CHECK)


@pytest.mark.real
async def test_hyperv_without_kvm_is_no_notifier(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, devices=(), accel="tcg", extra=hyperv_cpu()),
    ):
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["panic_device"] == "none"


# -- payloads as recorded, or as QAPI's run-state.json has them


@pytest.mark.parametrize("payload", [HYPERV, S390, TDX, SEV], ids=lambda payload: payload["type"])
async def test_payload_is_kept(socket_dir: Path, payload: dict[str, Any]) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart", **NO_EVIDENCE}) as daemon,
        FakeQemu(socket_dir / "vm.qmp", devices=()).running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic(payload)
        await daemon.wait_incident("vm", ending="restarted")
        (incident,) = daemon.journal()
        information = incident.opened.information
        assert information is not None
        assert {"type": information.type, **dict(information.fields)} == payload


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [],
        {"action": "pause"},  # pseries and pvpanic say no more
        {"action": "pause", "info": None},
        {"action": "pause", "info": {}},
        {"action": "pause", "info": []},
        {"action": "pause", "info": {"type": 7, "arg1": {}}},
        {"action": "pause", "info": {"type": "hyper-v"}},
        {"action": "pause", "info": {"type": "hyper-v", "arg1": "\ud800", "arg2": 2**64}},
        {"action": "pause", "info": {"type": "newer", "what": "x" * 100_000}},
        {"action": 7, "info": 7},
    ],
    ids=range(12),
)
async def test_panic_is_a_panic_whatever_its_payload(socket_dir: Path, data: Any) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart", **NO_EVIDENCE}) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.emit("GUEST_PANICKED", data)
        vm.machine.stop(type(vm.machine.state).GUEST_PANICKED)
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("restart", "on-crash")]


@pytest.mark.real
async def test_payloads_are_as_qemu_s_own_schema_says(socket_dir: Path) -> None:
    async with RealQemu.start(socket_dir, paused=True) as vm:
        told = await vm.witness.execute("query-qmp-schema")
    schema = {entity["name"]: entity for entity in told}

    def members(name: str) -> dict[str, dict[str, Any]]:
        return {member["name"]: member for member in schema[name].get("members", [])}

    event = members(schema["GUEST_PANICKED"]["arg-type"])
    assert event.keys() == {"action", "info"}
    assert set(schema[event["action"]["type"]]["values"]) <= {*PanicAction}
    json_types = {"int": int, "string": str}
    known = {}
    for variant in schema[event["info"]["type"]]["variants"]:
        always = {
            name: schema[member["type"]].get("json-type", "string")  # an enum is told as a text
            for name, member in members(variant["type"]).items()
            if "default" not in member
        }
        known[variant["case"]] = {name: json_types[kind] for name, kind in always.items()}
    assert known.items() <= MEMBERS.items()


# -- what a machine has without a device


@pytest.mark.parametrize(
    ("machine", "objects", "expected"),
    [
        ("s390-ccw-virtio-7.2-machine", (), ("platform", ["s390"])),
        ("pseries-7.2-machine", (), ("platform", ["pseries"])),
        ("vmapple-machine", (), ("platform", ["pvpanic-mmio"])),
        ("pc-q35-7.2-machine", (), ("none", [])),
    ],
)
async def test_machine_that_reports_panics_by_itself(
    socket_dir: Path, machine: str, objects: tuple[str, ...], expected: tuple[str, list[str]]
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", devices=())
    vm.machine.machine_type, vm.machine.objects = machine, objects
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart"}) as daemon,
        vm.running(),
    ):
        await daemon.wait_armed("vm")
        explained = await daemon.call("explain", domain="vm")
        status = explained["status"]
        assert (status["panic_device"], explained["device_types"]) == expected


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "properties", "device"),
    [
        ("tdx-guest", {}, "platform"),
        # It asks to be ended where it can't start, and never because its kernel panicked.
        ("sev-snp-guest", {"cbitpos": 51, "reduced-phys-bits": 1}, "none"),
    ],
)
async def test_object_of_a_confidential_guest(
    socket_dir: Path, kind: str, properties: dict[str, int], device: str
) -> None:
    """It is only there: neither would run without its hardware."""
    async with RealQemu.start(socket_dir, devices=(), paused=True) as vm:
        try:
            await vm.witness.execute("qom-list-properties", {"typename": kind})
        except QmpCommandError:
            pytest.skip(f"QEMU {vm.version} has no {kind}")
        await vm.witness.execute("object-add", {"qom-type": kind, "id": "guest0", **properties})
        async with RunningDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon:
            await daemon.wait_armed("vm")
            explained = await daemon.call("explain", domain="vm")
            found = [kind] if device == "platform" else []
            assert (explained["status"]["panic_device"], explained["device_types"]) == (
                device,
                found,
            )
