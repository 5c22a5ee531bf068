"""The arguments that a VM needs, so that panicd can act on its panics."""

from dataclasses import dataclass
from typing import Final

from panicd.rules.capability import (
    ACPI_NODE_SINCE,
    EXITS_ON_PANIC_SINCE,
    NEUTRAL_PORT,
    NO_VMCOREINFO,
    SET_ACTION_SINCE,
    Version,
    has_isa,
    platform_notifier,
)

PVPANIC_SINCE: Final[Version] = (1, 5, 0)
VMCOREINFO_SINCE: Final[Version] = (2, 11, 0)
PVPANIC_PCI_SINCE: Final[Version] = (6, 0, 0)
RECONNECT_SINCE: Final[Version] = (2, 2, 0)
"""``-chardev socket,reconnect=`` (QEMU commit 5dd1f02b); 1.5 to 2.0 were seen to exit on it."""

BUILTIN_MACHINES: Final = frozenset({"pc-i440fx-1.5", "pc-q35-1.5"})
"""Machine types that have a panic device nobody asked for, in QEMU 1.5 and 1.6."""

DEFAULT_MACHINES: Final = frozenset({"", "pc", "q35"})
"""Names that stood for ``BUILTIN_MACHINES`` in QEMU 1.5."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One option with its value, and why it is there."""

    option: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The wanted properties of a VM.

    Attributes:
        version: its QEMU's version.
        socket: path of its monitor's socket, or of panicd's listening one.
        dial_in: the VM connects to panicd, and not panicd to the VM.
        machine: its machine type; empty: QEMU's default.
        pci: the panic device is on the PCI bus, where there is no ISA bus.
        notifier: the guest can report that it panics.
    """

    version: Version
    socket: str
    dial_in: bool = False
    machine: str = ""
    pci: bool = False
    notifier: bool = True


def qemu_arguments(wanted: Wanted) -> list[Argument]:
    """Return the arguments for a VM.

    Raises:
        ValueError: this QEMU lacks the panic device, its machine always has one, or it can't dial
            in.
    """
    monitor = [
        Argument(
            "-chardev",
            f"socket,id=panicd,path={wanted.socket},{_connects(wanted)}",
            "a monitor of panicd's own: QEMU serves one client on each",
        ),
        # Every version takes this (vl.c, monitor_parse); 11.1 warns of -mon, which is deprecated.
        Argument("-qmp", "chardev:panicd", "speaks QMP"),
    ]
    panics = _reported(wanted) if wanted.notifier else _neutralised(wanted)
    return [*monitor, *panics, *_vmcoreinfo(wanted)]


def has_builtin_device(version: Version, machine: str) -> bool:
    """Whether a machine has a panic device that nobody asked for; measured, see docs/qemu.md."""
    if not PVPANIC_SINCE <= version < (1, 7, 0):
        return False
    default = version < (1, 6, 0) and machine in DEFAULT_MACHINES
    return default or machine in BUILTIN_MACHINES


def _vmcoreinfo(wanted: Wanted) -> list[Argument]:
    if wanted.version < VMCOREINFO_SINCE or wanted.machine.startswith(NO_VMCOREINFO):
        return []
    why = "lets a dump's tools find their way"
    if wanted.machine.startswith("virt"):
        why += " (of Arm: RISC-V's virt refuses it, leave it out there)"
    return [Argument("-device", "vmcoreinfo", why)]


def _connects(wanted: Wanted) -> str:
    if wanted.dial_in and wanted.version < RECONNECT_SINCE:
        raise ValueError(
            "QEMU before 2.2 can't connect again (reconnect=): have panicd dial, without --dial-in"
        )
    if wanted.dial_in:
        return "reconnect-ms=1000" if wanted.version >= (9, 2, 0) else "reconnect=1"
    return "server=on,wait=off" if wanted.version >= (2, 12, 0) else "server,nowait"


def _reported(wanted: Wanted) -> list[Argument]:
    """Return the arguments that let the guest report a panic, and QEMU leave it to panicd."""
    version = wanted.version
    arguments = []
    if platform_notifier(wanted.machine) is None:
        if version < PVPANIC_SINCE:
            raise ValueError("the panic device pvpanic came with QEMU 1.5")
        pci = wanted.pci or not has_isa(wanted.machine)
        if pci and version < PVPANIC_PCI_SINCE:
            raise ValueError(
                "pvpanic-pci came with QEMU 6.0; earlier ones have pvpanic, on the ISA bus"
            )
        why = "lets the guest report that it panics"
        if has_builtin_device(version, wanted.machine):
            why = (
                "asks for the panic device that this machine has built in, so that on_crash applies"
            )
        if version < ACPI_NODE_SINCE:
            why += (
                ". But the firmware of QEMU 1.5 does not tell the guest of it (ACPI): a Linux "
                "guest's driver does not find it, and its panic goes unseen before QEMU 1.6"
            )
        device = "pvpanic-pci" if pci else "pvpanic"
        arguments.append(Argument("-device", device, why))
    if version >= SET_ACTION_SINCE:
        why = "panics wait for panicd even while it is not connected"
        arguments.append(Argument("-action", "panic=pause", why))
    elif version >= EXITS_ON_PANIC_SINCE:
        why = "without it this QEMU exits on a panic, and nothing is left to act on"
        arguments.append(Argument("-no-shutdown", "", why))
    return arguments


def _neutralised(wanted: Wanted) -> list[Argument]:
    """Return the arguments that keep a guest from reporting a panic."""
    if platform_notifier(wanted.machine) is not None:
        raise ValueError(f"{wanted.machine} reports panics by itself: no argument changes that")
    if not has_builtin_device(wanted.version, wanted.machine):
        return []
    why = (
        "tells the guest that there is no panic device (ACPI); that stays on port 0, the DMA "
        "controller's, where a guest that writes 1 by itself raises a false panic, to which "
        "'unrequested' applies. Only another machine type, such as pc-i440fx-1.4, has no device"
    )
    return [Argument("-global", f"pvpanic.ioport={NEUTRAL_PORT}", why)]
