"""Which guest systems have a driver for a panic device, and what suits a guest of each.

The host chooses a VM's panic device. libosinfo knows which system a guest runs. This table knows
which systems can report a panic, by which device, and how they go on after it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

T = TypeVar("T")
Kernel = tuple[int, int]

ISA: Final = "pvpanic"
PCI: Final = "pvpanic-pci"
HYPERV: Final = "hv-crash"


class Verdict(StrEnum):
    """Whether a guest system can use a panic device."""

    YES = "yes"
    PROBABLY = "probably"  # its release is late enough; its kernel is not known
    IF_INSTALLED = "if-installed"  # by a driver that does not come with it
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Driver:
    """A guest system's driver for one panic device.

    Attributes:
        family: libosinfo's word for the kind of system.
        device: QEMU's name of the device; ``hv-crash`` is a property of the CPU.
        source: where this can be looked up.
        kernel: the first version with the driver; None: every relevant version has it.
        released: that version's date, as ``YYYY-MM-DD``: older systems lack the driver.
        needs: software to install in the guest; empty: none.
    """

    family: str
    device: str
    source: str
    kernel: Kernel | None = None
    released: str = ""
    needs: str = ""


VIRTIO_WIN: Final = "the driver pvpanic of virtio-win"
DRIVERS: Final = (
    Driver(
        "linux",
        ISA,
        "Linux drivers/platform/x86/pvpanic.c, later drivers/misc/pvpanic (CONFIG_PVPANIC), of "
        "2013: the tree of 3.10.35 has it, and so has that of RHEL 6's 2.6.32",
        kernel=(3, 10),
        released="2013-06-30",
    ),
    Driver(
        "linux",
        PCI,
        "Linux drivers/misc/pvpanic/pvpanic-pci.c (CONFIG_PVPANIC_PCI), which 5.13 brought",
        kernel=(5, 13),
        released="2021-06-27",
    ),
    Driver(
        "winnt",
        ISA,
        "virtio-win/kvm-guest-drivers-windows, pvpanic/pvpanic.inf (ACPI\\QEMU0001)",
        needs=VIRTIO_WIN,
    ),
    Driver(
        "winnt",
        PCI,
        "virtio-win/kvm-guest-drivers-windows, pvpanic-pci.inf; virtio-win 0.1.248 has it "
        "(its issue 1107)",
        needs=VIRTIO_WIN,
    ),
    Driver(
        "winnt",
        HYPERV,
        "Hyper-V Top-Level Functional Specification, guest crash MSRs; QEMU "
        "docs/system/i386/hyperv.rst",
        released="2012-10-26",
    ),
    Driver(
        "dragonflybsd",
        ISA,
        "DragonFlyBSD sys/dev/acpica/acpi_pvpanic/acpi_pvpanic.c, of 2015",
        released="2016-08-02",
    ),
)
NO_DRIVER: Final = "no driver for a panic device is known of this system"
_RHEL: Final = r"(redhat\.com/rhel|centos\.org/centos|oracle\.com/ol|rockylinux\.org/rocky)/"
KERNELS: Final[dict[str, Kernel]] = {
    r"debian\.org/debian/8": (3, 16),
    r"debian\.org/debian/9": (4, 9),
    r"debian\.org/debian/10": (4, 19),
    r"debian\.org/debian/11": (5, 10),
    r"debian\.org/debian/12": (6, 1),
    r"debian\.org/debian/13": (6, 12),
    r"ubuntu\.com/ubuntu/14\.04": (3, 13),
    r"ubuntu\.com/ubuntu/16\.04": (4, 4),
    r"ubuntu\.com/ubuntu/18\.04": (4, 15),
    r"ubuntu\.com/ubuntu/20\.04": (5, 4),
    r"ubuntu\.com/ubuntu/22\.04": (5, 15),
    r"ubuntu\.com/ubuntu/24\.04": (6, 8),
    _RHEL + "7": (3, 10),
    _RHEL + "8": (4, 18),
    _RHEL + "9": (5, 14),
    _RHEL + "10": (6, 12),
}
"""The kernel that a release came with, by libosinfo's id, as its release notes say.

