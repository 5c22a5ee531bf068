"""What libvirt is told to do with a domain that has a monitor for panicd beside libvirt's own."""

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
from panicd.libvirt.protocol import DomainRef, State
from panicd.libvirt.requests import Request
from panicd.rules.libvirt import LibvirtDomain

ANSWERS_WITHIN: Final = 5.0  # seconds; what libvirtd answers by itself takes a few milliseconds
TAKEN_IN_WITHIN: Final = 2.0  # seconds that libvirt is given to take in a panic
LOOK_EVERY: Final = 0.02  # seconds
JOB_WAIT: Final = 35.0
"""Seconds that a command may take. libvirt itself waits up to 30 for a domain's other job to end,
and then carries it out though nobody waits for it any more: so it isn't given up before that."""

VERBS: Final[dict[str, Callable[[DomainRef], Request[None]]]] = {
    "reset": requests.reset,
    "resume": requests.resume,
    "destroy": requests.destroy,
}


async def act(client: Client, domain: LibvirtDomain, verb: str, timeout: float = JOB_WAIT) -> None:
    """Have libvirt do something with a domain, at once.

    Args:
        client: of the libvirt.
        domain: which, and which start of it.
        verb: ``reset``, ``resume`` or ``destroy``.
        timeout: seconds.

    Raises:
        LibvirtAwayError: it was told nothing, for it does not answer.
        LibvirtSilentError: it was told, and did not say how it went.
        LibvirtRefusedError: it said no.
    """
    ref = await _find(client, domain)
    await _await_panic_taken_in(client, ref, waits=verb != "destroy")
    await call_on(client, ref, VERBS[verb](ref), timeout=timeout)


async def dump(
    client: Client, domain: LibvirtDomain, path: Path, kind: str, timeout: float
) -> None:
    """Have libvirt write a domain's memory to a path.

    Not of a domain that libvirt takes for running: it would resume it afterwards.

    Args:
        client: of the libvirt.
        domain: which.
        path: of a file or of a FIFO.
        kind: QAPI ``DumpGuestMemoryFormat``.
        timeout: seconds; then the dump is given up.

    Raises:
        LibvirtError: it did not, or not in time.
    """
    ref = await _find(client, domain)
    if not await _await_panic_taken_in(client, ref, waits=True):
        raise LibvirtAwayError("libvirt has not seen that the guest is stopped")
    await write_memory(client, ref, path, kind, timeout)


async def _find(client: Client, domain: LibvirtDomain) -> DomainRef:
    """Return the domain by its number, which each start makes anew.

    Raises:
        LibvirtAwayError: it is not there any more, or libvirt does not answer.
    """
    try:
        ref = await client.call(requests.look_up_id(domain.id), timeout=ANSWERS_WITHIN)
    except (LibvirtSilentError, LibvirtRefusedError) as error:
        raise LibvirtAwayError(str(error)) from error
    if ref.uuid != domain.uuid:
        raise LibvirtAwayError(f"{domain.name} has ended")
    return ref


async def _await_panic_taken_in(client: Client, ref: DomainRef, *, waits: bool) -> bool:
    """See that libvirt has taken in that the guest has panicked, if that is waited for.

    It does so in a thread of its own; one that comes late says 'crashed' for good, though the
    guest was reset and runs.

    Raises:
        LibvirtAwayError: it does not answer.
    """
    deadline = trio.current_time() + TAKEN_IN_WITHIN
    while True:
        try:
            state = await client.call(requests.state_of(ref), timeout=TAKEN_IN_WITHIN)
        except (LibvirtSilentError, LibvirtRefusedError) as error:
            raise LibvirtAwayError(str(error)) from error
        is_seen = not waits or state.state != State.RUNNING
        if is_seen or trio.current_time() >= deadline:
            return is_seen
        await trio.sleep(LOOK_EVERY)


def names_monitor(monitors: Iterable[str], monitor: str) -> bool:
    """Tell whether one of a domain's monitors is this path, symbolic links followed."""
    path = os.path.realpath(monitor)
    return path in {os.path.realpath(named) for named in monitors}
