"""``panicd check``: mistakes, and what was probably not intended."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import click

from panicd.cli.base import Context
from panicd.cli.configured import load
from panicd.cli.phrases import counted
from panicd.config.config import Config, Dial
from panicd.libvirt.own_monitor import matches_libvirts_own
from panicd.rules.socket_path import path_problem
from panicd.service.programs import missing_programs


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(context: Context, file: Path | None) -> None:
    """Check the configuration, and print every mistake.

    FILE is the configuration to check, if it is not the one that `panicd run` would take. Each
    mistake is printed with its line, and the exit status is then 2. A warning does not change it:
    a glob that matches no socket, a path too long for one, a program that is not installed.
    """
    file = file or context.config_file
    config = load(file)
    for warning in warnings(config):
        click.echo(f"{file}: {warning}", err=True)
    click.echo(f"{file}: good, {counted(len(config.domains), 'domain rule')}")


def warnings(config: Config) -> Iterator[str]:
    """Yield what is odd about a configuration, on this host and now."""
    for monitor in config.monitors:
        if not isinstance(monitor, Dial):
            continue
        if not _finds_a_socket(monitor.glob):
            yield f"monitors: {monitor.glob} matches no socket now{_why_not(monitor.glob)}"
        yield from _too_long(monitor.glob)
        if matches_libvirts_own(monitor.glob):
            yield (
                f"monitors: {monitor.glob} matches libvirt's own monitors, and panicd does not "
                "connect to those"
            )
    yield from map(str, missing_programs(config))


def _finds_a_socket(pattern: str) -> bool:
    return any(Path(path).is_socket() for path in _found(pattern))


def _too_long(pattern: str) -> Iterator[str]:
    """Yield sockets that panicd can't connect to: a path may be longer than its pattern."""
    for path in map(Path, _found(pattern)):
        if path.is_socket() and (problem := path_problem(path)):
            yield f"monitors: {path}: {problem}"


def _found(pattern: str) -> Iterator[str]:
    # As the daemon's, and unlike those of pathlib, these wildcards match no leading dot.
    return glob.iglob(pattern)  # noqa: PTH207 - as just said


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