libosinfo does not know kernels. Later minor releases, and kernels installed since, are newer.
"""

BACKPORTS: Final[dict[str, str]] = {
    _RHEL + "6": (
        "the 2.6.32 of RHEL 6 has the driver backported: `modinfo pvpanic` in the guest tells"
    ),
}
"""Systems whose kernel is older than its drivers, by libosinfo's id."""

NOT_BUILT: Final[dict[str, dict[str, str]]] = {
    "aarch64": {
        r"debian\d*": (
            "Debian builds its arm64 kernels without it (CONFIG_PVPANIC is not set), seen in those "
            "of 12 and 13: `modinfo pvpanic-pci` in the guest tells"
        ),
    },
}
"""Systems whose kernels lack the driver that their version has, by architecture and id."""

LAG: Final = 1
"""Years by which a release's kernel may be older than the release."""

PLATFORMS: Final[dict[str, str]] = {
    "s390x": "s390: the machine reports panics by itself",
    "ppc64": "pseries: the machine reports panics by itself",
    "ppc64le": "pseries: the machine reports panics by itself",
}
X86: Final = frozenset({"", "x86_64", "i686"})

_HOSTS: Final[dict[str, str]] = {
    "microsoft.com": "winnt",
    "freebsd.org": "freebsd",
    "netbsd.org": "netbsd",
    "openbsd.org": "openbsd",
    "dragonflybsd.org": "dragonflybsd",
    "haiku-os.org": "haiku",
    "apple.com": "darwin",
    "sun.com": "solaris",
    "illumos.org": "solaris",
}
"""Makers whose systems are no Linux, by the host in libosinfo's id."""

FAMILIES: Final = frozenset({"linux", *_HOSTS.values()})
_WINDOWS: Final = frozenset({"windows", "mswindows"})


@dataclass(frozen=True, slots=True)
class GuestSystem:
    """A guest's system, as far as panicd knows it; unknown texts are empty.

    Attributes:
        id: libosinfo's id, a URL; or an operator's word for the system.
        name: the name for people.
        family: libosinfo's word for its kind.
        released: its release date, as ``YYYY-MM-DD``.
        kernel: the version of a Linux kernel.
        known_by: the source of this knowledge.
    """

    id: str = ""
    name: str = ""
    family: str = ""
    released: str = ""
    kernel: Kernel | None = None
    known_by: str = "nobody"


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a guest system can use one device, and why; ``source`` says where to look it up."""

    device: str
    verdict: Verdict
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What suits a guest.

    Attributes:
        system: the guest's system.
        support: for each device whether the system can use it.
        device: the device to give it; empty: none would be of use.
        arguments: QEMU's arguments for the device.
        libvirt: libvirt's XML for the device (formatdomain.html).
        why: the reason for this device, or for none.
        ignore: whether ``on_crash: ignore`` suits it.
        grace: whether ``grace`` suits it.
        kdump: what happens to a dump that the guest makes itself.
    """

    system: GuestSystem
    support: tuple[Support, ...]
    device: str
    arguments: str
    libvirt: str
    why: str
    ignore: str
    grace: str
    kdump: str


_LIBVIRT_MODELS: Final = {ISA: "isa", PCI: "pvpanic", HYPERV: "hyperv"}
_ARGUMENTS: Final = {ISA: "-device pvpanic", PCI: "-device pvpanic-pci", HYPERV: "-cpu …,hv-crash"}

_FIRST: Final = {"winnt": [HYPERV, ISA, PCI]}
"""The first choices on a PC: Windows needs no driver for ``hv-crash``."""

