"""``panicd probe``: what one VM can do, asked directly and without changing anything."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import trio

from panicd.cli import render
from panicd.cli.base import Context, fail, fails_on_findings, json_option, note_findings
from panicd.cli.configured import load
from panicd.config.config import Config
from panicd.fleet.connector import GREETING_TIMEOUT, connect
from panicd.fleet.snapshot import foresee
from panicd.incident.records import plan_view
from panicd.libvirt.known_domains import Libvirt
from panicd.libvirt.own_monitor import leave_libvirts_own
from panicd.qemu.monitor import Monitor, MonitorError, SilentError, event_loop, open_monitor
from panicd.qemu.probe import Probe, probe, pvpanics_in
from panicd.qemu.process import Peer
from panicd.qemu.session import ANSWER_TIMEOUT
from panicd.qemu.socket_table import SocketTable
from panicd.rules.capability import (
    NEUTRAL_PORT,
    UNREQUESTED,
    Armed,
    Capability,
    PanicSetting,
    run_by_libvirt,
)
from panicd.rules.command_line import parse_command_line
from panicd.rules.exposure import exposures
from panicd.rules.io_ports import devices_on
from panicd.rules.libvirt import inherit
from panicd.rules.on_crash import OnCrash
from panicd.rules.policy import Reason, panic_setting
from panicd.rules.settings import PanicNotifier, Policy


class UnreachableMonitorError(Exception):
    """panicd could not ask the monitor; the message says why."""


BUILTIN_PLACE: Final = "/machine/unattached"
PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon", BUILTIN_PLACE)
MOVE: Final = (
    "move the panic device from port {port:#x}, which {names} uses too: what the guest writes "
    "there raises false panics (ioport=0x505 is free; to remove the device see "
    "panicd qemu-args --no-notifier)"
)
LEFT_OPEN: Final = (
    "nothing, if the guest shall report no panic: the builtin device is on port {port:#x}. "
    "{names} uses that port too, so a guest that writes 1 there raises a false panic, to "
    "which 'unrequested' applies"
)

ARMED_BECAUSE: Final = {
    Armed.YES: "QEMU leaves a panic to panicd",
    Armed.NO: "this QEMU exits on a panic, and nothing is left to act on",
    Armed.UNKNOWN: "panicd can't read QEMU's command line, so it can't tell whether QEMU exits on "
    "a panic",
}


@click.command("probe")
@fails_on_findings
@click.argument("socket_path", metavar="SOCKET", type=click.Path(path_type=Path))
@json_option
def probe_command(context: Context, socket_path: Path) -> tuple[object, Callable[[], None]]:
    """Ask a VM at its monitor what it can do, and change nothing.

    Exit status 1 if its policy could not be obeyed. QEMU serves one client on each monitor, so a
    monitor that the daemon is connected to does not answer here: use `panicd explain` instead.
    """
    try:
        answer = probe_socket(socket_path, load(context.config_file))
    except UnreachableMonitorError as error:
        fail(str(error))
    note_findings(answer["exposed"])
    return answer, lambda: render.probe(answer)


def probe_socket(path: Path, config: Config) -> dict[str, object]:
    """Return what a VM can do, and what its panic would lead to under each policy.

    Raises:
        UnreachableMonitorError: its monitor does not answer.
    """
    return trio.run(_ask, path, config)


async def _ask(path: Path, config: Config) -> dict[str, object]:
    libvirt = Libvirt(lambda: config.libvirt, dry_run=True)
    async with event_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(libvirt.run)
        answers = await _answers(path, libvirt)
        nursery.cancel_scope.cancel()
    if isinstance(answers, str):
        raise UnreachableMonitorError(f"{path}: {answers}")
    found, conflicts = answers
    known = libvirt.known(str(path))
    handling = known.handling if known else ""
    if known and config.libvirt and config.libvirt.take_over:
        known = known.taken_over()
    found = replace(found, capability=run_by_libvirt(found.capability, known))
    policy = config.policy_for(found.name or path.stem, found.uuid or None)
    told = {"libvirt": handling, "libvirt_problem": libvirt.problem}
    return _view(found, inherit(policy, known), conflicts) | told


async def _answers(path: Path, libvirt: Libvirt) -> tuple[Probe, list[str]] | str:
    """Return the monitor's answers and the problems of its ports, or why there are none."""
    try:
        sock = await connect(path)
        with closing(sock), Peer.of(sock) as peer:
            await peer.learn_command_line()
            leave_libvirts_own(path, peer.command_line() or ())
            async with open_monitor(sock, timeout=GREETING_TIMEOUT) as monitor:
                peer.confirm(monitor.answered_by)
                arguments = peer.command_line() if peer.is_qemu() else None
                command_line = parse_command_line(arguments) if arguments else None
                found = await probe(monitor, command_line, timeout=ANSWER_TIMEOUT, arm=False)
                process = str(peer.identity) if peer.is_qemu() else ""
                await libvirt.learn(found.uuid, str(path), process)
                return found, await _port_conflicts(monitor)
    except SilentError as error:
        why, _ = await SocketTable().why_silent(str(path), str(error), greeted=error.greeted)
        return why
    except MonitorError as error:
        return str(error)
    except BlockingIOError as error:
        why, _ = await SocketTable().why_silent(str(path), str(error.strerror))
        return why
    except OSError as error:
        return error.strerror or str(error)


