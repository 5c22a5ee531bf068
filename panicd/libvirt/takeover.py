"""Having libvirt preserve a domain that panics, and having it do again what it did before."""

from typing import Final

from panicd.host.logs import get_logger
from panicd.libvirt import requests
from panicd.libvirt.client import Client
from panicd.libvirt.protocol import DomainRef, LifecycleAction
from panicd.rules.libvirt import METADATA_KEY, METADATA_URI, PRESERVE, LibvirtDomain

ANSWERS_WITHIN: Final = 5.0  # seconds; it takes a few milliseconds


async def take_over(client: Client, ref: DomainRef, domain: LibvirtDomain) -> LibvirtDomain:
    """Have libvirt preserve a domain when it panics; return the domain as it is then.

    Raises:
        LibvirtError: it does not, or does not say so.
    """
    await _set_metadata(client, ref, domain.takeover)
    await _set_on_crash(client, ref, PRESERVE)
    get_logger(domain=domain.name).info(
        "libvirt leaves this domain's panics to panicd", on_crash=domain.on_crash
    )
    return domain.taken_over()


async def give_back(client: Client, ref: DomainRef, domain: LibvirtDomain) -> LibvirtDomain:
    """Have libvirt do on a panic what it did before; return the domain as it is then.

    Raises:
        LibvirtError: it does not, or does not say so.
    """
    await _set_on_crash(client, ref, domain.gives_back)
    await _set_metadata(client, ref, None)
    get_logger(domain=domain.name).info(
        "libvirt acts on this domain's panics again", on_crash=domain.gives_back
    )
    return domain.given_back()


async def _set_on_crash(client: Client, ref: DomainRef, word: str) -> None:
    action = LifecycleAction[word.upper().replace("-", "_")]
    await client.call(requests.set_on_crash(ref, action), timeout=ANSWERS_WITHIN)


async def _set_metadata(client: Client, ref: DomainRef, element: str | None) -> None:
    request = requests.set_metadata(ref, METADATA_URI, METADATA_KEY, element)
    await client.call(request, timeout=ANSWERS_WITHIN)