_IGNORE: Final = {
    "linux": "only where the guest reboots itself (sysctl kernel.panic): resumed after its panic a "
    "Linux with kernel.panic=0 spins at 100 % of a host CPU and says nothing more",
    "winnt": "not needed: with `grace` it writes its dump and reboots itself",
}
_GRACE: Final = {
    "linux": "longer than the guest's kernel.panic seconds, where those are set; else in vain",
    "winnt": "yes, such as 15m: it writes its memory dump after it has reported the panic, and "
    "reboots",
}
# Linux kernel/panic.c and Documentation/admin-guide/kernel-parameters.txt,
# crash_kexec_post_notifiers: else the crash kernel is started before any panic notifier is called.
# QEMU qapi/run-state.json, GUEST_CRASHLOADED (5.0); hw/core/machine.c, hw_compat_5_1: from 5.2 on
# the device offers it, to machine types as new.
_KDUMP: Final = {
    "linux": "with a crash kernel loaded it dumps and says nothing, unless it was started with "
    "crash_kexec_post_notifiers: then Linux 5.6 and later says so on QEMU 5.2 and later, and "
    "kdump_timeout applies; an older one reports a panic before its kdump: give it that time by "
    "`grace`",
    "winnt": "with its memory dump enabled, the pvpanic driver of virtio-win since 2021 says "
    "GUEST_CRASHLOADED in place of a panic where the device offers that (QEMU 5.2 and later), and "
    "kdump_timeout applies (its pull request 559)",
}
_NOT_KNOWN: Final = "not known of this system"


def advise(system: GuestSystem, architecture: str = "") -> Advice:
    """Return what suits a guest.

    Args:
        system: the guest's system.
        architecture: of its CPU, as libvirt calls it; empty stands for a PC.
    """
    support = tuple(
        _support(system, driver, architecture)
        for driver in DRIVERS
        if driver.family == system.family
    )
    useful = [s for s in support if s.verdict not in {Verdict.NO, Verdict.UNKNOWN}]
    device, why = "", ""
    if platform := PLATFORMS.get(architecture):
        why = platform
    elif not system.family:
        why = "it is not known what the guest runs: say so by --os, or by virt-xml --osinfo"
    else:
        first = _FIRST.get(system.family, [ISA, PCI]) if architecture in X86 else [PCI]
        device = next((kind for kind in first if any(s.device == kind for s in useful)), "")
        why = _why(device, architecture, support)
    return Advice(
        system,
        support,
        device,
        _ARGUMENTS.get(device, ""),
        f"<panic model='{_LIBVIRT_MODELS[device]}'/>" if device else "",
        why,
        _IGNORE.get(system.family, _NOT_KNOWN),
        _GRACE.get(system.family, _NOT_KNOWN),
        _KDUMP.get(system.family, _NOT_KNOWN),
    )


def _why(device: str, architecture: str, support: Sequence[Support]) -> str:
    if not support:
        return NO_DRIVER
    if not device:
        return "; ".join(f"{s.device}: {s.why}" for s in support)
    chosen = next(s for s in support if s.device == device)
    bus = "" if architecture in X86 else f", as {architecture} has no ISA bus"
    return f"{chosen.why}{bus}"


def _support(system: GuestSystem, driver: Driver, architecture: str) -> Support:
    verdict, why = _verdict(system, driver)
    lacks = _first_match(NOT_BUILT.get(architecture, {}), system.id)
    if lacks is not None:
        verdict, why = Verdict.NO, lacks
    return Support(driver.device, verdict, why, driver.source)