async def _port_conflicts(monitor: Monitor) -> list[str]:
    """Return a remedy for each pvpanic on a port that other devices use.

    Raises:
        MonitorError: QEMU does not answer.
    """
    found = [(place, port) for place in PLACES for port in await _pvpanic_ports(monitor, place)]
    if not found:
        return []
    question = {"command-line": "info mtree"}
    mtree = await monitor.execute("human-monitor-command", question, timeout=ANSWER_TIMEOUT)
    if not isinstance(mtree, str):
        return []
    return [
        (LEFT_OPEN if (place, port) == (BUILTIN_PLACE, NEUTRAL_PORT) else MOVE).format(
            port=port, names=", ".join(names)
        )
        for place, port in found
        if (names := sorted(set(devices_on(mtree, port)) - {"pvpanic"}))
    ]


async def _pvpanic_ports(monitor: Monitor, place: str) -> list[int]:
    """Return the I/O ports of the pvpanics on the ISA bus in a place of the QOM tree."""
    listed = await monitor.execute("qom-list", {"path": place}, timeout=ANSWER_TIMEOUT)
    questions = [{"path": f"{place}/{name}", "property": "ioport"} for name in pvpanics_in(listed)]
    answers = [await monitor.execute("qom-get", q, timeout=ANSWER_TIMEOUT) for q in questions]
    return [port for port in answers if isinstance(port, int)]


def _view(answers: Probe, policy: Policy, conflicts: list[str]) -> dict[str, object]:
    capability = answers.capability
    policies = []
    for (
        on_crash
    ) in OnCrash:  # what each does if it applies, whether the device was asked for or not
        wanted = replace(policy, on_crash=on_crash, panic_notifier=PanicNotifier.ANY, grace=0.0)
        setting = panic_setting(wanted, capability, None)
        armed = replace(capability, panic_setting=setting if capability.can_set_action else None)
        policies.append(plan_view(foresee(wanted, armed, now=0.0)))
    will_be_armed = Armed.YES if capability.can_set_action else capability.armed
    connected = replace(
        capability, panic_setting=PanicSetting.PAUSE if capability.can_set_action else None
    )
    in_the_end = foresee(policy, connected, own_time=Reason.GRACE_OVER, now=0.0).decision
    reasons = exposures(policy, connected, in_the_end)
    return {
        "name": answers.name,
        "uuid": answers.uuid,
        "qemu_version": capability.version_text,
        "run_state": answers.run_state,
        "panic_device": capability.panic_device,
        "device_types": list(capability.device_types),
        "armed": will_be_armed,
        "why": "panicd arms it when it connects"
        if capability.can_set_action
        else ARMED_BECAUSE[will_be_armed],
        "libvirt_acts": capability.libvirt_acts,
        "on_crash": policy.on_crash,
        "policies": policies,
        "on_crash_applies": capability.panic_device not in UNREQUESTED
        or policy.panic_notifier is PanicNotifier.ANY,
        "unrequested": policy.unrequested,
        "configured": plan_view(foresee(policy, connected, now=0.0)),
        "exposed": dict(reasons),
        "remedies": [*reasons.values(), *conflicts, *_warnings(capability)],
    }


def _warnings(capability: Capability) -> list[str]:
    """Return what would be wrong under other policies than the configured one."""
    if capability.reboot_is_shutdown:
        return ["remove -no-reboot, or configure relaunch: restart can't be obeyed"]
    return []
