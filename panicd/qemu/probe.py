"""The first questions to a newly connected monitor, in one round trip, and what the answers mean.

The first command arms the domain: from QEMU 6.0 on, ``set-action panic=pause`` makes QEMU leave a
panic to panicd. ``query-status`` follows on the same connection, and QEMU answers in order, so no
panic slips between the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Final

import trio

from panicd.qemu.limits import after
from panicd.qemu.monitor import AT_ONCE, Command, Monitor, MonitorError
from panicd.rules.capability import (
    BUILTIN_UNTIL,
    DUMP_FORMATS_SINCE,
    SET_ACTION_SINCE,
    TDX,
    TDX_SINCE,
    Capability,
    PanicSetting,
    Version,
    is_backport,
    is_neutral,
    platform_notifier,
)
from panicd.rules.command_line import HYPERV_CRASH, PANIC_DEVICE_TYPES, CommandLine
from panicd.rules.identity import parse_uuid
from panicd.rules.panic_device import PanicDevice
from panicd.rules.plugging import DEVICE_ID
from panicd.rules.qapi import MAX_TEXT, RunState
from panicd.rules.settings import DumpFormat

KINDS: Final = 16
"""How many kinds of QEMU are remembered."""
REMEMBERED: Final = 1 << 14
"""Characters of answers, at most, that are remembered."""

VMCOREINFO: Final = "vmcoreinfo"
"""The QOM type of the device through which a kernel leaves a note on itself. It can't be plugged
in while the VM runs."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a monitor's answers say about its VM.

    Attributes:
        name: from ``query-name``, empty where the VM has none.
        uuid: from ``query-uuid``, empty where the VM has none.
        run_state: from ``query-status``, asked after arming.
        capability: what this QEMU can do.
    """

    name: str
    uuid: str
    run_state: RunState
    capability: Capability


async def probe(
    monitor: Monitor, command_line: CommandLine | None, *, timeout: float, arm: bool = True
) -> Probe:
    """Arm a VM and ask the first questions.

    Args:
        monitor: a fresh session.
        command_line: of the process at the other end, None where it can't be read.
        timeout: seconds for all the answers.
        arm: False leaves the VM as it is.

    Raises:
        MonitorError: QEMU did not answer ``query-status``; the monitor is of no use.
    """
    hyperv = command_line is not None and HYPERV_CRASH in command_line.panic_devices
    names, questions = _questions(monitor.version, arm=arm, hyperv=hyperv)
    answers = dict(zip(names, await _ask(monitor, questions, timeout), strict=True))
    status, name, uuid = answers.pop("status"), answers.pop("name"), answers.pop("uuid")
    if isinstance(status, MonitorError):
        raise status
    capability = _known.of(monitor, answers, command_line)
    if capability.panic_device is PanicDevice.BUILTIN:
        ports = await _builtin_ports(monitor, answers["unattached"], timeout)
        if ports and all(is_neutral(port, capability.version) for port in ports):
            capability = replace(capability, panic_device=PanicDevice.NEUTRALISED)
    return Probe(
        name=_member(name, "name"),
        uuid=parse_uuid(_member(uuid, "UUID")),
        run_state=RunState.parse(_member(status, "status")),
        capability=capability,
    )


@lru_cache(KINDS)
def _questions(
    version: Version, *, arm: bool, hyperv: bool
) -> tuple[tuple[str, ...], tuple[Command, ...]]:
    """Return names for the first questions, and the questions."""
    questions: dict[str, Command] = {}
    if arm and version >= SET_ACTION_SINCE:
        questions["armed"] = ("set-action", {"panic": PanicSetting.PAUSE.value})
    questions["status"] = ("query-status", {})
    questions["name"] = ("query-name", {})
    questions["uuid"] = ("query-uuid", {})
    questions["peripheral"] = ("qom-list", {"path": "/machine/peripheral"})
    questions["anonymous"] = ("qom-list", {"path": "/machine/peripheral-anon"})
    questions["machine"] = ("qom-get", {"path": "/machine", "property": "type"})
    if hyperv:
        questions["kvm"] = ("query-kvm", {})
    if version >= TDX_SINCE:
        questions["objects"] = ("qom-list", {"path": "/objects"})
    if version < BUILTIN_UNTIL:
        questions["unattached"] = ("qom-list", {"path": "/machine/unattached"})
    if version >= DUMP_FORMATS_SINCE:
        questions["formats"] = ("query-dump-guest-memory-capability", {})
    return tuple(questions), tuple(questions.values())


async def _ask(monitor: Monitor, questions: Sequence[Command], timeout: float) -> list[object]:
    """Ask, as ``execute_all`` does, and have the time limit kept with those of other monitors."""
    over, answers = trio.Event(), list[object]()

    def done(given: list[object]) -> None:
        answers.extend(given)
        over.set()

    question = monitor.ask(questions, done, timeout=timeout)
    limit = after(timeout, question.give_up)
    try:
        await over.wait()
    finally:
        limit.cancel()
        question.give_up()
    return answers


async def _builtin_ports(monitor: Monitor, unattached: object, timeout: float) -> list[int]:
    """Ask for the I/O ports of the panic devices that a machine has built in."""
    questions: list[Command] = [
        ("qom-get", {"path": f"/machine/unattached/{name}", "property": "ioport"})
        for name in pvpanics_in(unattached)[:AT_ONCE]  # a real one has one
    ]
    answers = await monitor.execute_all(questions, timeout=timeout)
    return [port for port in answers if isinstance(port, int)]


def pvpanics_in(listed: object) -> list[str]:
    """Return the names of the pvpanics on the ISA bus in a ``qom-list`` answer."""
    entries = listed if isinstance(listed, list) else []
    return [
        _member(entry, "name") for entry in entries if _member(entry, "type") == "child<pvpanic>"
    ]


class _Known:
    """The latest capabilities, by the answers that led to them: most VMs of a host are alike.

    They go by what ``repr`` says of the answers: ``==`` takes 0 for false, and so would let one VM
    choose what another one can do.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[object, ...], Capability] = {}

    def of(
        self, monitor: Monitor, answers: dict[str, object], command_line: CommandLine | None
    ) -> Capability:
        """Return the capability that answers mean."""
        text = repr(answers)
        said = (monitor.version, monitor.package, command_line, text)
        capability = self._latest.get(said)
        if capability is None:
            capability = _capability(monitor, answers, command_line)
            if len(text) <= REMEMBERED:
                self._latest[said] = capability
                if len(self._latest) > KINDS:
                    del self._latest[next(iter(self._latest))]
        return capability


