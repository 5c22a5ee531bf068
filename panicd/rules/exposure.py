"""Why panicd could not act on a domain as configured if it panicked now, and the remedies."""

import glob
import json
import re
from collections.abc import Iterator
from enum import StrEnum
from shlex import quote
from typing import Final

from panicd.rules.capability import Armed, Capability, has_isa
from panicd.rules.command_line import GivenMonitor
from panicd.rules.on_crash import Action
from panicd.rules.panic_device import PanicDevice
from panicd.rules.policy import Decision, Reason
from panicd.rules.settings import Policy


class Exposure(StrEnum):
    """One reason why panicd would miss a panic, or could not obey the policy."""

    NO_MONITOR = "no-monitor"  # panicd is not connected to it
    SILENT = "silent"  # QEMU does not answer
    NO_DEVICE = "no-device"  # the guest can't report a panic
    BUILTIN_DEVICE = "builtin-device"  # 'unrequested' applies: nobody asked for the device
    FIRMWARE = "firmware"  # QEMU's own firmware does not tell the guest of the device
    NOT_ARMED = "not-armed"  # QEMU exits on a panic, or may
    IRREVERSIBLE = "irreversible"  # on_crash is ignore, and this QEMU can't resume the guest
    RESET_IMPOSSIBLE = "reset-impossible"  # on_crash is restart, and this QEMU can't reset
    BUDGET_SPENT = "budget-spent"  # on_crash is restart, and there were too many restarts
    LIBVIRT = "libvirt"  # libvirt acts on a panic by itself, before panicd can
    NO_DUMP_SPACE = "no-dump-space"  # a dump is configured, and there is no room for it
    NO_SIGNAL = "no-signal"  # panicd is to end QEMU, and could not if QEMU hung
    HELD = "held"  # an operator suspended automation
    NO_VMCOREINFO = "no-vmcoreinfo"  # the kernel's log can't be read
    PLUGGED = "plugged"  # its panic device was plugged in while it ran, and ends with this start


_REMEDIES: Final[dict[Exposure, str]] = {
    Exposure.NO_MONITOR: "`panicd status` says why there is no connection; a monitor takes one "
    "client, so panicd needs one of its own (`panicd qemu-args`)",
    Exposure.SILENT: "QEMU is stopped or hangs (mostly in storage), and would not report a "
    "panic: see `ps -o stat,wchan PID`",
    Exposure.NO_DEVICE: "add -device pvpanic (or pvpanic-pci): without one the guest can't report "
    "a panic",
    Exposure.BUILTIN_DEVICE: "on_crash does not apply, as nobody asked for this device: add "
    "-device pvpanic, or set panic_notifier: any; to remove the device see "
    "`panicd qemu-args --no-notifier`",
    Exposure.FIRMWARE: "use QEMU 1.6 or later: the firmware of 1.5 does not tell the guest of "
    "pvpanic (ACPI), so a Linux guest's driver does not find it, and panicd sees no panic",
    Exposure.NOT_ARMED: "let panicd read QEMU's command line, to see whether -no-shutdown is "
    "there: without it this QEMU exits on a panic",
    Exposure.IRREVERSIBLE: "choose another on_crash than ignore, or QEMU 1.7 or later; until then "
    "the fallback applies",
    Exposure.RESET_IMPOSSIBLE: "remove -no-reboot, or configure relaunch: restart can't be obeyed",
    Exposure.BUDGET_SPENT: "find out why the guest panics; restart.then applies until the oldest "
    "restarts are out of restart.window",
    Exposure.LIBVIRT: "let libvirt preserve it, or it acts before panicd can: libvirt.take_over "
    "does that, and so does virsh set-lifecycle-action DOMAIN crash preserve",
    Exposure.NO_DUMP_SPACE: "free more than coredump.min_free in coredump.directory, and let "
    "panicd write there",
    Exposure.NO_SIGNAL: "let panicd see and signal the process that holds the monitor: no proxy in "
    "between, and CAP_KILL; `panicd explain` says what is missing",
    Exposure.NO_VMCOREINFO: "add -device vmcoreinfo, so that panicd can read the kernel's log",
    Exposure.PLUGGED: "give the VM a panic device in its own configuration, for its next start; "
    "`panicd disarm` it before you migrate or save it, as neither works with the device of "
    "`panicd arm`",
    Exposure.HELD: "end the hold when the work is done (`panicd unhold`)",
}

