"""libvirt's view of a domain that it runs: its own ``on_crash``, and who acts on a panic.

libvirt acts on a panic within 3 ms, whatever else listens, unless its live ``<on_crash>`` is
``preserve``. So panicd sets ``preserve``, and keeps the domain's own policy in the domain's
metadata. There panicd and libvirt find it again after a restart.

Source: libvirt, formatdomain.html, 'Events configuration' and 'Paravirtualized panic device';
virsh(1), ``metadata`` and ``set-lifecycle-action``.
"""

import glob
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit
from xml.sax.saxutils import quoteattr

from panicd.rules.on_crash import OnCrash
from panicd.rules.settings import Policy
from panicd.rules.socket_path import pattern_problem

DAEMONS: Final = frozenset({"libvirtd", "virtqemud"})
_OWN_MONITOR: Final = re.compile(
    r"/domain-\d+-[^/]*/monitor\.sock$|/libvirt/qemu/(lib/)?[^/]+\.monitor$"
)
OWN_MONITORS: Final = ("/var/lib/libvirt/qemu/domain-1-vm/monitor.sock",)
"""An example of the names of libvirt's own monitors."""

SYSTEM_RUN: Final = "/run/libvirt/qemu"
METADATA_URI: Final = "urn:panicd:libvirt:1"
"""The XML namespace of panicd's element in a domain's ``<metadata>``: ``<policy on_crash=…/>``."""

METADATA_KEY: Final = "panicd"  # the prefix of its element

TAKEN_FROM: Final = "taken_from"
"""The element's attribute: libvirt's ``on_crash`` before panicd set ``preserve``. A saved image and
a migration keep it. It tells panicd's own change from a word that somebody else wrote there."""

PLUGGED_URI: Final = "urn:panicd:device:1"
"""The namespace of a second element: the panic device that panicd plugged in at this start."""

PLUGGED_KEY: Final = "panicd-device"

