"""``panicd probe``: what one VM can do, asked directly and without changing anything."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from panicd.api import plan_view
from panicd.connector import GREETING_TIMEOUT, connect
from panicd.host.config import Config
from panicd.libvirt import Libvirt
from panicd.qemu.monitor import MonitorError, event_loop, open_monitor
from panicd.qemu.probe import Probe, probe
from panicd.qemu.process import Peer
from panicd.qemu.session import ANSWER_TIMEOUT
from panicd.rules.capability import (
    Armed,
    Capability,
    PanicDevice,
    PanicSetting,
    run_by_libvirt,
)
from panicd.rules.command_line import parse_command_line
from panicd.rules.libvirt import inherit
from panicd.rules.on_crash import OnCrash
from panicd.rules.settings import Policy
from panicd.snapshot import foresee


class UnreachableMonitorError(Exception):
    """The monitor could not be asked; the message says why."""


ARMED_BECAUSE: Final = {
    Armed.YES: "a panic is left to panicd",
    Armed.NO: "this QEMU exits on a panic, and nothing is left to act on",
    Armed.UNKNOWN: "whether this QEMU exits on a panic can't be told: its command line is not "
    "readable",
}


def probe_socket(path: Path, config: Config) -> dict[str, object]:
    """Return what a VM can do, and what its panic would lead to under each policy.

    Raises:
        UnreachableMonitorError: its monitor does not answer.
    """
    return trio.run(_ask, path, config)


async def _ask(path: Path, config: Config) -> dict[str, object]:
    libvirt = Libvirt(lambda: config.libvirt, dry_run=True)
    async with event_loop():
        answers = await _answers(path, libvirt)
    if isinstance(answers, str):
        raise UnreachableMonitorError(f"{path}: {answers}")
    known = libvirt.known(answers.uuid)
    handling = known.handling if known else ""
    if known and config.libvirt and config.libvirt.take_over:
        known = known.taken_over()
    answers = replace(answers, capability=run_by_libvirt(answers.capability, known))
    policy = config.policy_for(answers.name or path.stem, answers.uuid or None)
    told = {"libvirt": handling, "libvirt_problem": libvirt.problem}
    return _view(answers, inherit(policy, known)) | told


async def _answers(path: Path, libvirt: Libvirt) -> Probe | str:
    """Return the monitor's answers, or why there are none."""
    try:
        sock = await connect(path)
        with closing(sock), Peer.of(sock) as peer:
            async with open_monitor(sock, timeout=GREETING_TIMEOUT) as monitor:
                arguments = peer.command_line() if peer.is_qemu() else None
                command_line = parse_command_line(arguments) if arguments else None
                answers = await probe(monitor, command_line, timeout=ANSWER_TIMEOUT, arm=False)
                await libvirt.learn(answers.uuid, str(path))
                return answers
    except MonitorError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _view(answers: Probe, policy: Policy) -> dict[str, object]:
    capability = answers.capability
    policies = []
    for on_crash in OnCrash:
        wanted = replace(policy, on_crash=on_crash)
        runs_on = on_crash is OnCrash.IGNORE and capability.libvirt is None
        setting = PanicSetting.NONE if runs_on else PanicSetting.PAUSE
        armed = replace(capability, panic_setting=setting if capability.can_set_action else None)
        policies.append(plan_view(foresee(wanted, armed, now=0.0)))
    will_be_armed = Armed.YES if capability.can_set_action else capability.armed
    return {
        "name": answers.name,
        "uuid": answers.uuid,
        "qemu_version": ".".join(map(str, capability.version)),
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
        "remedies": list(_remedies(capability, will_be_armed)),
    }


def _remedies(capability: Capability, armed: Armed) -> list[str]:
    remedies = []
    if capability.panic_device is PanicDevice.NONE:
        remedies.append("add -device pvpanic (or pvpanic-pci), or the guest can't report a panic")
    if armed is not Armed.YES:
        remedies.append("add -no-shutdown, or this QEMU exits on a panic")
    if capability.libvirt_acts:
        remedies.append(
            "have libvirt preserve it, or it acts before panicd can: libvirt.take_over does that, "
            "and so does virsh set-lifecycle-action DOMAIN crash preserve"
        )
    if capability.reboot_is_shutdown:
        remedies.append("drop -no-reboot, or configure relaunch, or restart can't be obeyed")
    return remedies
