"""What a QEMU's command line says about its panics.

No QMP query shows ``-no-shutdown`` or ``-action``. A QEMU before 6.0 has no ``set-action``, so only
its command line tells whether a panic will leave a guest to act on. The parser skips unknown
arguments and never guesses.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

PanicOption = Literal["pause", "none", "shutdown", "exit-failure"]
"""A value of ``-action panic=`` (QAPI ``PanicAction``, run-state.json)."""

PANIC_OPTIONS: Final[tuple[PanicOption, ...]] = ("pause", "none", "shutdown", "exit-failure")
# since 1.5, 6.0 and 9.2
PANIC_DEVICE_TYPES: Final = frozenset({"pvpanic", "pvpanic-pci", "pvpanic-mmio"})
HYPERV_CRASH: Final = "hv-crash"  # a CPU property, no device: crashes told by Hyper-V's registers

# Every other option is followed by its value, so that `-append -no-shutdown` is no -no-shutdown.
# An option that is missing here swallows the argument after it: the domain then reads as not armed,
# and that error does no harm. Source: qemu-system-x86_64 7.2, asked option by option, and the
# options of earlier and later releases.
_OPTIONS_WITHOUT_VALUE: Final = frozenset(
    {
        "h", "help", "version", "S", "s", "async-teardown", "audio-help", "daemonize",
        "enable-kvm", "enable-sync-profile", "full-screen", "mem-prealloc", "no-acpi",
        "no-fd-bootchk", "no-hpet", "no-reboot", "no-shutdown", "no-user-config", "nodefaults",
        "nographic", "old-param", "only-migratable", "portrait", "preconfig", "semihosting",
        "singlestep", "snapshot", "usb", "win2k-hack", "xen-attach", "xen-domid-restrict",
        "alt-grab", "ctrl-grab", "curses", "enable-fips", "enable-hax", "localtime", "no-frame",
        "no-kvm", "no-kvm-irqchip", "no-kvm-pit", "no-kvm-pit-reinjection", "no-quit",
        "nodefconfig", "one-insn-per-tb", "rtc-td-hack", "sdl", "show-cursor", "tdf", "xen-create",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What a QEMU's arguments say about its panics.

    A ``-readconfig`` file, a ``-set`` or a later ``set-action`` can change all of this: these are
    the settings at the process's start, not the present ones.

    Attributes:
        no_shutdown: QEMU stops instead of exiting at a shutdown (``-no-shutdown`` or
            ``-action shutdown=pause``; the last one given counts).
        reboot_is_shutdown: A reset ends the process (``-no-reboot`` or
            ``-action reboot=shutdown``).
        panic_action: What a panic does, after the effect of ``no_shutdown``, which turns
            ``shutdown``, the default from 2.8 on, into ``pause``. None if no argument says so; then
            the version's default applies.
        panic_devices: Types of the panic devices asked for, in their order: ``pvpanic``,
            ``pvpanic-pci``, and ``hv-crash`` last.
    """

    no_shutdown: bool
    reboot_is_shutdown: bool
    panic_action: PanicOption | None
    panic_devices: tuple[str, ...]


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read a QEMU's command line.

    Measured on QEMU 7.2: if an action is given twice, the last one counts, whichever option gives
    it. ``panic=shutdown`` with ``shutdown=pause`` pauses, in either order. ``panic=exit-failure``
    with ``shutdown=pause`` does not pause.

    Args:
        arguments: The whole of argv, the program's name first.
    """
    actions: dict[str, str] = {}
    devices: list[str] = []
    cpu = ""
    for option, value in options(arguments):
        match option:
            case "no-shutdown":
                actions["shutdown"] = "pause"
            case "no-reboot":
                actions["reboot"] = "shutdown"
            case "action":
                actions.update(properties(value))
            case "device":
                driver = _driver(value)
                if driver in PANIC_DEVICE_TYPES:
                    devices.append(driver)
            case "cpu":
                cpu = value
            case _:
                pass
    if _reports_hyperv_crash(cpu):
        devices.append(HYPERV_CRASH)
    no_shutdown = actions.get("shutdown") == "pause"
    return CommandLine(
        no_shutdown=no_shutdown,
        reboot_is_shutdown=actions.get("reboot") == "shutdown",
        panic_action=_panic_action(actions.get("panic"), no_shutdown=no_shutdown),
        panic_devices=tuple(devices),
    )


def guest_name(arguments: Sequence[str]) -> str:
    """Return the VM's name from a QEMU's command line (``-name``); empty where it has none."""
    name = ""
    for option, value in options(arguments):
        if option == "name":
            first = value.replace(",,", "\0").split(",", 1)[0].replace("\0", ",")
            name = properties(value).get("guest", first if "=" not in first else "")
    return name


@dataclass(frozen=True, slots=True)
class GivenMonitor:
    """A QMP monitor on a unix socket that a QEMU was given.

    Attributes:
        path: the socket's path, as the argument spells it.
        listens: QEMU listens on the socket. Otherwise it connects to a listener.
    """

    path: str
    listens: bool


def given_monitors(arguments: Sequence[str]) -> dict[str, GivenMonitor]:
    """Return the QMP monitors on unix sockets, by the names of their character devices.

    Leaves out a socket that QEMU got as a descriptor, since it has no path.
    """
    sockets: dict[str, GivenMonitor] = {}
    names: list[str] = []
    for option, value in options(arguments):
        given = properties(value)
        first = next(iter(given))
        match option:
            case "chardev" if first == "socket":
                sockets[given.get("id", "")] = _monitor(given.get("path", ""), given)
            case "qmp" | "qmp-pretty" if first.startswith("unix:"):
                sockets[first] = _monitor(first.removeprefix("unix:"), given)
                names.append(first)
            case "qmp" | "qmp-pretty":
                names.append(value.removeprefix("chardev:"))
            case "mon" if given.get("mode") == "control":
                names.append(given.get("chardev", first))
            case "object" if first == "monitor-qmp":
                names.append(given.get("chardev", ""))
            case _:
                pass
    return {name: sockets[name] for name in names if name in sockets and sockets[name].path}


def _monitor(path: str, given: Mapping[str, str]) -> GivenMonitor:
    return GivenMonitor(path, given.get("server", "off") == "on")


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option without its dashes, and its value ('' where it takes none)."""
    rest = iter(arguments[1:])
    for argument in rest:
        if not argument.startswith("-"):
            continue  # a disk image, given without an option
        option = argument[2:] if argument.startswith("--") else argument[1:]
        yield option, "" if option in _OPTIONS_WITHOUT_VALUE else next(rest, "")


