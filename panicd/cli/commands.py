"""The commands that ask the daemon, or tell it to do something."""

import re
from collections.abc import Callable
from typing import Final, cast

import click

from panicd.cli.base import Context, fails_on_findings, note_findings
from panicd.cli.base import domain_names as _domain_names
from panicd.cli.base import incident_ids as _incident_ids
from panicd.cli.base import json_option as _json_option
from panicd.cli.deferred import shown
from panicd.cli.moment import SECONDS
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import EVERY_DOMAIN
from panicd.service.control_client import Answer


@click.command()
@click.option("--watch", is_flag=True, help="Show it anew every second, until interrupted.")
@_json_option
def status(context: Context, watch: bool) -> tuple[object, Callable[[], None]]:
    """Show every domain: whether it is armed, what a panic would lead to, what is open."""
    answer = context.ask("status")
    if watch:
        return answer, shown("panicd.cli.watching:show_again", lambda: context.ask("status"))
    return answer, shown("panicd.cli.render:status", answer)


@click.command()
@click.argument("domain", shell_complete=_domain_names)
@_json_option
def explain(context: Context, domain: str) -> tuple[object, Callable[[], None]]:
    """Show what a panic of DOMAIN would lead to now, step by step, and why.

    DOMAIN is a name, a UUID, or the path of its monitor, which no other domain has.
    """
    answer = context.ask("explain", domain=domain)
    return answer, shown("panicd.cli.render:explanation", answer)


WHY: Final = click.option("--why", required=True, help="The reason; it is kept in the journal.")


@click.command()
@click.argument("domain", required=False, shell_complete=_domain_names)
@click.option("--all", "whole_host", is_flag=True, help="Every domain: maintenance of the host.")
@click.option(
    "--for",
    "duration",
    metavar="2h",
    callback=lambda _c, _p, text: _duration(text),
    help="For so long: 90s, 30m, 2h, 1d.  [default: until `unhold`]",
)
@click.option("--future", is_flag=True, help="Accept a DOMAIN that does not exist yet.")
@WHY
@_json_option
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
    """Suspend automation for DOMAIN: its panics are recorded, and nothing is done about them.

    It ends by `panicd unhold`, or by itself when its time is over; then what is due is done. It
    survives a restart of the daemon. A DOMAIN that matches nothing now is refused.
    """
    held = _held(domain, whole_host)
    answer = context.ask("hold", domain=held, future=future, why=why, **{"for": duration})
    return answer, shown("panicd.cli.render_changes:hold", answer)


@click.command()
@click.argument("domain", required=False, shell_complete=_domain_names)
@click.option("--all", "whole_host", is_flag=True, help="End the maintenance of the host.")
@WHY
@_json_option
def unhold(
    context: Context, domain: str | None, whole_host: bool, why: str
) -> tuple[object, Callable[[], None]]:
    """End a hold: what is due is done at once."""
    answer = context.ask("unhold", domain=_held(domain, whole_host), why=why)
    return answer, shown("panicd.cli.render_changes:unhold", answer)


@click.command()
@click.argument("domain", shell_complete=_domain_names)
@WHY
@_json_option
def release(context: Context, domain: str, why: str) -> tuple[object, Callable[[], None]]:
    """Let the panicked guest of DOMAIN run as it is (`cont`), as `act DOMAIN ignore` does."""
    answer = context.ask("release", domain=domain, why=why)
    return answer, shown("panicd.cli.render_changes:act", answer)


@click.command()
@click.argument("domain", shell_complete=_domain_names)
@click.argument("action", type=click.Choice([str(value) for value in OnCrash]))
@WHY
@_json_option
def act(context: Context, domain: str, action: str, why: str) -> tuple[object, Callable[[], None]]:
    """Apply ACTION to the panicked guest of DOMAIN, whatever its policy, budget or hold say."""
    answer = context.ask("act", domain=domain, action=action, why=why)
    return answer, shown("panicd.cli.render_changes:act", answer)


@click.command()
@click.argument("incident_id", metavar="INCIDENT", shell_complete=_incident_ids)
@WHY
@_json_option
def ack(context: Context, incident_id: str, why: str) -> tuple[object, Callable[[], None]]:
    """Note that INCIDENT was looked at."""
    answer = context.ask("ack", incident=incident_id, why=why)
    return answer, shown("panicd.cli.render_changes:ack", answer)


@click.command()
@_json_option
def reload(context: Context) -> tuple[object, Callable[[], None]]:
    """Have the daemon read its configuration anew: all of it, or on a mistake nothing."""
    answer = context.ask("reload")
    return answer, shown("panicd.cli.render_changes:reload", answer)


@click.command()
@fails_on_findings
@_json_option
def audit(context: Context) -> tuple[object, Callable[[], None]]:
    """List every domain that could not be acted on if it panicked now, and what to do about it.

    Exit status 1 where there is one.
    """
    answer = cast("Answer", context.ask("audit"))
    note_findings(answer["exposed"])
    return answer, shown("panicd.cli.render:audit", answer)


def _held(domain: str | None, whole_host: bool) -> str:
    if (domain is None) is not whole_host:
        raise click.UsageError("give a DOMAIN, or --all for the whole host")
    return EVERY_DOMAIN if domain is None else domain


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter("expected a duration such as 90s, 30m, 2h or 1d")
    return int(match[1]) * SECONDS[match[2]]
