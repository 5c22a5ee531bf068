"""Takes over a domain, so that libvirt preserves it on a panic, and gives it back.

This concerns one start alone: the next start has its own ``<on_crash>``, perhaps another.
"""

from collections.abc import Iterable
from typing import Final

from panicd.host.logs import get_logger
from panicd.libvirt import requests
from panicd.libvirt.client import Client
from panicd.libvirt.errors import LibvirtAwayError, LibvirtError, LibvirtRefusedError
from panicd.libvirt.once import connected
from panicd.libvirt.one_start import call_on
from panicd.libvirt.protocol import DomainRef, LifecycleAction
from panicd.rules.libvirt import METADATA_KEY, METADATA_URI, PRESERVE, LibvirtDomain

ANSWERS_WITHIN: Final = 5.0  # seconds; it takes a few milliseconds


async def take_over(client: Client, ref: DomainRef, domain: LibvirtDomain) -> LibvirtDomain:
    """Have libvirt preserve a domain when it panics; return the changed domain.

    Raises:
        LibvirtError: libvirt does not, or does not say so.
    """
    await _set_metadata(client, ref, domain.takeover)
    await _set_on_crash(client, ref, PRESERVE)
    get_logger(domain=domain.name).info(
        "libvirt leaves this domain's panics to panicd", on_crash=domain.on_crash
    )
    return domain.taken_over()


async def give_back(client: Client, ref: DomainRef, domain: LibvirtDomain) -> LibvirtDomain:
    """Have libvirt do on a panic what it did before; return the changed domain.

    Raises:
        LibvirtError: libvirt does not, or does not say so.
    """
    await _set_on_crash(client, ref, domain.gives_back)
    await _set_metadata(client, ref, None)
    get_logger(domain=domain.name).info(
        "libvirt acts on this domain's panics again", on_crash=domain.gives_back
    )
    return domain.given_back()


async def give_back_all(uri: str, domains: Iterable[tuple[DomainRef, LibvirtDomain]]) -> None:
    """Give back all domains, as panicd stops; a domain that fails does not hinder the others."""
    try:
        async with connected(uri) as client:
            for ref, domain in domains:
                if domain.gives_back:
                    try:
                        await give_back(client, ref, domain)
                    except (LibvirtAwayError, LibvirtRefusedError) as error:  # it has ended
                        log = get_logger(domain=domain.name)
                        log.warning("libvirt keeps preserving panicked guests", problem=str(error))
    except LibvirtError as error:
        get_logger().warning("libvirt keeps preserving panicked guests", problem=str(error))


async def _set_on_crash(client: Client, ref: DomainRef, word: str) -> None:
    action = LifecycleAction[word.upper().replace("-", "_")]
    await call_on(client, ref, requests.set_on_crash(ref, action), timeout=ANSWERS_WITHIN)


async def _set_metadata(client: Client, ref: DomainRef, element: str | None) -> None:
    request = requests.set_metadata(ref, METADATA_URI, METADATA_KEY, element)
    await call_on(client, ref, request, timeout=ANSWERS_WITHIN)
