"""Acts through libvirt on a domain that has a monitor for panicd beside libvirt's own."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import trio

from panicd.libvirt import requests
from panicd.libvirt.client import Client
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtRefusedError,
    LibvirtSilentError,
)
from panicd.libvirt.memory import write_memory
from panicd.libvirt.one_start import call_on
from panicd.libvirt.protocol import DomainRef, DomainState
from panicd.libvirt.requests import Request
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.libvirt_state import lags, run_state
from panicd.rules.machine.vm import Stand, stand_of

ANSWERS_WITHIN: Final = 5.0  # seconds; what libvirtd answers by itself takes a few milliseconds
TAKEN_IN_WITHIN: Final = 2.0  # seconds that libvirt is given to take in a panic
LOOK_EVERY: Final = 0.02  # seconds
JOB_WAIT: Final = 35.0
"""Seconds that a command may take. libvirt waits up to 30 for a domain's other job to end. Then it
carries out the command even if the caller has left, so panicd does not leave before."""

VERBS: Final[dict[str, Callable[[DomainRef], Request[None]]]] = {
    "reset": requests.reset,
    "resume": requests.resume,
    "destroy": requests.destroy,
}


async def act(
    client: Client,
    domain: LibvirtDomain,
    verb: str,
    wanted: Stand,
    *,
    known: Callable[[], Stand],
    timeout: float = JOB_WAIT,
) -> None:
    """Have libvirt act on a domain, once libvirt knows how the guest stands.

    Args:
        client: of the libvirt.
        domain: which, and which start of it.
        verb: ``reset``, ``resume`` or ``destroy``.
        wanted: how the guest must stand for the action.
        known: returns how the guest stands by the monitor's events.
        timeout: seconds.

    Raises:
        LibvirtAwayError: libvirt was told nothing, for it does not answer.
        LibvirtSilentError: libvirt was told, and did not say how it went.
        LibvirtRefusedError: libvirt said no.
    """
    ref = await _find(client, domain)
    is_behind = lags(await _await_taken_in(client, ref, wanted, known), wanted)

    def may(state: DomainState) -> bool:
        return is_behind or not lags(_stand(state), wanted)

    await call_on(client, ref, VERBS[verb](ref), timeout=timeout, may=may)


async def dump(
    client: Client,
    domain: LibvirtDomain,
    path: Path,
    kind: str,
    *,
    known: Callable[[], Stand],
    timeout: float,
) -> None:
    """Have libvirt write a domain's memory to a path.

    Not of a domain that libvirt takes for running: libvirt would resume it afterwards.

    Args:
        client: of the libvirt.
        domain: which.
        path: of a file or of a FIFO.
        kind: QAPI ``DumpGuestMemoryFormat``.
        known: as of ``act``.
        timeout: seconds; then panicd gives up the dump.

    Raises:
        LibvirtError: libvirt did not write it, or not in time.
    """
    ref = await _find(client, domain)
    if await _await_taken_in(client, ref, known(), known) is Stand.RUNS:
        raise LibvirtAwayError("libvirt has not seen that the guest is stopped")
    await write_memory(client, ref, path, kind, timeout)


async def _find(client: Client, domain: LibvirtDomain) -> DomainRef:
    """Return the domain by its number, which is new at each start.

    Raises:
        LibvirtAwayError: the domain is gone, or libvirt does not answer.
    """
    try:
        ref = await client.call(requests.look_up_id(domain.id), timeout=ANSWERS_WITHIN)
    except (LibvirtSilentError, LibvirtRefusedError) as error:
        raise LibvirtAwayError(str(error)) from error
    if ref.uuid != domain.uuid:
        raise LibvirtAwayError(f"{domain.name} has ended")
    return ref


async def _await_taken_in(
    client: Client, ref: DomainRef, wanted: Stand, known: Callable[[], Stand]
) -> Stand:
    """Wait until libvirt knows what panicd heard of the guest; return how the guest stands then.

    Raises:
        LibvirtAwayError: libvirt does not answer, or the guest is not as it was.
    """
    deadline = trio.current_time() + TAKEN_IN_WITHIN
    while True:
        try:
            state = await client.call(requests.state_of(ref), timeout=TAKEN_IN_WITHIN)
        except (LibvirtSilentError, LibvirtRefusedError) as error:
            raise LibvirtAwayError(str(error)) from error
        if known() is not wanted:
            raise LibvirtAwayError(f"the guest of {ref.name} is not as it was")
        stand = _stand(state)
        if not lags(stand, wanted) or trio.current_time() >= deadline:
            return stand
        await trio.sleep(LOOK_EVERY)


def _stand(state: DomainState) -> Stand:
    return stand_of(run_state(state.state, state.reason))


def names_monitor(monitors: Iterable[str], monitor: str) -> bool:
    """Tell whether one of a domain's monitors is this path, symbolic links followed."""
    path = os.path.realpath(monitor)
    return path in {os.path.realpath(named) for named in monitors}
