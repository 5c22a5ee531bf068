"""``panicd check``: what is wrong, and what is most likely not what was meant."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import click

from panicd.cli.base import Context
from panicd.cli.configured import load
from panicd.cli.render_changes import counted
from panicd.config.config import Config, Dial
from panicd.libvirt.own_monitor import matches_libvirts_own
from panicd.service.programs import missing_programs


@click.command()
@click.pass_obj
def check(context: Context) -> None:
    """Check the configuration; print every mistake with its line, and exit with 2.

    A monitor's glob that matches no socket now, and a program that it names and that is not on this
    machine, are warned of, and no mistake.
    """
    config = load(context.config_file)
    for warning in warnings(config):
        click.echo(f"{context.config_file}: {warning}", err=True)
    click.echo(f"{context.config_file}: good, {counted(len(config.domains), 'domain rule')}")


def warnings(config: Config) -> Iterator[str]:
    """Yield what is odd about a configuration, on this host and now."""
    for monitor in config.monitors:
        if not isinstance(monitor, Dial):
            continue
        if not _finds_a_socket(monitor.glob):
            yield f"monitors: {monitor.glob} matches no socket now{_why_not(monitor.glob)}"
        if matches_libvirts_own(monitor.glob):
            yield f"monitors: {monitor.glob} matches libvirt's own monitors, which are not dialled"
    yield from map(str, missing_programs(config))


def _finds_a_socket(pattern: str) -> bool:
    # As the daemon's, and unlike those of pathlib, these wildcards match no leading dot.
    found = glob.iglob(pattern)  # noqa: PTH207 - as just said
    return any(Path(path).is_socket() for path in found)


def _why_not(pattern: str) -> str:
    """Return what keeps a pattern from matching, if it is the directory before its wildcards."""
    plain = Path(pattern).parent
    while glob.has_magic(str(plain)):
        plain = plain.parent
    try:
        os.scandir(plain).close()
    except OSError as error:
        return f" ({plain}: {error.strerror})"
    return ""
