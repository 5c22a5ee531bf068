"""A panic device that panicd gives a running VM (``panicd arm``): where there is room for it.

Measured with QEMU 7.2 and Linux 6.1, on q35 (a root port) and on pc (its PCI bus): the guest's
driver takes the device at once, and also copes with its removal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

DEVICE: Final = "pvpanic-pci"  # QEMU 6.0; pvpanic's own bus, ISA, takes nothing at run time
NESTED_MOST: Final = 32  # bridges behind each other, whatever a QEMU says
DEVICE_ID: Final = "panicd-panic"
"""Tells panicd's device from one that the VM was started with."""

CONSEQUENCES: Final = (
    "QEMU gets the device, but the VM's manager does not know of it. Until `panicd disarm`, or the "
    "VM's next start, which removes it:\n"
    "- a migration fails, and the VM stays where it is;\n"
    "- the VM can't be started from its saved state (virsh managedsave, save, a snapshot with its "
    "memory): libvirt refuses, and the memory is lost unless you edit the saved XML;\n"
    "- libvirt marks it as tainted (custom-monitor) until it ends.\n"
    "The guest needs the driver (Linux: pvpanic-pci)."
)


def places(pci: object) -> list[dict[str, str]]:
    """Return the places for the device, as arguments of ``device_add``, the best first.

    A PCIe port has one slot. QEMU accepts a second device without an error, but the guest never
    sees it. The last port goes first, since the VM's manager begins with the first.

    Args:
        pci: the answer to ``query-pci``.
    """
    ports = [
        {"bus": name, "addr": "0"}
        for device, _ in _devices(pci)
        if (name := _name(device)) and _behind(device) == []
    ]
    return [*reversed(ports), {}]  # at last QEMU's own choice, which a pc has room for


@dataclass(frozen=True, slots=True)
class Plugged:
    """The device, as QEMU has it.

    Attributes:
        argument: the argument to ``-device`` that gives another QEMU this device in this place.
        is_taken: its memory is enabled, so the guest's driver has taken it. After a reset the
            firmware may have enabled it.
    """

    argument: str
    is_taken: bool


def plugged(pci: object) -> Plugged | None:
    """Return the device; None where there is none.

    Args:
        pci: the answer to ``query-pci``.
    """
    for device, port in _devices(pci):
        if _name(device) != DEVICE_ID:
            continue
        place = f",bus={port}" if port else ""
        if isinstance(slot := device.get("slot"), int):
            place += f",addr={slot}"
        regions = _listed(device.get("regions"))
        addresses = [region.get("address") for region in regions]
        return Plugged(
            f"{DEVICE},id={DEVICE_ID}{place}",
            any(isinstance(address, int) and address > 0 for address in addresses),
        )
    return None


def _devices(pci: object) -> Iterator[tuple[dict[str, object], str]]:
    """Yield all devices, on whichever bus, each with the name of the port or bridge before it."""
    for bus in _listed(pci):
        for device in _listed(bus.get("devices")):
            yield from _with_those_behind(device, "", NESTED_MOST)


def _with_those_behind(
    device: dict[str, object], port: str, most: int
) -> Iterator[tuple[dict[str, object], str]]:
    yield device, port
    for each in (_behind(device) or ()) if most else ():
        yield from _with_those_behind(each, _name(device), most - 1)


def _name(device: dict[str, object]) -> str:
    name = device.get("qdev_id")
    return name if isinstance(name, str) else ""


def _behind(device: dict[str, object]) -> list[dict[str, object]] | None:
    """Return the devices behind a port or bridge; None if the device is neither."""
    bridge = device.get("pci_bridge")
    return _listed(bridge.get("devices")) if isinstance(bridge, dict) else None


def _listed(answer: object) -> list[dict[str, object]]:
    entries = answer if isinstance(answer, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]