QEMU_ARGUMENTS: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline/*[@value]"
OWN_MONITOR: Final = "panicd"  # the id of a character device
LIBVIRTS_MONITOR: Final = "charmonitor"  # the id of libvirt's own character device
_PATH: Final = re.compile(r",path=((?:[^,]|,,)+)")

PRESERVE: Final = "preserve"  # libvirt's own default for on_crash is destroy
PRESERVE_RUNNING: Final = "preserve-running"  # libvirt 12.6: QEMU doesn't stop the guest either
DEFAULT: Final = "destroy"
ENDING: Final = frozenset({"destroy", "preserve"})  # on_reboot: QEMU's domains end with either

ON_CRASH: Final[dict[str, OnCrash]] = {
    "destroy": OnCrash.DESTROY,
    "restart": OnCrash.RESTART,
    "preserve": OnCrash.PRESERVE,
    "coredump-destroy": OnCrash.COREDUMP_DESTROY,
    "coredump-restart": OnCrash.COREDUMP_RESTART,
    "rename-restart": OnCrash.RESTART,  # refused for QEMU's domains since libvirt 3.10
    PRESERVE_RUNNING: OnCrash.IGNORE,
}
"""libvirt's values of ``<on_crash>``, as panicd's."""


class UnreadableXMLError(Exception):
    """This is not the XML of a domain."""


@dataclass(frozen=True, slots=True)
class LibvirtDomain:
    """A running domain, as libvirt describes it.

    Attributes:
        id: libvirt's number for it, new at each start.
        name: the domain's name.
        uuid: the domain's UUID.
        handling: the live ``<on_crash>``: libvirt's own action on a panic.
        kept: panicd's own word in the metadata, verbatim; empty where there is none.
        monitors: the sockets of the QMP monitors in ``<qemu:commandline>``; first that of the
            character device ``panicd``.
        panic_models: the model of each ``<panic>`` device; ``default`` where it has none.
        has_vmcoreinfo: its guest's kernel can leave a note on itself (``<vmcoreinfo/>``).
        ends_on_reset: libvirt ends it instead of having it reset (``<on_reboot>``).
        memory: its memory in bytes; 0 where unknown.
        is_encrypted: its memory can't be read from outside (``<launchSecurity/>``).
        taken_from: libvirt's word before panicd set ``preserve``; empty if panicd did not.
        plugged: panicd has plugged a panic device into this start of it.
    """

    id: int
    name: str
    uuid: str
    handling: str = DEFAULT
    kept: str = ""
    monitors: tuple[str, ...] = ()
    panic_models: tuple[str, ...] = ()
    has_vmcoreinfo: bool = False
    ends_on_reset: bool = False
    memory: int = 0
    is_encrypted: bool = False
    taken_from: str = ""
    plugged: bool = False

    @property
    def monitor_to_dial(self) -> str:
        """The first of ``monitors`` that can be dialled by its name; empty where there is none."""
        usable = (path for path in self.monitors if not pattern_problem(glob.escape(path)))
        return next(usable, "")

    @property
    def acts(self) -> bool:
        """Whether libvirt itself acts on a panic, before panicd can."""
        return self.handling != PRESERVE

    @property
    def lets_run(self) -> bool:
        """Whether libvirt's action on a panic is to let the guest run on without a stop."""
        return self.handling == PRESERVE_RUNNING

    @property
    def on_crash(self) -> OnCrash | None:
        """The domain's own policy; None if panicd does not know its word.

        A value set in libvirt after panicd's ``preserve`` goes before the value that panicd kept.
        """
        if self.acts:
            return ON_CRASH.get(self.handling)
        try:
            return OnCrash(self.kept)
        except ValueError:
            return OnCrash.PRESERVE

    @property
    def takeover(self) -> str:
        """The element for the metadata; empty where libvirt preserves already.

        panicd writes it before it tells libvirt to preserve: if that second command fails, libvirt
        still acts as before.
        """
        if not self.acts or self.on_crash is None:
            return ""
        return f'<policy on_crash="{self.on_crash}" {TAKEN_FROM}="{self.handling}"/>'

    def taken_over(self) -> "LibvirtDomain":
        """Return the domain as it is after ``takeover``."""
        kept = str(self.on_crash or "")
        return replace(self, handling=PRESERVE, kept=kept, taken_from=self.handling)

    @property
    def gives_back(self) -> str:
        """The ``<on_crash>`` before panicd set ``preserve``; empty if panicd did not."""
        settable = self.taken_from in ON_CRASH.keys() - {PRESERVE, PRESERVE_RUNNING}
        return self.taken_from if settable and not self.acts else ""

    def given_back(self) -> "LibvirtDomain":
        """Return the domain as it is once ``gives_back`` is set and the metadata removed."""
        return replace(self, handling=self.gives_back, kept="", taken_from="")


def parse_domain(text: str) -> LibvirtDomain:
    """Read the live XML of a domain (``virsh dumpxml``).

    Raises:
        UnreadableXMLError: it is no domain's XML, or the domain does not run.
    """
    try:
        root = ET.fromstring(text)  # noqa: S314 - libvirt's own output, which it escapes
        number = int(root.get("id", ""))
    except (ET.ParseError, ValueError) as error:
        raise UnreadableXMLError(f"no running domain's XML: {error}") from error
    policy = root.find(f"metadata/{{{METADATA_URI}}}policy")
    arguments = [e.get("value", "") for e in root.iterfind(QEMU_ARGUMENTS)]
    note = root.find("features/vmcoreinfo")
    has_vmcoreinfo = "vmcoreinfo" in arguments or (
        note is not None and note.get("state", "on") == "on"
    )
    return LibvirtDomain(
        id=number,
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        handling=root.findtext("on_crash", DEFAULT),
        kept="" if policy is None else policy.get("on_crash", ""),
        monitors=_monitors(root),
        panic_models=tuple(e.get("model", "default") for e in root.findall("devices/panic")),
        has_vmcoreinfo=has_vmcoreinfo,
        memory=_kibibytes(root.findtext("memory", "")) * 1024,
        is_encrypted=root.find("launchSecurity") is not None,
        ends_on_reset=root.findtext("on_reboot") in ENDING,
        taken_from="" if policy is None else policy.get(TAKEN_FROM, ""),
        plugged=root.find(f"metadata/{{{PLUGGED_URI}}}device") is not None,
    )


def plugged_element(argument: str) -> str:
    """Return the metadata element for a panic device that panicd has plugged in.

    Args:
        argument: the device, as an argument to QEMU's ``-device``.
    """
    return f"<device argument={quoteattr(argument)}/>"


def _kibibytes(text: str) -> int:
    """Return a domain's memory from its live XML, which gives it in KiB."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else 0


@dataclass(frozen=True, slots=True)
class DescribedGuest:
    """A guest as its domain's XML describes it, whether the domain runs or not.

    Attributes:
        osinfo: libosinfo's id of its system, as virt-install keeps it; empty where there is none.
        architecture: the architecture of its CPU.
        has_agent: it has a channel for a guest agent.
        runs: the domain runs.
        panic_models: the model of each ``<panic>`` device; ``default`` where it has none.
    """

    osinfo: str
    architecture: str
    has_agent: bool
    runs: bool
    panic_models: tuple[str, ...]


OSINFO: Final = "{http://libosinfo.org/xmlns/libvirt/domain/1.0}"
AGENT: Final = "org.qemu.guest_agent.0"


def parse_guest(text: str) -> DescribedGuest:
    """Read the guest's description from a domain's XML (``virsh dumpxml``).

    Raises:
        UnreadableXMLError: it is no domain's XML.
    """
    try:
        root = ET.fromstring(text)  # noqa: S314 - libvirt's own output, which it escapes
    except ET.ParseError as error:
        raise UnreadableXMLError(f"no domain's XML: {error}") from error
    osinfo = root.find(f"metadata/{OSINFO}libosinfo/{OSINFO}os")
    kind = root.find("os/type")
    channels = root.iterfind("devices/channel/target")
    return DescribedGuest(
        osinfo="" if osinfo is None else osinfo.get("id", ""),
        architecture="" if kind is None else kind.get("arch", ""),
        has_agent=any(target.get("name") == AGENT for target in channels),
        runs=root.get("id") is not None,
        panic_models=tuple(e.get("model", "default") for e in root.findall("devices/panic")),
    )


def monitors_of(text: str) -> tuple[str, ...]:
    """Return the QMP monitors' sockets that a domain's XML names, whether the domain runs or not.

    There are none where the text is no XML.
    """
    try:
        return _monitors(ET.fromstring(text))  # noqa: S314 - libvirt's own output, as above
    except ET.ParseError:
        return ()


def _monitors(root: ET.Element) -> tuple[str, ...]:
    """Return the sockets of QEMU's QMP monitors, panicd's own first."""
    arguments = [element.get("value", "") for element in root.iterfind(QEMU_ARGUMENTS)]
    paths: dict[str, str] = {}
    monitors: list[tuple[bool, str]] = []
    for option, value in pairwise(arguments):
        if option == "-chardev" and value.startswith("socket,") and (path := _PATH.search(value)):
            path_given = PurePosixPath(path[1].replace(",,", ","))  # without // and /./
            paths[_property(value, "id")] = str(path_given)
        elif name := _qmp_on(option, value):
            monitors.append((name != OWN_MONITOR, name))
    return tuple(paths[name] for _, name in sorted(monitors) if name in paths)


def _qmp_on(option: str, value: str) -> str:
    """Return the id of the character device that an option uses for QMP; empty if it uses none."""
    if option in {"-qmp", "-qmp-pretty"} and value.startswith("chardev:"):
        return value.removeprefix("chardev:")
    by_object = option == "-object" and value.startswith("monitor-qmp,")  # since QEMU 11.1
    if by_object or (option == "-mon" and _property(value, "mode") == "control"):
        return _property(value, "chardev")
    return ""


def _property(value: str, key: str) -> str:
    found = re.search(rf"(?:^|,){key}=([^,]*)", value)
    return found[1] if found else ""


def is_own_monitor(path: str, arguments: Sequence[str] = ()) -> bool:
    """Tell whether a socket is the monitor by which libvirt itself commands a QEMU.

    It takes one client. Another client that waits there locks a restarted libvirt out of its VM.

    Args:
        path: the socket's path; libvirt's is ``domain-ID-NAME/monitor.sock`` since 1.2.19, and was
            ``libvirt/qemu/NAME.monitor`` before (``qemuDomainSetPrivatePaths``,
            ``qemuProcessPrepareMonitorChr``).
        arguments: those of the process that listens there, where known. libvirt calls the
            character device `LIBVIRTS_MONITOR`. If libvirt itself listens on the socket before it
            hands it to QEMU, the process is libvirt's.
    """
    if _OWN_MONITOR.search(path):
        return True
    if _is_daemons(arguments):
        return True
    devices = (value for option, value in pairwise(arguments) if option == "-chardev")
    own = (value for value in devices if _property(value, "id") == LIBVIRTS_MONITOR)
    paths = (found[1].replace(",,", ",") for value in own if (found := _PATH.search(value)))
    return path in paths


def tells_of_own_monitor(arguments: Sequence[str]) -> bool:
    """Tell whether a process's arguments may make a socket libvirt's own monitor."""
    return _is_daemons(arguments) or any(LIBVIRTS_MONITOR in argument for argument in arguments)


def _is_daemons(arguments: Sequence[str]) -> bool:
    return bool(arguments) and arguments[0].rpartition("/")[2] in DAEMONS


def pid_file(uri: str, name: str, environment: Mapping[str, str]) -> PurePosixPath:
    """Return the path of libvirt's PID file for a domain (``virPidFileBuildPath``).

    Args:
        uri: the libvirt's URI (libvirt.org/uri.html); its path tells the system's libvirt from a
            user's own.
        name: the domain's name.
        environment: panicd's environment: a user's own libvirt goes by XDG_RUNTIME_DIR.
    """
    own = urlsplit(uri).path.endswith("/session")
    run = f"{environment.get('XDG_RUNTIME_DIR', '')}/libvirt/qemu/run" if own else SYSTEM_RUN
    return PurePosixPath(run) / f"{name}.pid"


def address_of(uri: str, uuid: str) -> str:
    """Return the address of a domain without a monitor for panicd: its place in libvirt."""
    return f"{uri}#{uuid}"


def inherit(policy: Policy, domain: LibvirtDomain | None) -> Policy:
    """Return a policy with the domain's own ``on_crash``, if the policy inherits it."""
    if domain is None or domain.on_crash is None or not policy.inherits_on_crash:
        return policy
    return replace(policy, on_crash=domain.on_crash)
