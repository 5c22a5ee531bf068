"""The commands that show what has happened: ``incidents``, ``incident``, ``panics``, ``export``."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import click

from panicd.cli.base import DOCUMENT, Context, every_domain, every_incident, fail, json_option
from panicd.cli.deferred import shown
from panicd.cli.moment import parse_moment
from panicd.rules.printable import escape
from panicd.service.control_client import Answer

INCIDENT: Final = click.argument("incident_id", metavar="INCIDENT", shell_complete=every_incident)


def _moment(_context: object, _parameter: object, text: str | None) -> float | None:
    try:
        return None if text is None else parse_moment(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("--domain", shell_complete=every_domain, help="Only of this domain, by name or UUID.")
@click.option("--open", is_flag=True, help="Only open ones.")
@click.option(
    "--unacknowledged", is_flag=True, help="Only those that nobody has acknowledged (`ack`)."
)
@click.option(
    "--since",
    metavar="TIME",
    callback=_moment,
    help="Only those that began at TIME or later.",
)
@click.option(
    "--until",
    metavar="TIME",
    callback=_moment,
    help="Only those that began before TIME.",
)
@click.option(
    "--same-as",
    metavar="INCIDENT",
    shell_complete=every_incident,
    help="Only those of the same panic as INCIDENT, which is included.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="Show at most this many, the newest.",
)
@json_option
def incidents(
    context: Context,
    /,
    domain: str | None,
    since: float | None,
    until: float | None,
    same_as: str | None,
    **wanted: bool | int,
) -> tuple[object, Callable[[], None]]:
    """List incidents, the newest first.

    TIME is how long ago (30m, 2h, 7d) or a date (2026-11-23, 2026-11-23T04:00). A date is local,
    unless it ends in Z or an offset such as +01:00, or you give --utc.
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since is not before --until")
    given = {"domain": domain, "since": since, "until": until, "same_as": same_as}
    wanted_too = {key: value for key, value in given.items() if value is not None}
    answer = context.ask("incidents", **wanted, **wanted_too)
    return answer, shown("panicd.cli.render:incidents", answer, time.time())


@click.command()
@click.option(
    "--since",
    metavar="TIME",
    callback=_moment,
    help="Only those seen at TIME or later. TIME is as for `incidents`.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="Show at most this many, the latest seen.",
)
@json_option
def panics(
    context: Context, /, since: float | None, limit: int
) -> tuple[object, Callable[[], None]]:
    """List the different panics, and how often each was seen.

    Two panics are the same if they have the same signature: what happened, and in which function.
    A panic is left out if panicd knows too little to compare it.
    """
    answer = context.ask("panics", limit=limit, **({} if since is None else {"since": since}))
    return answer, shown("panicd.cli.render:panics", answer)


@click.command()
@INCIDENT
@click.option(
    "--log",
    is_flag=True,
    help="Show the guest's kernel log: all of it from a dump with VMCOREINFO, or else its end.",
)
@json_option
def incident(context: Context, incident_id: str, log: bool) -> tuple[object, Callable[[], None]]:
    """Show one incident, from the panic to its end.

    It shows what panicd saw, decided and did, and when. INCIDENT is an incident's id, the beginning
    of the id or of its last part, or `last`.
    """
    answer = cast("Answer", context.ask("incident", incident=incident_id))
    if log:
        from panicd.cli.incident_log import incident_log  # noqa: PLC0415 - slow to load
        from panicd.rules.guest_memory.reading import NotReadableError  # noqa: PLC0415 - as above

        click.get_current_context().meta[DOCUMENT] = "incident-log"
        try:
            return incident_log(answer)
        except NotReadableError as error:
            fail(f"no kernel log: {escape(str(error))}")
    return answer, shown("panicd.cli.render_incident:show", answer, time.time())


@click.command()
@INCIDENT
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The archive.  [default: panicd-INCIDENT.tar.gz, here]",
)
@click.option("--no-dump", is_flag=True, help="Leave the memory dump out.")
@click.option(
    "--level",
    type=click.IntRange(0, 31),
    help="Filter a full dump at this dump level of makedumpfile, such as 31.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.pass_obj
def export(
    context: Context,
    incident_id: str,
    *,
    output: Path | None,
    no_dump: bool,
    level: int | None,
    force: bool,
) -> None:
    """Pack all that is known of INCIDENT into one archive.

    The archive contains the guest's memory and screen, so be careful who gets it. If no daemon
    runs, the command reads the journal itself.
    """
    from panicd.cli.configured import record  # noqa: PLC0415 - slow to load
    from panicd.cli.export import ExportError, archive_name, write_archive  # noqa: PLC0415 - as above

    known = record(context, incident_id)
    target = output or Path(archive_name(known["id"]))
    try:
        left_out = write_archive(
            known, target, dump=not no_dump, force=force, now=time.time(), level=level
        )
    except ExportError as error:
        fail(str(error))
    for what in left_out:
        click.echo(f"panicd: left out: {escape(what)}", err=True)
    click.echo(f"{target}: {target.stat().st_size} bytes")
