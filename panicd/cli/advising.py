"""``panicd advise``: which panic device a guest can use, and what suits it, from what it runs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final

import click
import trio

from panicd.cli import render
from panicd.cli.base import Context, domain_names, fail, json_option
from panicd.cli.configured import libvirt_uri
from panicd.host.osinfo import look_up
from panicd.libvirt.virsh import LibvirtError, virsh
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
AGENT_WITHIN: Final = 3.0  # seconds; an agent that is not there is waited for as long
ASK_AGENT: Final = json.dumps({"execute": "guest-get-osinfo"})
LIBVIRT: Final = "libosinfo, in libvirt's XML"
OPERATOR: Final = "the operator"


@click.command("advise")
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1, shell_complete=domain_names)
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
    """Say which panic device the guest of a libvirt DOMAIN can use, and what suits it.

    What it runs is known by libosinfo's id in libvirt's XML, by osinfo-query where that is
    installed, by the guest's agent, or by --os. Without DOMAIN: each that libvirt has, or --os
    alone. Nothing is changed.
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
    """Return what suits the guests of libvirt's domains, or of a system alone.

    Args:
        domains: their names; none: each that libvirt has, or ``id_`` alone where that is given.
        uri: of the libvirt.
        id_: what the guests run, as the operator says; empty: as libvirt and they themselves say.
        kernel: the same of their kernel.

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
    if not domains:
        listed = await virsh(uri, ["list", "--all", "--name"], ANSWERS_WITHIN)
        domains = [name for name in listed.splitlines() if name]
    return [await _advise_on_domain(domain, uri, said) for domain in domains]


async def _advise_on_domain(domain: str, uri: str, said: GuestSystem) -> dict[str, object]:
    text = await virsh(uri, ["dumpxml", domain], ANSWERS_WITHIN)
    try:
        described = parse_guest(text)
    except UnreadableXMLError as error:
        raise LibvirtError(str(error)) from error
    system = said
    if not said.family and described.osinfo:
        system = merge(from_id(described.osinfo, LIBVIRT), await look_up(described.osinfo))
    if described.has_agent and described.runs:
        system = merge(system, await _ask_agent(domain, uri))
    return _view(domain, system, described)


async def _ask_agent(domain: str, uri: str) -> GuestSystem | None:
    """Ask a guest's agent what it runs; None where it does not say."""
    command = ["qemu-agent-command", domain, ASK_AGENT, "--timeout", str(int(AGENT_WITHIN))]
    try:
        return parse_agent(await virsh(uri, command, 2 * AGENT_WITHIN))
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
