"""What a VM's QEMU can do, according to its own answers.

A capability is a hint of what to try. Only ``query-status`` after the ``cont`` tells whether the
guest really runs again.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.on_crash import OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.plugging import DEVICE
from panicd.rules.qapi import RunState
from panicd.rules.settings import DumpFormat

Version = tuple[int, int, int]

REVERSIBLE_SINCE: Final[Version] = (1, 7, 0)  # QEMU commit df390768
EXITS_ON_PANIC_SINCE: Final[Version] = (2, 8, 0)  # QEMU commit 864111f4
BUILTIN_UNTIL: Final[Version] = (1, 7, 0)  # QEMU commit 7839ff59 took the builtin device away
DUMP_FORMATS_SINCE: Final[Version] = (2, 0, 0)
DETACHED_DUMP_SINCE: Final[Version] = (2, 6, 0)
SET_ACTION_SINCE: Final[Version] = (6, 0, 0)
UNKNOWN_VERSION: Final[Version] = (0, 0, 0)
TDX_SINCE: Final[Version] = (10, 1, 0)


UNREQUESTED: Final = frozenset({PanicDevice.BUILTIN, PanicDevice.NEUTRALISED})
"""Devices that nobody asked for; a neutralised one can still report a false panic."""

PVPANIC_PORT: Final = 0x505
NEUTRAL_PORT: Final = 0
"""On this port ACPI tells the guest that there is no device (``_STA``), measured on 1.5 and 1.6."""

ACPI_NODE_SINCE: Final[Version] = (1, 6, 0)
"""The firmware that comes with QEMU 1.5 does not tell the guest of pvpanic: measured."""

PLATFORMS: Final[dict[str, str]] = {
    "s390-ccw": "s390",  # the disabled wait of a CPU
    "pseries": "pseries",  # RTAS ibm,os-term
    "vmapple": "pvpanic-mmio",
}
"""The part of a machine that reports panics, by the beginning of the machine type."""

PCI_ONLY: Final = ("virt", "sbsa-ref")
"""Machine types without an ISA bus, by their beginning: they refuse ``pvpanic``; measured."""

NO_VMCOREINFO: Final = ("sbsa-ref", "s390-ccw", "pseries")
"""Machine types that refuse ``-device vmcoreinfo``, as they have no fw_cfg with DMA. All measured
but pseries, which has no fw_cfg at all (QEMU, ``hw/ppc/spapr.c``)."""

TDX: Final = "tdx-guest"  # the object of a confidential guest, which reports by its own call


_BACKPORTED: Final = re.compile(r"qemu-kvm[\w-]*-1\.5\.3-\S*\.el7")


def is_backport(package: str) -> bool:
    """Tell whether a QEMU before 1.7 treats panics as 1.7 does.

    RHEL 7's 1.5.3 carries QEMU's commits df390768 (reversible) and 7839ff59 (no builtin device).

    Args:
        package: from the greeting, such as `` (qemu-kvm-1.5.3-175.el7_9.6)``.
    """
    return _BACKPORTED.search(package) is not None


def is_neutral(port: int, version: Version) -> bool:
    """Tell whether a builtin pvpanic is where no guest's driver finds it.

    On any port but 0 the driver finds it through the firmware's ACPI tables, if these list it.

    Args:
        port: the device's I/O port.
        version: of a QEMU with a builtin pvpanic, so not of a backport.
    """
    return port == NEUTRAL_PORT or (version < ACPI_NODE_SINCE and port != PVPANIC_PORT)


def platform_notifier(machine: str) -> str | None:
    """Return the part that reports panics in every machine of a type; None: it needs a device.

    Args:
        machine: the QOM type of ``/machine``, such as ``s390-ccw-virtio-7.2-machine``.
    """
    return next((what for start, what in PLATFORMS.items() if machine.startswith(start)), None)


def has_isa(machine: str) -> bool:
    """Tell whether a machine has an ISA bus, which ``pvpanic`` needs (``pvpanic-pci`` needs PCI).

    Args:
        machine: its type, as in ``-machine`` or as ``/machine`` has it.
    """
    return not machine.startswith(PCI_ONLY)


class Armed(StrEnum):
    """Whether QEMU will leave a panic of this domain to panicd."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class PanicSetting(StrEnum):
    """The QAPI ``PanicAction`` values that panicd sets by ``set-action`` (QEMU 6.0 and later)."""

    PAUSE = "pause"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Capability:
    """What one QEMU can do.

    Attributes:
        version: from the greeting.
        panic_device: where its panic device comes from.
        device_types: QOM types of the panic devices found, ``hv-crash``, the machine's own part.
        machine: the QOM type of ``/machine``, empty where it is not known.
        backport: its distribution has backported 1.7's treatment of panics.
        panic_setting: the value that panicd set by ``set-action``; None where it could not.
        no_shutdown: ``-no-shutdown`` stands on the command line; None where that is unreadable.
        reboot_is_shutdown: QEMU ends instead of resetting; None where nothing tells.
        dump_formats: QAPI ``query-dump-guest-memory-capability``; before 2.0 always elf.
        libvirt: libvirt's view of the domain, if libvirt runs it and panicd has to go through it.
        by_api: panicd reaches it by libvirt's API, and has no monitor of it.
        plugged: panicd plugged in its panic device while it ran.
        has_vmcoreinfo: its guest's kernel can leave a note on itself; None: not known.
    """

    version: Version
    panic_device: PanicDevice = PanicDevice.NONE
    device_types: tuple[str, ...] = ()
    machine: str = ""
    backport: bool = False
    panic_setting: PanicSetting | None = None
    no_shutdown: bool | None = None
    reboot_is_shutdown: bool | None = None
    dump_formats: tuple[DumpFormat, ...] = (DumpFormat.ELF,)
    libvirt: LibvirtDomain | None = None
    by_api: bool = False
    plugged: bool = False
    has_vmcoreinfo: bool | None = None

    @property
    def reversible(self) -> bool:
        """Whether ``cont`` is expected to resume a panicked guest. A hint: backports differ."""
        return self.behaves_like >= REVERSIBLE_SINCE

    @property
    def behaves_like(self) -> Version:
        """The upstream version that treats a panic in the same way."""
        if self.by_api:  # libvirt makes up for what an older QEMU lacks
            return SET_ACTION_SINCE
        return max(self.version, REVERSIBLE_SINCE) if self.backport else self.version

    @property
    def version_text(self) -> str:
        """The version for people; empty where it is not known."""
        return "" if self.version == UNKNOWN_VERSION else ".".join(map(str, self.version))

    @property
    def firmware_hides_device(self) -> bool:
        """Whether the guest's driver can't find pvpanic, since ACPI does not list it.

        A hint: the VM may have another firmware than QEMU's own (``-bios``).
        """
        asked_for = self.panic_device in {PanicDevice.REQUESTED, PanicDevice.BUILTIN}
        return asked_for and "pvpanic" in self.device_types and self.behaves_like < ACPI_NODE_SINCE

    @property
    def can_set_action(self) -> bool:
        """Whether panicd can change QEMU's reaction to a panic at run time."""
        return self.version >= SET_ACTION_SINCE and not self.by_api

    @property
    def has_monitor_beside_libvirt(self) -> bool:
        """Whether panicd sends to libvirt what libvirt must know of, and the rest to a monitor."""
        return self.libvirt is not None and not self.by_api

    @property
    def resumes_by_libvirt(self) -> bool:
        """Whether libvirt, not the monitor, has to resume a panicked guest.

        False where libvirt lets panicked guests run: it says 'running' then, and never resumes one.
        """
        return self.has_monitor_beside_libvirt and not self.libvirt_lets_run

    @property
    def can_reset(self) -> bool:
        """Whether ``system_reset`` resets the guest, as far as is known."""
        return not self.reboot_is_shutdown

    @property
    def libvirt_acts(self) -> bool:
        """Whether libvirt itself acts on a panic, before panicd can."""
        return self.libvirt is not None and self.libvirt.acts

    @property
    def libvirt_lets_run(self) -> bool:
        """Whether libvirt's own action is to let a panicked guest run."""
        return self.libvirt is not None and self.libvirt.lets_run

    def libvirt_forestalls(self, wanted: OnCrash) -> bool:
        """Whether libvirt acts on a panic before panicd can, and takes another action."""
        return self.libvirt_acts and not (self.libvirt_lets_run and wanted is OnCrash.IGNORE)

    @property
    def armed(self) -> Armed:
        """Whether QEMU keeps a panicked guest for panicd."""
        if self.panic_setting is not None or self.version < EXITS_ON_PANIC_SINCE:
            return Armed.YES
        match self.no_shutdown:
            case True:
                return Armed.YES
            case False:
                return Armed.NO
            case None:
                return Armed.UNKNOWN

    @property
    def panic_leaves(self) -> RunState | None:
        """The run state that a panic of a running guest is expected to leave; None: QEMU ends."""
        if self.armed is Armed.NO:
            return None
        if self.panic_setting is PanicSetting.NONE:
            return RunState.RUNNING
        return RunState.GUEST_PANICKED


