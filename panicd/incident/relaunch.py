"""Starts a VM again, by the command, the systemd unit or the libvirt that is configured for it.

A unit is started over D-Bus. The QEMU that the unit ran has ended by then, and systemd takes in the
end of a process before it takes a request, so its start is never met by a unit that seems to run.
"""

import os
import subprocess
import tempfile
from typing import Final

import trio

from panicd.host.systemd import SystemdError, start_unit
from panicd.libvirt.known_domains import names_monitor
from panicd.libvirt.virsh import LibvirtError, LibvirtSilentError, virsh
from panicd.rules.incident import Incident, Outcome, StepResult
from panicd.rules.libvirt import monitors_of
from panicd.rules.plan import RunRelaunch
from panicd.rules.unit_name import UnitNameError, unit_name

OFF: Final = "shut off"  # virsh domstate, of a domain that can be started
LOOK_EVERY: Final = 0.2  # seconds between two looks whether libvirt has taken in a domain's end
ANSWERS_WITHIN: Final = 5.0  # seconds for libvirt to say how a domain stands
OUTPUT_KEPT: Final = 1024  # bytes of the command's output that are kept where it fails


def relaunch_environment(incident: Incident) -> dict[str, str]:
    """Return what a relaunch command is told about an incident."""
    return {
        "PANICD_DOMAIN": incident.opened.domain,
        "PANICD_UUID": incident.opened.uuid,
        "PANICD_MONITOR": incident.opened.monitor,
        "PANICD_INCIDENT": incident.id,
    }


async def run_relaunch(step: RunRelaunch, environment: dict[str, str]) -> StepResult:
    """Start a VM and say how that went.

    Args:
        step: how, and its time limit in seconds.
        environment: which VM; the command is told, beside panicd's own environment.
    """
    if step.unit:
        return await _start_unit(step, environment)
    if step.libvirt_uri:
        monitor = environment.get("PANICD_MONITOR", "")
        return await _start_domain(step, environment.get("PANICD_UUID", ""), monitor)
    command = list(step.command)
    # A file and not a pipe: a QEMU that the command leaves behind inherits it.
    with tempfile.TemporaryFile() as output:
        try:
            with trio.fail_after(step.timeout):
                finished = await trio.run_process(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
        except trio.TooSlowError:
            return StepResult(Outcome.FAILED, f"{command[0]}: ran {step.timeout:g} s")
        except (OSError, ValueError) as error:  # ValueError: a name that no environment can hold
            return StepResult(Outcome.FAILED, str(error))
        if finished.returncode == 0:
            return StepResult(Outcome.DONE)
        output.seek(0)
        said = output.read(OUTPUT_KEPT).decode(errors="replace")
        detail = f"{command[0]}: exit status {finished.returncode}: {said}"
        return StepResult(Outcome.FAILED, detail)


async def _start_unit(step: RunRelaunch, environment: dict[str, str]) -> StepResult:
    domain, uuid = environment["PANICD_DOMAIN"], environment.get("PANICD_UUID", "")
    try:
        await start_unit(unit_name(step.unit, domain, uuid), step.timeout)
    except (UnitNameError, SystemdError) as error:
        return StepResult(Outcome.FAILED, str(error))
    return StepResult(Outcome.DONE)


async def _start_domain(step: RunRelaunch, uuid: str, monitor: str) -> StepResult:
    """Start the domain whose own XML names the monitor; its QEMU could claim any UUID."""
    uri, state = step.libvirt_uri, ""
    try:
        with trio.fail_after(step.timeout):
            # libvirt takes in the end of a QEMU in its own time, and refuses to start it before.
            while True:
                state = await _state(uri, uuid)
                if state == OFF:
                    break
                await trio.sleep(LOOK_EVERY)
            its = monitors_of(await virsh(uri, ["dumpxml", uuid], step.timeout))
            if not names_monitor(its, monitor):
                detail = f"the XML of libvirt's domain {uuid} does not name the monitor {monitor}"
                return StepResult(Outcome.FAILED, detail)
            await virsh(uri, ["start", uuid], step.timeout)
    except trio.TooSlowError:
        return StepResult(Outcome.FAILED, f"not started in {step.timeout:g} s: it was '{state}'")
    except LibvirtError as error:
        return StepResult(Outcome.FAILED, f"virsh: {error}")
    return StepResult(Outcome.DONE)


async def _state(uri: str, uuid: str) -> str:
    try:
        return (await virsh(uri, ["domstate", uuid], ANSWERS_WITHIN)).strip()
    except LibvirtSilentError as error:
        return str(error)
