"""What a monitor is asked first, and what is made of the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from panicd.fleet.connector import connect
from panicd.qemu.monitor import CommandError, event_loop, open_monitor
from panicd.qemu.probe import REMEMBERED, Probe, probe
from panicd.rules.capability import Armed, Capability
from panicd.rules.command_line import CommandLine, parse_command_line
from panicd.rules.panic_device import PanicDevice
from panicd.rules.qapi import RunState
from panicd.rules.settings import DumpFormat
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.profile import (
    QEMU_1_5,
    QEMU_1_6,
    QEMU_1_7,
    QEMU_2_5,
    QEMU_2_8,
    QEMU_7_2,
    QEMU_10_0,
    Profile,
)

BUILTIN_1_6 = replace(QEMU_1_6, builtin_pvpanic=True)

TIME_LIMIT = 10.0
UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f55"


async def ask(
    fake: FakeQemu, command_line: CommandLine | None = None, *, arm: bool = True
) -> Probe:
    with fail_after(TIME_LIMIT):
        async with fake.running(), event_loop():
            sock = await connect(fake.socket)
            async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
                return await probe(monitor, command_line, timeout=TIME_LIMIT, arm=arm)


def fake(directory: Path, **what: Any) -> FakeQemu:
    return FakeQemu(directory / "vm.qmp", **what)


async def test_it_arms_before_it_asks_for_the_state(socket_dir: Path) -> None:
    vm = fake(socket_dir, uuid=UUID)
    answers = await ask(vm)
    assert vm.commands.index("set-action") < vm.commands.index("query-status")
    assert vm.machine.panic_action == "pause"
    assert (answers.name, answers.uuid, answers.run_state) == ("vm", UUID, RunState.RUNNING)
    assert answers.capability.armed is Armed.YES


async def test_it_can_ask_and_change_nothing(socket_dir: Path) -> None:
    vm = fake(socket_dir)
    answers = await ask(vm, arm=False)
    assert vm.changing_commands == []
    assert answers.capability.panic_setting is None


async def test_vm_without_name_and_uuid_has_empty_ones(socket_dir: Path) -> None:
    answers = await ask(fake(socket_dir, name=""))
    assert (answers.name, answers.uuid) == ("", "")


@pytest.mark.parametrize(
    ("profile", "armed", "formats"),
    [
        (QEMU_1_7, Armed.YES, (DumpFormat.ELF,)),
        (QEMU_2_5, Armed.YES, (DumpFormat.ELF, DumpFormat.KDUMP_ZLIB)),
        (QEMU_2_8, Armed.UNKNOWN, (DumpFormat.ELF, DumpFormat.KDUMP_ZLIB)),
        (QEMU_7_2, Armed.YES, (DumpFormat.ELF, DumpFormat.KDUMP_ZLIB, DumpFormat.WIN_DMP)),
        (QEMU_10_0, Armed.YES, (DumpFormat.ELF, DumpFormat.KDUMP_ZLIB, DumpFormat.WIN_DMP)),
    ],
)
async def test_what_each_version_can_do(
    socket_dir: Path, profile: Profile, armed: Armed, formats: tuple[DumpFormat, ...]
) -> None:
    capability = (await ask(fake(socket_dir, profile=profile))).capability
    assert (capability.version, capability.armed) == (profile.version, armed)
    assert capability.dump_formats == formats


@pytest.mark.parametrize(
    ("arguments", "armed"),
    [(["qemu-kvm", "-no-shutdown"], Armed.YES), (["qemu-kvm"], Armed.NO)],
)
async def test_command_line_tells_what_an_old_qemu_can_not(
    socket_dir: Path, arguments: list[str], armed: Armed
) -> None:
    line = parse_command_line(arguments)
    assert (await ask(fake(socket_dir, profile=QEMU_2_8), line)).capability.armed is armed


@pytest.mark.parametrize(
    ("profile", "devices", "source", "types"),
    [
        (QEMU_7_2, (), PanicDevice.NONE, ()),
        (QEMU_7_2, ("pvpanic",), PanicDevice.REQUESTED, ("pvpanic",)),
        (QEMU_7_2, ("pvpanic", "pvpanic-pci"), PanicDevice.REQUESTED, ("pvpanic", "pvpanic-pci")),
        (QEMU_1_5, (), PanicDevice.BUILTIN, ("pvpanic",)),
        (QEMU_1_5, ("pvpanic",), PanicDevice.REQUESTED, ("pvpanic",)),
        (QEMU_1_6, (), PanicDevice.NONE, ()),
    ],
)
async def test_where_the_panic_device_comes_from(
    socket_dir: Path,
    profile: Profile,
    devices: tuple[str, ...],
    source: PanicDevice,
    types: tuple[str, ...],
) -> None:
    capability = (await ask(fake(socket_dir, profile=profile, devices=devices))).capability
    assert (capability.panic_device, capability.device_types) == (source, types)


@pytest.mark.parametrize(
    ("profile", "port", "source"),
    [
        (QEMU_1_5, 0x505, PanicDevice.BUILTIN),
        (QEMU_1_5, 0, PanicDevice.NEUTRALISED),
        (QEMU_1_5, 0xFFF0, PanicDevice.NEUTRALISED),  # its firmware tells no guest
        (BUILTIN_1_6, 0x505, PanicDevice.BUILTIN),
        (BUILTIN_1_6, 0, PanicDevice.NEUTRALISED),
        (BUILTIN_1_6, 0xFFF0, PanicDevice.BUILTIN),  # ACPI leads the guest's driver there
    ],
)
async def test_builtin_device_that_was_neutralised(
    socket_dir: Path, profile: Profile, port: int, source: PanicDevice
) -> None:
    vm = fake(socket_dir, profile=profile, devices=(), builtin_port=port)
    assert (await ask(vm)).capability.panic_device is source


async def test_qemu_that_refuses_to_be_armed_is_not_said_to_be(socket_dir: Path) -> None:
    vm = fake(socket_dir)
    vm.refuse("set-action")
    assert (await ask(vm)).capability.panic_setting is None


async def test_monitor_that_does_not_tell_its_state_is_of_no_use(socket_dir: Path) -> None:
    vm = fake(socket_dir)
    vm.refuse("query-status")
    with pytest.raises((CommandError, ExceptionGroup)) as caught:
        await ask(vm)
    leaf: BaseException = caught.value
    while isinstance(leaf, ExceptionGroup):
        (leaf,) = leaf.exceptions
    assert isinstance(leaf, CommandError)


@pytest.mark.parametrize("command", ["query-name", "query-uuid", "qom-list"])
@pytest.mark.parametrize("nonsense", ["7", '"text"', "[[]]", '{"name": 7, "UUID": []}'])
async def test_answers_of_the_wrong_shape_are_no_answers(
    socket_dir: Path, command: str, nonsense: str
) -> None:
    vm = fake(socket_dir, uuid=UUID)
    original = vm.machine.execute

    def execute(name: str, arguments: dict[str, Any]) -> Any:
        answer = original(name, arguments)
        return json.loads(nonsense) if name == command else answer

    vm.machine.execute = execute  # type: ignore[method-assign]  # a QEMU taken over by its guest
    answers = await ask(vm)
    assert isinstance(answers.name, str)
    assert answers.run_state is RunState.RUNNING
    assert set(answers.capability.device_types) <= {"pvpanic"}


async def capability_of(vm: FakeQemu, command_line: CommandLine | None = None) -> Capability:
    """Ask a VM that takes the place of the one before."""
    vm.socket.unlink(missing_ok=True)
    return (await ask(vm, command_line)).capability


def with_kvm(directory: Path, enabled: object) -> FakeQemu:
    """A VM that says so of KVM, and nothing else that another one does not."""
    vm = fake(directory, devices=())
    original = vm.machine.execute

    def execute(name: str, arguments: dict[str, Any]) -> Any:
        return {"enabled": enabled} if name == "query-kvm" else original(name, arguments)

    vm.machine.execute = execute  # type: ignore[method-assign]  # whatever a QEMU may say
    return vm


async def test_no_vm_chooses_what_another_one_can_do(socket_dir: Path) -> None:
    line = parse_command_line(["qemu-kvm", "-cpu", "host,hv-crash"])
    for enabled, types in ((0, ("hv-crash",)), (False, ()), (0.0, ("hv-crash",)), (False, ())):
        capability = await capability_of(with_kvm(socket_dir, enabled), line)
        assert capability.device_types == types, enabled


async def test_vms_that_are_alike_share_a_capability(socket_dir: Path) -> None:
    first = await capability_of(fake(socket_dir, name="one"))
    assert await capability_of(fake(socket_dir, name="other")) is first


async def test_long_answers_are_not_remembered(socket_dir: Path) -> None:
    vm = fake(socket_dir)
    original = vm.machine.execute

    def execute(name: str, arguments: dict[str, Any]) -> Any:
        return "x" * REMEMBERED if name == "qom-get" else original(name, arguments)

    vm.machine.execute = execute  # type: ignore[method-assign]  # a QEMU taken over by its guest
    first, second = await capability_of(vm), await capability_of(vm)
    assert first == second
    assert first is not second


@pytest.mark.parametrize("count", [0, 100])
async def test_no_panic_device_that_is_made_up_costs_time(socket_dir: Path, count: int) -> None:
    """None is at a port that could be asked for, or more than there are ports."""
    vm = fake(socket_dir, profile=QEMU_1_5, devices=())
    listed = [{"name": "pci", "type": "child<pvpanic-pci>"}]
    listed += [{"name": f"isa-{n}", "type": "child<pvpanic>"} for n in range(count)]
    original = vm.machine.execute

    def execute(name: str, arguments: dict[str, Any]) -> Any:
        is_asked = arguments.get("path") == "/machine/unattached"
        return listed if is_asked else original(name, arguments)

    vm.machine.execute = execute  # type: ignore[method-assign]  # a QEMU taken over by its guest
    with fail_after(TIME_LIMIT):
        async with vm.running(), event_loop():
            sock = await connect(vm.socket)
            async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
                found = await probe(monitor, None, timeout=10 * TIME_LIMIT)
                assert found.capability.panic_device is PanicDevice.BUILTIN
                assert not monitor.pace.hurried