def properties(value: str) -> Mapping[str, str]:
    """Split QEMU's ``key=value,...``; a doubled comma stands for itself, a bare key is on."""
    properties: dict[str, str] = {}
    for part in value.replace(",,", "\0").split(","):
        key, separator, text = part.replace("\0", ",").partition("=")
        properties[key] = text if separator else "on"
    return properties


def _driver(value: str) -> str:
    """Return the device type of a ``-device`` value, in its short, its keyed or its JSON form."""
    if value.startswith("{"):
        try:
            device = json.loads(value)
        except (ValueError, RecursionError):  # QEMU would have refused to start with it
            return ""
        driver = device.get("driver")
        return driver if isinstance(driver, str) else ""
    first = value.split(",", 1)[0]
    return first if "=" not in first else properties(value).get("driver", "")


def _reports_hyperv_crash(cpu: str) -> bool:
    """Tell whether a ``-cpu`` value asks for hv-crash (before 3.1 spelt hv_crash too)."""
    flags = properties(cpu.replace("_", "-"))
    if f"+{HYPERV_CRASH}" in flags:
        return True
    return flags.get(HYPERV_CRASH) in {"on", "yes", "true", "y"}


def _panic_action(given: str | None, *, no_shutdown: bool) -> PanicOption | None:
    """Return what a panic does, from ``-action panic=`` and the effect of -no-shutdown on it."""
    if no_shutdown and given in {None, "shutdown"}:
        return "pause"
    return next((option for option in PANIC_OPTIONS if option == given), None)