_BY_LIBVIRT: Final[dict[Exposure, str]] = {
    Exposure.NO_MONITOR: "libvirt does not give panicd access to it: see `panicd status` for why",
    Exposure.SILENT: "QEMU hangs (mostly in storage), and would not report a panic: see "
    "`virsh domcontrol {name}`",
    Exposure.NO_DEVICE: "`virt-xml {name} --add-device --panic default`, and stop and start it: "
    "without a panic device the guest can't report a panic; until then, `panicd arm {name}`",
    Exposure.PLUGGED: "`virt-xml {name} --add-device --panic default`, for its next start; "
    "`panicd disarm {name}` before you migrate or save it, as neither works with the device of "
    "`panicd arm`",
    Exposure.NO_VMCOREINFO: "`virt-xml {name} --edit --features vmcoreinfo.state=on`, and stop and "
    "start it: without it the kernel's log of a Linux guest can't be found in its memory",
    Exposure.RESET_IMPOSSIBLE: "`virt-xml {name} --edit --events on_reboot=restart`, and stop and "
    "start it; or configure relaunch: libvirt ends it instead of resetting it",
    Exposure.LIBVIRT: "let libvirt preserve it, or it acts before panicd can: libvirt.take_over "
    "does that, and so does `virsh set-lifecycle-action {name} crash preserve`",
}
"""For a domain that only libvirt can reach. The options are those of virt-xml 4.1."""

_PLAIN: Final = re.compile(r"/[\w./@+-]*", re.ASCII)
"""What YAML takes for a string as it is, and a pattern for itself."""

NOT_ARMED: Final = "add -no-shutdown: without it this QEMU exits on a panic"


def exposures_unwatched(
    name: str, monitor: GivenMonitor | None, *, by_libvirt: bool, hangs: bool = False
) -> dict[Exposure, str]:
    """Return why panicd could not act on a QEMU that it does not watch, and what to do.

    Args:
        name: the VM's name; empty where it has none.
        monitor: its QMP monitor; None where it has none.
        by_libvirt: libvirt started it.
        hangs: whoever reads what it was started with hangs, so all else is unknown.
    """
    if hangs:
        remedy = (
            "/proc/PID/cmdline is read without end, and so `ps ax` hangs at it: its storage hangs, "
            "or its user keeps its memory locked; end it, or look again later"
        )
    elif by_libvirt:
        remedy = "libvirt runs it: set `libvirt: {uri: …}` to its URI (`virsh uri`), and reload"
    elif monitor is not None:
        remedy = f"add `{_entry(monitor)}` to `monitors` in the configuration, and `panicd reload`"
    else:
        remedy = (
            "it has no QMP monitor that panicd can reach: start it anew with what "
            f"`panicd qemu-args --name {quote(name or 'NAME')}` prints"
        )
    return {Exposure.NO_MONITOR: remedy}


def _entry(monitor: GivenMonitor) -> str:
    """Return a monitor's entry in the configuration, as YAML."""
    path = glob.escape(monitor.path) if monitor.listens else monitor.path
    value = path if _PLAIN.fullmatch(path) else json.dumps(path, ensure_ascii=False)
    return f"- {'glob' if monitor.listens else 'listen'}: {value}"


