from dataclasses import replace

import pytest

from panicd.rules.capability import Armed, Capability, Version
from panicd.rules.command_line import parse_command_line
from panicd.rules.qemu_args import Wanted, qemu_arguments


def arguments(version: Version, *, dial_in: bool = False, pci: bool = False) -> list[str]:
    return shown(Wanted(version, "/run/qemu/vm.qmp", dial_in=dial_in, pci=pci))


def shown(wanted: Wanted) -> list[str]:
    found = qemu_arguments(wanted)
    assert all(argument.why for argument in found)
    return [f"{argument.option} {argument.value}".strip() for argument in found]


MONITOR = "-qmp chardev:panicd"
CHARDEV = "-chardev socket,id=panicd,path=/run/qemu/vm.qmp,"


@pytest.mark.parametrize(
    ("version", "dial_in", "pci", "expected"),
    [
        ((1, 5, 0), False, False,
         [CHARDEV + "server,nowait", MONITOR, "-device pvpanic"]),
        ((2, 8, 0), False, False,
         [CHARDEV + "server,nowait", MONITOR, "-device pvpanic", "-no-shutdown"]),
        ((2, 12, 0), False, False,
         [CHARDEV + "server=on,wait=off", MONITOR, "-device pvpanic", "-no-shutdown",
          "-device vmcoreinfo"]),
        ((7, 2, 0), False, True,
         [CHARDEV + "server=on,wait=off", MONITOR, "-device pvpanic-pci", "-action panic=pause",
          "-device vmcoreinfo"]),
        ((7, 2, 0), True, False,
         [CHARDEV + "reconnect=1", MONITOR, "-device pvpanic", "-action panic=pause",
          "-device vmcoreinfo"]),
        ((9, 2, 0), True, False,
         [CHARDEV + "reconnect-ms=1000", MONITOR, "-device pvpanic", "-action panic=pause",
          "-device vmcoreinfo"]),
    ],
)  # fmt: skip
def test_arguments(version: Version, dial_in: bool, pci: bool, expected: list[str]) -> None:
    assert arguments(version, dial_in=dial_in, pci=pci) == expected


@pytest.mark.parametrize("version", [(1, 5, 0), (2, 8, 0), (5, 2, 0), (6, 0, 0), (11, 1, 0)])
def test_a_vm_started_with_them_leaves_its_panic_to_panicd(version: Version) -> None:
    words = " ".join(arguments(version)).split()
    line = parse_command_line(["qemu", *words])
    assert line.panic_devices == ("pvpanic",)
    paused = line.panic_action == "pause"
    armed = Capability(version, no_shutdown=line.no_shutdown).armed is Armed.YES
    assert paused or armed


@pytest.mark.parametrize("version", [(1, 5, 3), (2, 0, 0), (2, 1, 3)])
def test_qemu_that_cannot_connect_again_is_not_told_to_dial_in(version: Version) -> None:
    with pytest.raises(ValueError, match="without --dial-in"):
        arguments(version, dial_in=True)
    assert CHARDEV + "reconnect=1" in arguments((2, 2, 0), dial_in=True)


@pytest.mark.parametrize(("version", "said"), [((1, 5, 3), True), ((1, 6, 0), False)])
def test_firmware_that_does_not_tell_the_guest_of_the_device(version: Version, said: bool) -> None:
    why = " ".join(argument.why for argument in qemu_arguments(Wanted(version, "/vm.qmp")))
    assert ("goes unseen" in why) is said


def test_a_pci_device_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="on the ISA bus"):
        arguments((5, 2, 0), pci=True)


MOVED = "-global pvpanic.ioport=0"


@pytest.mark.parametrize(
    ("version", "machine", "expected"),
    [
        ((1, 5, 0), "", [MOVED]),
        ((1, 5, 3), "pc", [MOVED]),
        ((1, 5, 3), "pc-q35-1.5", [MOVED]),
        ((1, 5, 3), "pc-i440fx-1.4", []),
        ((1, 6, 2), "pc-i440fx-1.5", [MOVED]),
        ((1, 6, 2), "", []),
        ((1, 7, 0), "pc-i440fx-1.5", []),
        ((2, 8, 0), "", []),  # it has nothing to exit for
        ((7, 2, 0), "q35", []),
    ],
)
def test_without_a_notifier(version: Version, machine: str, expected: list[str]) -> None:
    found = shown(Wanted(version, "/run/qemu/vm.qmp", machine=machine, notifier=False))
    assert [line for line in found[2:] if "vmcoreinfo" not in line] == expected


@pytest.mark.parametrize(
    ("machine", "devices"),
    [
        ("virt", ["pvpanic-pci", "vmcoreinfo"]),
        ("virt-10.0", ["pvpanic-pci", "vmcoreinfo"]),
        ("sbsa-ref", ["pvpanic-pci"]),
        ("s390-ccw-virtio", []),
        ("pseries-9.0", []),
        ("q35", ["pvpanic", "vmcoreinfo"]),
        ("microvm", ["pvpanic", "vmcoreinfo"]),
    ],
)
def test_a_machine_gets_the_devices_that_it_takes(machine: str, devices: list[str]) -> None:
    wanted = Wanted((7, 2, 0), "/run/qemu/vm.qmp", machine=machine)
    assert [line for line in shown(wanted) if line.startswith("-device")] == [
        f"-device {device}" for device in devices
    ]


def test_a_machine_without_isa_in_a_qemu_without_the_pci_device() -> None:
    with pytest.raises(ValueError, match=r"pvpanic-pci came with QEMU 6\.0"):
        qemu_arguments(Wanted((5, 2, 0), "/run/qemu/vm.qmp", machine="virt"))


def test_machine_that_reports_panics_by_itself() -> None:
    wanted = Wanted((7, 2, 0), "/run/qemu/vm.qmp", machine="s390-ccw-virtio")
    assert not any("pvpanic" in line for line in shown(wanted))
    assert "-action panic=pause" in shown(wanted)
    with pytest.raises(ValueError, match="reports panics by itself"):
        qemu_arguments(replace(wanted, notifier=False))


def test_qemu_that_has_no_panic_device() -> None:
    with pytest.raises(ValueError, match=r"QEMU 1\.5"):
        arguments((1, 4, 2))