def run_by_libvirt(capability: Capability, domain: LibvirtDomain | None) -> Capability:
    """Return a capability with libvirt's view of the domain.

    libvirt's ``<panic>`` devices count as asked for if QEMU shows none: s390's and pseries' are
    part of the machine. After any change to the domain panicd no longer knows the value of
    ``set-action``: libvirt 12.8 sets it too, with each change of ``on_crash``, and then to the
    value that suits the previous ``on_crash``.
    """
    if domain is not None and domain != capability.libvirt:
        capability = replace(capability, panic_setting=None)
    if domain != capability.libvirt:
        capability = replace(capability, libvirt=domain)
    if domain is not None and capability.by_api:  # QEMU itself is not asked for its devices
        capability = with_plugged(capability, plugged=domain.plugged)
    if domain is None or not domain.panic_models or capability.panic_device is not PanicDevice.NONE:
        return capability
    return replace(capability, panic_device=PanicDevice.REQUESTED, device_types=domain.panic_models)


def with_plugged(capability: Capability, *, plugged: bool) -> Capability:
    """Return a capability with, or without, the panic device that panicd plugs in."""
    if plugged is capability.plugged:
        return capability
    return replace(
        capability,
        plugged=plugged,
        panic_device=PanicDevice.REQUESTED if plugged else PanicDevice.NONE,
        device_types=(DEVICE,) if plugged else (),
    )
