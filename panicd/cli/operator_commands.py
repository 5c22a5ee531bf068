"""The commands by which an operator decides: ``hold``, ``act``, ``release``, ``ack``, ``arm``."""

import re
from collections.abc import Callable
from typing import Final

import click

from panicd.cli.base import (
    Context,
    every_domain,
    free_domains,
    held_domains,
    json_option,
    panicked_domains,
    unacknowledged_incidents,
)
from panicd.cli.deferred import shown
from panicd.cli.moment import SECONDS
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import EVERY_DOMAIN, LONGEST_HOLD

WHY: Final = click.option("--why", required=True, help="The reason. The journal keeps it.")


@click.command()
@click.argument("domain", required=False, shell_complete=free_domains)
@click.option(
    "--all", "whole_host", is_flag=True, help="Hold every domain, for maintenance of the host."
)
@click.option(
    "--for",
    "duration",
    metavar="2h",
    callback=lambda _c, _p, text: _duration(text),
    help="How long: 90s, 30m, 2h, 1d.  [default: until `unhold`]",
)
@click.option("--future", is_flag=True, help="Accept a DOMAIN that does not exist yet.")
@WHY
@json_option
def hold(
    context: Context,
    /,
    *,
    domain: str | None,
    whole_host: bool,
    duration: float | None,
    future: bool,
    why: str,
) -> tuple[object, Callable[[], None]]:
    """Suspend automation for a domain, or for the whole host.

    During a hold panicd records panics, but does not act on them. A hold ends when its time is
    over, or by `panicd unhold`. Then panicd acts on the panics of that time. A hold survives a
    restart of the daemon. DOMAIN must match a domain, unless you give --future.
    """
    held = _held(domain, whole_host)
    answer = context.ask("hold", domain=held, future=future, why=why, **{"for": duration})
    return answer, shown("panicd.cli.render_changes:hold", answer)


@click.command()
@click.argument("domain", required=False, shell_complete=held_domains)
@click.option("--all", "whole_host", is_flag=True, help="End the maintenance of the host.")
@WHY
@json_option
def unhold(
    context: Context, domain: str | None, whole_host: bool, why: str
) -> tuple[object, Callable[[], None]]:
    """End a hold. panicd then acts on panics of that time."""
    answer = context.ask("unhold", domain=_held(domain, whole_host), why=why)
    return answer, shown("panicd.cli.render_changes:unhold", answer)


@click.command()
@click.argument("domain", shell_complete=panicked_domains)
@WHY
@json_option
def release(context: Context, domain: str, why: str) -> tuple[object, Callable[[], None]]:
    """Let the panicked guest of DOMAIN run as it is (`cont`).

    `panicd act DOMAIN ignore` does the same.
    """
    answer = context.ask("release", domain=domain, why=why)
    return answer, shown("panicd.cli.render_changes:act", answer)


@click.command()
@click.argument("domain", shell_complete=panicked_domains)
@click.argument("action", type=click.Choice([str(value) for value in OnCrash]))
@WHY
@json_option
def act(context: Context, domain: str, action: str, why: str) -> tuple[object, Callable[[], None]]:
    """Apply ACTION to the panicked guest of DOMAIN.

    panicd does so whatever the domain's policy, restart budget or hold say.
    """
    answer = context.ask("act", domain=domain, action=action, why=why)
    return answer, shown("panicd.cli.render_changes:act", answer)


@click.command()
@click.argument("incident_id", metavar="INCIDENT", shell_complete=unacknowledged_incidents)
@WHY
@json_option
def ack(context: Context, incident_id: str, why: str) -> tuple[object, Callable[[], None]]:
    """Note that somebody has looked at INCIDENT.

    INCIDENT is an incident's id, the beginning of the id or of its last part, or `last`.
    """
    answer = context.ask("ack", incident=incident_id, why=why)
    return answer, shown("panicd.cli.render_changes:ack", answer)


@click.command()
@click.argument("domain", shell_complete=every_domain)
@click.option("--yes", is_flag=True, help="Do it, though the VM can't be migrated then; see above.")
@WHY
@json_option
def arm(context: Context, domain: str, yes: bool, why: str) -> tuple[object, Callable[[], None]]:
    """Give the VM of DOMAIN a panic device while it runs.

    The device is `pvpanic-pci`. It stays until the VM ends or until `panicd disarm`. Until then the
    VM can't be migrated, nor started from its saved state, and libvirt marks it as tainted. Without
    --yes the command does nothing. The guest needs the driver (Linux: pvpanic-pci).
    """
    answer = context.ask("arm", domain=domain, why=why, yes=yes)
    return answer, shown("panicd.cli.render_changes:arm", answer)


@click.command()
@click.argument("domain", shell_complete=every_domain)
@WHY
@json_option
def disarm(context: Context, domain: str, why: str) -> tuple[object, Callable[[], None]]:
    """Take away the panic device that `panicd arm` gave the VM of DOMAIN.

    The guest must release the device first. That takes half a second.
    """
    answer = context.ask("disarm", domain=domain, why=why)
    return answer, shown("panicd.cli.render_changes:disarm", answer)


def _held(domain: str | None, whole_host: bool) -> str:
    if (domain is None) is not whole_host:
        raise click.UsageError("give a DOMAIN, or --all for the whole host")
    return EVERY_DOMAIN if domain is None else domain


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch("([0-9]{1,10})([smhd])", text)
    seconds = int(match[1]) * SECONDS[match[2]] if match is not None else 0.0
    if not 0 < seconds <= LONGEST_HOLD:
        raise click.BadParameter(
            "expected a duration such as 90s, 30m, 2h or 1d, and of 100 years at most"
        )
    return seconds
