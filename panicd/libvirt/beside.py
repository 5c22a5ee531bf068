"""What libvirt is told to do with a domain that has a monitor for panicd beside libvirt's own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from panicd.host.logs import get_logger
from panicd.libvirt import requests
from panicd.libvirt.client import Client
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtError,
    LibvirtRefusedError,
    LibvirtSilentError,
)
from panicd.libvirt.protocol import DomainRef, DumpFormat, State
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
FORMATS: Final = {
    "elf": DumpFormat.RAW,
    "kdump-zlib": DumpFormat.KDUMP_ZLIB,
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
    await client.call(VERBS[verb](ref), timeout=timeout)


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
    ref, complete = await _find(client, domain), False
    if not await _await_panic_taken_in(client, ref, waits=True):
        raise LibvirtAwayError("libvirt has not seen that the guest is stopped")
    try:
        request = requests.core_dump(ref, os.fspath(path), FORMATS[kind])
        await client.call(request, timeout=timeout)
        complete = True
    finally:
        if not complete:
            with trio.CancelScope(shield=True):
                await _give_up_job(client, ref)


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


async def _give_up_job(client: Client, ref: DomainRef) -> None:
    try:
        await client.call(requests.abort_job(ref), timeout=ANSWERS_WITHIN)
    except LibvirtError as error:  # there may be none any more
        get_logger().debug("no job was given up", libvirt=str(error))
