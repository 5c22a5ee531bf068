"""Starts a VM again, by its configured command, systemd unit or libvirt.

panicd starts a unit over D-Bus. The unit's QEMU has ended by then. systemd notices a process's end
before it takes a request, so the unit never seems to run still.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Final

import trio

from panicd.host.systemd import SystemdError, start_unit
from panicd.libvirt import requests
from panicd.libvirt.beside import names_monitor
from panicd.libvirt.client import Client
from panicd.libvirt.domain_process import DomainProcess
from panicd.libvirt.errors import LibvirtError
from panicd.libvirt.once import connected
from panicd.libvirt.protocol import DomainRef, State
from panicd.qemu.process_identity import ProcessIdentity
from panicd.qemu.threads import needing_a_thread
from panicd.rules.incident import Incident, Outcome, StepResult
from panicd.rules.libvirt import address_of, monitors_of
from panicd.rules.plan import RunRelaunch
from panicd.rules.unit_name import UnitNameError, unit_name

LOOK_EVERY: Final = 0.2  # seconds between two checks whether libvirt knows of a domain's end
ANSWERS_WITHIN: Final = 5.0  # seconds for libvirt to say how a domain stands
OUTPUT_KEPT: Final = 1024  # bytes of a failed command's output that are kept


def relaunch_environment(incident: Incident) -> dict[str, str]:
    """Return the environment that tells a relaunch command about an incident."""
    return {
        "PANICD_DOMAIN": incident.opened.domain,
        "PANICD_UUID": incident.opened.uuid,
        "PANICD_MONITOR": incident.opened.monitor,
        "PANICD_INCIDENT": incident.id,
    }


async def run_relaunch(
    step: RunRelaunch, environment: dict[str, str], process: str = ""
) -> StepResult:
    """Start a VM and return the result.

    Args:
        step: the way to start it, and its time limit in seconds.
        environment: names the VM; the command gets it with panicd's own environment.
        process: identifies the QEMU that has ended; empty: not known.
    """
    if step.unit:
        return await _start_unit(step, environment)
    if step.libvirt_uri:
        monitor = environment.get("PANICD_MONITOR", "")
        return await _start_domain(step, environment.get("PANICD_UUID", ""), monitor, process)
    try:
        return await _run(list(step.command), step.timeout, environment)
    except (OSError, ValueError) as error:  # ValueError: a name that no environment can hold
        return StepResult(Outcome.FAILED, str(error))


async def _run(command: list[str], timeout: float, environment: Mapping[str, str]) -> StepResult:
    """Run a command and return the result.

    Raises:
        OSError: it can't be run, or the host lacks what that needs.
        ValueError: no environment can hold these variables.
    """
    # A file, not a pipe: a QEMU that the command leaves behind inherits it.
    with tempfile.TemporaryFile() as output:
        try:
            with trio.fail_after(timeout), needing_a_thread():
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
            return StepResult(Outcome.FAILED, f"{command[0]}: ran {timeout:g} s")
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


async def _start_domain(step: RunRelaunch, uuid: str, monitor: str, process: str) -> StepResult:
    """Start the incident's domain.

    It has this UUID, if the UUID is libvirt's own word. A QEMU could claim any UUID, so otherwise
    the domain's own XML must name the monitor.
    """
    is_libvirts = monitor == address_of(step.libvirt_uri, uuid)
    try:
        with trio.fail_after(step.timeout):
            async with connected(step.libvirt_uri) as client:
                domain = await _await_off(client, step.libvirt_uri, uuid, process)
                if domain is None:
                    return StepResult(Outcome.DONE, "somebody else has started it")
                described = requests.describe(domain, inactive=True)
                its = monitors_of(await client.call(described, timeout=ANSWERS_WITHIN))
                if not is_libvirts and not names_monitor(its, monitor):
                    detail = f"the XML of libvirt's domain {uuid} does not name {monitor}"
                    return StepResult(Outcome.FAILED, detail)
                await client.call(requests.start(domain), timeout=step.timeout)
    except trio.TooSlowError:
        return StepResult(Outcome.FAILED, f"not started in {step.timeout:g} s")
    except LibvirtError as error:
        return StepResult(Outcome.FAILED, f"libvirt: {error}")
    return StepResult(Outcome.DONE)


async def _await_off(client: Client, uri: str, uuid: str, process: str) -> DomainRef | None:
    """Wait until libvirt knows that a domain's QEMU ended; before, it refuses the start.

    Returns:
        The domain; None: it runs again, for somebody else has started it. When that start ends, it
        is not panicd's to start.

    Raises:
        LibvirtError: libvirt does not tell.
    """
    before: DomainRef | None = None
    while True:
        domain = await client.call(requests.look_up(uuid), timeout=ANSWERS_WITHIN)
        state = await client.call(requests.state_of(domain), timeout=ANSWERS_WITHIN)
        if state.state == State.SHUTOFF:
            return domain
        if before not in {None, domain} or await _is_another(client, uri, domain, process):
            return None
        before = domain
        await trio.sleep(LOOK_EVERY)


async def _is_another(client: Client, uri: str, domain: DomainRef, process: str) -> bool:
    """Tell whether a start of a domain is known not to be the one with this process."""
    owner, libvirtd = (client.peer.uid, client.peer.pid) if client.peer is not None else (0, 0)
    with await DomainProcess.find(uri, domain, owner, libvirtd, os.environ) as found:
        alike = (found.identity is None) == (ProcessIdentity.parse(process) is None)
        return bool(process) and alike and found.token != process