def _remedy(
    exposure: Exposure, capability: Capability | None, decision: Decision | None, name: str
) -> str:
    if capability is not None and capability.by_api and exposure in _BY_LIBVIRT:
        return _BY_LIBVIRT[exposure].format(name=quote(name))
    text = _REMEDIES[exposure]
    known_unarmed = capability is not None and capability.armed is Armed.NO
    if exposure is Exposure.NOT_ARMED and known_unarmed:
        return NOT_ARMED
    if exposure is Exposure.IRREVERSIBLE and decision is not None and decision.unrequested:
        return text.replace("on_crash", "unrequested")
    if exposure is Exposure.NO_DEVICE and capability and not has_isa(capability.machine):
        return text.replace("pvpanic (or pvpanic-pci)", "pvpanic-pci")
    return text


_OF_REASON: Final = {
    Reason.IRREVERSIBLE: Exposure.IRREVERSIBLE,
    Reason.RESET_IMPOSSIBLE: Exposure.RESET_IMPOSSIBLE,
    Reason.BUDGET_SPENT: Exposure.BUDGET_SPENT,
    Reason.CRASH_LOOP: Exposure.BUDGET_SPENT,
    Reason.UNREQUESTED_DEVICE: Exposure.BUILTIN_DEVICE,
}


def exposures(
    policy: Policy | None,
    capability: Capability | None,
    decision: Decision | None,
    *,
    silent: bool = False,
    held: bool = False,
    dump_space: bool = True,
    may_signal: bool = True,
    name: str = "",
) -> dict[Exposure, str]:
    """Return why panicd could not act on a domain, each with a remedy; empty where it could.

    Args:
        policy: the domain's configuration; None while panicd is not connected.
        capability: what its QEMU can do; None while panicd is not connected.
        decision: the decision if it panicked now, whether it is held or not.
        silent: its QEMU does not answer.
        held: an operator suspended automation.
        dump_space: there is room for a dump, and panicd may write it.
        may_signal: panicd knows its process, and may end it by a signal.
        name: libvirt's name for the domain, if libvirt runs it.
    """
    found = list(_exposures(policy, capability, decision, silent=silent, dump_space=dump_space))
    if policy is not None and decision is not None and not may_signal and _ends(policy, decision):
        found.append(Exposure.NO_SIGNAL)
    if held:
        found.append(Exposure.HELD)
    return {exposure: _remedy(exposure, capability, decision, name) for exposure in found}


def _ends(policy: Policy, decision: Decision) -> bool:
    """Tell whether the decision, or the policy's fallback, ends QEMU."""
    to_end = decision.action is Action.DESTROY or decision.relaunch
    return to_end or policy.fallback is Action.DESTROY


def _exposures(
    policy: Policy | None,
    capability: Capability | None,
    decision: Decision | None,
    *,
    silent: bool,
    dump_space: bool,
) -> Iterator[Exposure]:
    if silent:
        yield Exposure.SILENT
    elif policy is None or capability is None or decision is None:
        yield Exposure.NO_MONITOR
    if policy is not None and capability is not None and decision is not None:
        if capability.panic_device is PanicDevice.NONE:
            yield Exposure.NO_DEVICE
        if capability.plugged:
            yield Exposure.PLUGGED
        if capability.firmware_hides_device:
            yield Exposure.FIRMWARE
        if capability.by_api and policy.evidence is not None and capability.libvirt is not None:
            has_device = capability.panic_device is not PanicDevice.NONE
            if has_device and not capability.libvirt.has_vmcoreinfo:
                yield Exposure.NO_VMCOREINFO
        if capability.armed is not Armed.YES:
            yield Exposure.NOT_ARMED
        if capability.libvirt_forestalls(decision.wanted):
            yield Exposure.LIBVIRT
        on_purpose = capability.panic_device is PanicDevice.NEUTRALISED
        if decision.reason in _OF_REASON and not on_purpose:
            yield _OF_REASON[decision.reason]
        if (decision.coredump or policy.on_crash.coredump) and not dump_space:
            yield Exposure.NO_DUMP_SPACE