_known: Final = _Known()


def _capability(
    monitor: Monitor, answers: dict[str, object], command_line: CommandLine | None
) -> Capability:
    requested = _device_types(answers["peripheral"]) + _device_types(answers["anonymous"])
    # Without KVM QEMU accepts hv-crash silently, though the guest does not get it.
    kvm = answers.get("kvm")
    without_kvm = isinstance(kvm, dict) and kvm.get("enabled") is False
    if command_line and HYPERV_CRASH in command_line.panic_devices and not without_kvm:
        requested += (HYPERV_CRASH,)
    machine = _text(answers["machine"])
    platform = tuple(filter(None, [platform_notifier(machine)]))
    platform += tuple(kind for kind in _types(answers.get("objects")) if kind == TDX)
    builtin = _device_types(answers.get("unattached"))
    sources = {
        PanicDevice.REQUESTED: requested,
        PanicDevice.PLATFORM: platform,
        PanicDevice.BUILTIN: builtin,
    }
    source = next((source for source, types in sources.items() if types), PanicDevice.NONE)
    armed = "armed" in answers and not isinstance(answers["armed"], MonitorError)
    return Capability(
        version=monitor.version,
        panic_device=source,
        device_types=requested + platform or builtin,
        machine=machine,
        backport=is_backport(monitor.package),
        panic_setting=PanicSetting.PAUSE if armed else None,
        no_shutdown=command_line.no_shutdown if command_line else None,
        reboot_is_shutdown=command_line.reboot_is_shutdown if command_line else None,
        dump_formats=_dump_formats(answers.get("formats")),
        plugged=DEVICE_ID in _names(answers["peripheral"]),
        has_vmcoreinfo=_has_vmcoreinfo([answers["peripheral"], answers["anonymous"]]),
    )


def _has_vmcoreinfo(listed: list[object]) -> bool | None:
    if VMCOREINFO in chain.from_iterable(map(_types, listed)):
        return True
    return False if all(isinstance(answer, list) for answer in listed) else None


def _member(answer: object, key: str) -> str:
    return _text(answer.get(key) if isinstance(answer, dict) else None)


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _device_types(answer: object) -> tuple[str, ...]:
    return tuple(kind for kind in _types(answer) if kind in PANIC_DEVICE_TYPES)


def _types(answer: object) -> Iterator[str]:
    """Yield the types in a ``qom-list`` answer, where they read ``child<TYPE>``."""
    entries = answer if isinstance(answer, list) else []
    return (_member(entry, "type").removeprefix("child<").removesuffix(">") for entry in entries)


def _names(answer: object) -> Iterator[str]:
    """Yield the names in a ``qom-list`` answer."""
    return (_member(entry, "name") for entry in (answer if isinstance(answer, list) else []))


def _dump_formats(answer: object) -> tuple[DumpFormat, ...]:
    formats = answer.get("formats") if isinstance(answer, dict) else None
    offered = formats if isinstance(formats, list) else []
    return tuple(known for known in DumpFormat if known in offered) or (DumpFormat.ELF,)
