"""``panicd advise``: which panic device a guest can use, and what suits it, from what it runs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final

import click
import trio

from panicd.cli import render
from panicd.cli.base import Context, every_domain, fail, json_option
from panicd.cli.configured import libvirt_uri
from panicd.host.osinfo import look_up
from panicd.libvirt import requests
from panicd.libvirt.client import Client
from panicd.libvirt.errors import LibvirtAwayError, LibvirtError
from panicd.libvirt.once import connected
from panicd.libvirt.protocol import DomainRef
from panicd.rules.guest_system import (
    GuestSystem,
    Kernel,
    advise,
    from_id,
    merge,
    parse_agent,
    parse_kernel,
)
from panicd.rules.libvirt import DescribedGuest, UnreadableXMLError, parse_guest

ANSWERS_WITHIN: Final = 10.0  # seconds
AGENT_WITHIN: Final = 3.0  # seconds; so long it also waits for an agent that is missing
ASK_AGENT: Final = json.dumps({"execute": "guest-get-osinfo"})
LIBVIRT: Final = "libosinfo, in libvirt's XML"
OPERATOR: Final = "the operator"


@click.command("advise")
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1, shell_complete=every_domain)
@click.option(
    "--os",
    "system",
    default="",
    metavar="ID",
    help="What the guest runs: libosinfo's id, such as debian11, or linux, windows, freebsd.",
)
@click.option("--kernel", metavar="X.Y", help="The version of a Linux guest's kernel.")
@click.option("--libvirt", "uri", metavar="URI", help="The libvirt that has the domains.")
@json_option
def advise_command(
    context: Context, domains: tuple[str, ...], system: str, kernel: str | None, uri: str | None
) -> tuple[object, Callable[[], None]]:
    """Say which panic device the guest of a libvirt domain can use.

    What the guest runs is known from libosinfo's id in libvirt's XML, from osinfo-query if that is
    installed, from the guest's agent, or from --os. Without a DOMAIN it says so for every domain of
    libvirt, or for --os alone. Nothing is changed.
    """
    version = parse_kernel(kernel) if kernel else None
    if kernel and version is None:
        raise click.BadParameter("expected a version such as 5.10", param_hint="--kernel")
    try:
        answer = advise_on(domains, uri or libvirt_uri(context.config_file), system, version)
    except LibvirtError as error:
        fail(str(error))
    return answer, lambda: render.advice(answer)


def advise_on(
    domains: Sequence[str], uri: str, id_: str, kernel: Kernel | None
) -> list[dict[str, object]]:
    """Return what suits the guests of libvirt's domains, or a system alone.

    Args:
        domains: their names; none: each that libvirt has, or only ``id_`` if that is given.
        uri: of the libvirt.
        id_: what the guests run, by the operator's word; empty: by libvirt's and their own.
        kernel: the version of their kernel, likewise.

    Raises:
        LibvirtError: libvirt does not answer, or does not know a domain.
    """
    return trio.run(_advise_on, domains, uri, id_, kernel)


async def _advise_on(
    domains: Sequence[str], uri: str, id_: str, kernel: Kernel | None
) -> list[dict[str, object]]:
    said = GuestSystem(id_, id_, kernel=kernel, known_by=OPERATOR)
    if id_:
        said = merge(from_id(id_, OPERATOR), await look_up(id_))
        said = GuestSystem(**{**asdict(said), "kernel": kernel, "known_by": OPERATOR})
        if not domains:
            return [_view("", said, None)]
    async with connected(uri) as client:
        listed = await client.call(requests.list_domains(inactive=True), timeout=ANSWERS_WITHIN)
        known = {domain.name: domain for domain in listed}
        if unknown := [name for name in domains if name not in known]:
            raise LibvirtAwayError(f"no domain is called {unknown[0]}")
        return [await _advise_on_domain(client, known[name], said) for name in domains or known]


async def _advise_on_domain(
    client: Client, domain: DomainRef, said: GuestSystem
) -> dict[str, object]:
    text = await client.call(requests.describe(domain), timeout=ANSWERS_WITHIN)
    try:
        described = parse_guest(text)
    except UnreadableXMLError as error:
        raise LibvirtAwayError(str(error)) from error
    system = said
    if not said.family and described.osinfo:
        system = merge(from_id(described.osinfo, LIBVIRT), await look_up(described.osinfo))
    if described.has_agent and described.runs:
        system = merge(system, await _ask_agent(client, domain))
    return _view(domain.name, system, described)


async def _ask_agent(client: Client, domain: DomainRef) -> GuestSystem | None:
    """Ask a guest's agent what it runs; None if it does not say."""
    question = requests.ask_agent(domain, ASK_AGENT, int(AGENT_WITHIN))
    try:
        return parse_agent(await client.call(question, timeout=2 * AGENT_WITHIN))
    except LibvirtError:
        return None


def _view(domain: str, system: GuestSystem, described: DescribedGuest | None) -> dict[str, object]:
    architecture = described.architecture if described else ""
    advice = advise(system, architecture)
    return {
        "domain": domain,
        "has": list(described.panic_models) if described else [],
        **asdict(advice),
    }