def _verdict(system: GuestSystem, driver: Driver) -> tuple[Verdict, str]:
    since = ".".join(map(str, driver.kernel)) if driver.kernel else ""
    if driver.needs:
        return Verdict.IF_INSTALLED, f"it takes {driver.needs}"
    kernel = system.kernel or _first_match(KERNELS, system.id)
    if driver.kernel and kernel:
        has = kernel >= driver.kernel
        why = f"its kernel is {'.'.join(map(str, kernel))}, and {since} and later have the driver"
        return (Verdict.YES if has else Verdict.NO), why
    backport = _first_match(BACKPORTS, system.id) if driver.device == ISA else None
    if backport is not None:
        return Verdict.PROBABLY, backport
    if not driver.kernel:
        if system.released and system.released < driver.released:
            return Verdict.NO, f"it was released {system.released}, before it had that"
        return Verdict.PROBABLY, "it has that by itself"
    if not system.released:
        return Verdict.UNKNOWN, f"its kernel is not known: {since} and later have the driver"
    if system.released < driver.released:
        return Verdict.NO, f"it was released {system.released}, before Linux {since} was"
    tells = "`modinfo pvpanic` in the guest tells"
    year, rest = driver.released.split("-", 1)
    if system.released < f"{int(year) + LAG}-{rest}":
        why = f"it was released {system.released}, soon after Linux {since}: {tells}"
        return Verdict.UNKNOWN, why
    return Verdict.PROBABLY, f"it was released {system.released}, long after Linux {since}: {tells}"


def _first_match(table: Mapping[str, T], id_: str) -> T | None:
    """Return the entry for libosinfo's id: that of the longest pattern that fits."""
    fits = [pattern for pattern in table if re.search(rf"{pattern}(\D|$)", id_)]
    return table[max(fits, key=len)] if fits else None


def from_id(id_: str, known_by: str) -> GuestSystem:
    """Return the guest system that libosinfo's id, or an operator's word, names.

    Args:
        id_: such as ``http://debian.org/debian/12``, ``debian12``, ``windows`` or ``linux``.
        known_by: the source of the id.
    """
    word = id_.lower()
    host = re.match(r"https?://([^/]+)/", word)
    if host:
        family = _HOSTS.get(host[1].removeprefix("www."), "linux")
    elif word in _WINDOWS or re.fullmatch(r"win[0-9a-z.]+", word):
        family = "winnt"
    else:
        family = next((known for known in FAMILIES if word.startswith(known)), "")
    return GuestSystem(id_, id_, family, known_by=known_by)


def parse_osinfo(text: str) -> GuestSystem | None:
    """Read ``osinfo-query os --fields=id,name,family,release-date``'s output about one system.

    osinfo-query chooses the order of the columns; their headings name them.
    """
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    rows = [row for row in rows if len(row) > 1]
    if len(rows) != 2:
        return None
    found = dict(zip(*rows, strict=False))
    return GuestSystem(
        found.get("ID", ""),
        found.get("Name", ""),
        found.get("Family", ""),
        found.get("Release date", ""),
        known_by="osinfo-db",
    )


def parse_agent(text: str) -> GuestSystem | None:
    """Read a guest agent's answer to ``guest-get-osinfo``; a guest may say what it likes."""
    try:
        answer = json.loads(text)["return"]
        fields = {key: value for key, value in answer.items() if isinstance(value, str)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    word = fields.get("id", "").lower()
    family = from_id(word, "").family or "linux" * bool(fields.get("kernel-release") and word)
    if not family:
        return None
    name = fields.get("pretty-name") or fields.get("name") or word
    kernel = parse_kernel(fields.get("kernel-release", "")) if family == "linux" else None
    return GuestSystem(word, name[:100], family, kernel=kernel, known_by="the guest's agent")


def parse_kernel(text: str) -> Kernel | None:
    """Read a kernel's version, such as ``6.1.0-18-amd64``; None where it is none."""
    numbers = re.match(r"(\d{1,3})\.(\d{1,4})", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def merge(known: GuestSystem, more: GuestSystem | None) -> GuestSystem:
    """Return a guest system with a further source's additions; the earlier source counts first."""
    if more is None:
        return known
    if not known.family or not known.id:
        return replace(more, kernel=known.kernel or more.kernel)
    if more.family != known.family:
        return known
    return replace(
        known,
        id=known.id if "://" in known.id else more.id,
        name=more.name if known.name == known.id else known.name,
        released=known.released or more.released,
        kernel=known.kernel or more.kernel,
    )
