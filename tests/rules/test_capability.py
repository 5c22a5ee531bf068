from dataclasses import replace

import pytest

from panicd.rules.capability import (
    Armed,
    Capability,
    PanicSetting,
    Version,
    is_backport,
    is_neutral,
)
from panicd.rules.panic_device import PanicDevice
from panicd.rules.qapi import RunState
from tests.rules.strategies import MODERN


# Measured: QEMU exits on a panic from 2.8 on, and set-action came with 6.0.
@pytest.mark.parametrize(
    ("version", "setting", "no_shutdown", "armed", "leaves"),
    [
        ((1, 5, 0), None, None, Armed.YES, RunState.GUEST_PANICKED),
        ((2, 7, 1), None, False, Armed.YES, RunState.GUEST_PANICKED),
        ((2, 8, 0), None, False, Armed.NO, None),
        ((2, 8, 0), None, True, Armed.YES, RunState.GUEST_PANICKED),
        ((2, 8, 0), None, None, Armed.UNKNOWN, RunState.GUEST_PANICKED),
        ((7, 2, 0), None, False, Armed.NO, None),
        ((7, 2, 0), None, None, Armed.UNKNOWN, RunState.GUEST_PANICKED),
        ((7, 2, 0), PanicSetting.PAUSE, False, Armed.YES, RunState.GUEST_PANICKED),
        ((7, 2, 0), PanicSetting.PAUSE, None, Armed.YES, RunState.GUEST_PANICKED),
        ((7, 2, 0), PanicSetting.NONE, False, Armed.YES, RunState.RUNNING),
        ((7, 2, 0), PanicSetting.NONE, True, Armed.YES, RunState.RUNNING),
    ],
)
def test_what_a_panic_leaves(
    version: Version,
    setting: PanicSetting | None,
    no_shutdown: bool | None,
    armed: Armed,
    leaves: RunState | None,
) -> None:
    capability = Capability(version, panic_setting=setting, no_shutdown=no_shutdown)
    assert (capability.armed, capability.panic_leaves) == (armed, leaves)


@pytest.mark.parametrize(
    ("version", "reversible", "can_set_action"),
    [
        ((1, 5, 3), False, False),
        ((1, 6, 2), False, False),
        ((1, 7, 0), True, False),
        ((5, 2, 0), True, False),
        ((6, 0, 0), True, True),
        ((11, 1, 0), True, True),
    ],
)
def test_what_a_version_can_do(version: Version, reversible: bool, can_set_action: bool) -> None:
    capability = Capability(version)
    assert (capability.reversible, capability.can_set_action) == (reversible, can_set_action)


@pytest.mark.parametrize(
    ("reboot_is_shutdown", "can_reset"), [(True, False), (False, True), (None, True)]
)
def test_a_reset_is_tried_unless_it_is_known_to_end_qemu(
    reboot_is_shutdown: bool | None, can_reset: bool
) -> None:
    assert replace(MODERN, reboot_is_shutdown=reboot_is_shutdown).can_reset is can_reset


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (" (qemu-kvm-1.5.3-175.el7_9.6)", True),
        (" (qemu-kvm-1.5.3-60.el7)", True),
        (" (qemu-kvm-1.5.3-3.fc19)", False),
        (" (qemu-kvm-0.12.1.2-2.506.el6)", False),
        ("", False),
    ],
)
def test_backport_is_known_by_its_package(package: str, expected: bool) -> None:
    assert is_backport(package) is expected


def test_backport_behaves_like_what_it_carries() -> None:
    capability = Capability((1, 5, 3), backport=True)
    assert capability.reversible
    assert capability.behaves_like == (1, 7, 0)
    assert Capability((2, 6, 0), backport=True).behaves_like == (2, 6, 0)


@pytest.mark.parametrize(
    ("port", "version", "neutral"),
    [
        (0, (1, 5, 3), True),
        (0, (1, 6, 1), True),
        (0x505, (1, 5, 3), False),
        (0x505, (1, 6, 1), False),
        (0xFFF0, (1, 5, 3), True),  # its firmware tells no guest of it
        (0xFFF0, (1, 6, 1), False),  # ACPI leads the guest's driver there
    ],
)
def test_port_on_which_no_guest_s_driver_finds_a_builtin_device(
    port: int, version: Version, neutral: bool
) -> None:
    assert is_neutral(port, version) is neutral


@pytest.mark.parametrize(
    ("version", "device", "types", "backport", "hides"),
    [
        ((1, 5, 3), PanicDevice.REQUESTED, ("pvpanic",), False, True),
        ((1, 5, 0), PanicDevice.BUILTIN, ("pvpanic",), False, True),
        ((1, 5, 3), PanicDevice.REQUESTED, ("pvpanic",), True, False),
        ((1, 6, 0), PanicDevice.BUILTIN, ("pvpanic",), False, False),
        ((1, 5, 3), PanicDevice.NEUTRALISED, ("pvpanic",), False, False),
        ((1, 5, 3), PanicDevice.NONE, (), False, False),
    ],
)
def test_firmware_that_does_not_tell_the_guest_of_its_device(
    version: Version, device: PanicDevice, types: tuple[str, ...], backport: bool, hides: bool
) -> None:
    capability = Capability(version, device, types, backport=backport)
    assert capability.firmware_hides_device is hides
