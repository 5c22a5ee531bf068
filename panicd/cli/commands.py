"""The commands that show how the domains stand, and what a panic would lead to."""

from collections.abc import Callable
from typing import Any, cast

import click

from panicd.cli.base import (
    Context,
    every_domain,
    fail,
    fails_on_findings,
    json_option,
    note_findings,
)
from panicd.cli.deferred import shown
from panicd.cli.selecting import SORTED_BY, Wanted
from panicd.rules.on_crash import OnCrash
from panicd.service.control_client import Answer, call


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, shell_complete=every_domain)
@click.option("--problems", is_flag=True, help="Show only domains that somebody must look at.")
@click.option(
    "--policy",
    "policies",
    type=click.Choice([str(value) for value in OnCrash]),
    multiple=True,
    help="Show only domains with this on_crash.",
)
@click.option(
    "--sort",
    type=click.Choice(list(SORTED_BY)),
    default="state",
    show_default=True,
    help="The order: by state, the worst first; by name; by age, the oldest first; by policy.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Show every domain, even if they don't fit the window.",
)
@click.option("--watch", is_flag=True, help="Show it anew every second, one window at a time.")
@json_option
def status(
    context: Context, /, *, patterns: tuple[str, ...], watch: bool, **how: Any
) -> tuple[object, Callable[[], None]]:
    """Show every domain, the worst first.

    Each line is one domain: how it stands and since when, its open incident, its policy, and what
    panicd would do about a panic now. On a terminal it shows what fits the window. Piped, it shows
    all domains and all columns.

    PATTERN is a domain's name with or without wildcards (`web-*`), a UUID, or a monitor's path.
    The exit status is 1 if it matches no domain.
    """
    wanted = Wanted(patterns, **how)

    if watch:

        def again() -> Answer:
            return wanted.select(cast("Answer", call(context.socket, "status")))

        return None, shown("panicd.cli.watching:show_again", again)
    every = context.ask("status")
    for pattern in wanted.unmatched(every):
        fail(f"no domain matches {pattern!r}")
    answer = wanted.select(every)
    return answer, shown("panicd.cli.render_status:status", answer, wanted.everything)


@click.command()
@click.argument("domain", shell_complete=every_domain)
@json_option
def explain(context: Context, domain: str) -> tuple[object, Callable[[], None]]:
    """Show what panicd would do if DOMAIN panicked now, and why.

    DOMAIN is a name, a UUID, or the path of its monitor, which is unambiguous.
    """
    answer = context.ask("explain", domain=domain)
    return answer, shown("panicd.cli.render:explanation", answer)


@click.command()
@json_option
def reload(context: Context) -> tuple[object, Callable[[], None]]:
    """Make the daemon read its configuration again.

    If there is a mistake in it, panicd prints every mistake, and nothing changes.
    """
    answer = context.ask("reload")
    return answer, shown("panicd.cli.render_changes:reload", answer)


@click.command()
@fails_on_findings
@json_option
def audit(context: Context) -> tuple[object, Callable[[], None]]:
    """List the domains that panicd could not act on, and why.

    It says what to do about each. The list also has each QEMU of this host that panicd does not
    watch. The exit status is 1 if there is anything to list.
    """
    answer = context.ask("audit")
    note_findings(answer["exposed"])
    return answer, shown("panicd.cli.render:audit", answer)
