"""What the commands share: their options, the daemon's answers, ``--json``."""

import os
import sys
import time
from collections.abc import Callable, MutableMapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeAlias

import click

from panicd.config.control_place import control_socket
from panicd.config.places import Places
from panicd.rules.printable import escape
from panicd.service.control_client import DaemonUnreachableError, RefusedError, call

FAILED: Final = 1
BAD_USAGE: Final = 2  # click's own too

FINDINGS: Final = "panicd.findings"
"""Where a command notes in click's context that it found a problem."""

DOCUMENT: Final = "panicd.document"
"""Where a command notes its document's name, if that is not the command's."""

CONFIG_FILE: Final = "panicd.config"
SOCKET: Final = "panicd.socket"
"""Where click's context, which all commands share, keeps the shared options."""

P = ParamSpec("P")


class Context:
    """What the commands share.

    Args:
        given: the shared options, under their names above.
    """

    def __init__(self, given: MutableMapping[str, Any]) -> None:
        self._given = given

    @property
    def config_file(self) -> Path:
        """Where the configuration is."""
        return self._given.get(CONFIG_FILE) or Places.here().config_file

    @property
    def socket(self) -> Path:
        """The daemon's control socket: as given, as configured, or the default."""
        return self._given.get(SOCKET) or control_socket(self.config_file)

    def ask(self, command: str, **arguments: object) -> Any:
        """Return the daemon's answer, or say why there is none and exit with 1."""
        try:
            return call(self.socket, command, arguments)
        except DaemonUnreachableError as error:
            fail("\n".join([str(error), *self._spoilt()]))
        except RefusedError as error:
            fail(str(error), BAD_USAGE if error.kind == "config" else FAILED)

    def _spoilt(self) -> list[str]:
        """Return the configuration's mistakes, which may be why no daemon is found."""
        if self._given.get(SOCKET) is not None:
            return []
        from panicd.config.config import ConfigError, read  # noqa: PLC0415 - slow to load

        try:
            read(self.config_file)
        except ConfigError as error:
            return str(error).split("\n")
        return []


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Print why a command can't be carried out, and exit."""
    for line in f"panicd: {message}".split("\n"):
        click.echo(escape(line), err=True)
    sys.exit(status)


# Options.


def shared_options(*, of_program: bool = False) -> list[click.Parameter]:
    """Return the options that stand before a command or after it; the later one counts."""
    path = click.Path(path_type=Path)

    def option(name: str, variable: str, **how: Any) -> click.Option:
        return click.Option(
            [name], envvar=variable if of_program else None, expose_value=False, **how
        )

    return [
        option(
            "--config",
            "PANICD_CONFIG",
            type=path,
            callback=_keeping(CONFIG_FILE),
            help="The configuration.  [default: /etc/panicd/panicd.yaml; without root ~/.config/…]",
        ),
        option(
            "--socket",
            "PANICD_SOCKET",
            type=path,
            callback=_keeping(SOCKET),
            help="The daemon's control socket.  [default: as configured]",
        ),
        option(
            "--utc",
            "PANICD_UTC",
            is_flag=True,
            callback=_take_utc,
            help="Show times in UTC, and take them for UTC.  [default: the local zone]",
        ),
    ]


def _keeping(place: str) -> Callable[[click.Context, click.Parameter, Path | None], None]:
    def keep(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            context.meta[place] = value

    return keep


def _take_utc(_context: click.Context, _parameter: click.Parameter, utc: bool) -> None:
    if utc:
        os.environ["TZ"] = "UTC"
        time.tzset()


def json_option(
    command: Callable[Concatenate[Context, P], tuple[object, Callable[[], None]]],
) -> Callable[P, None]:
    """Give a command ``--json``: it returns its answer, and what prints that for people."""

    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @click.pass_context
    @wraps(command)
    def wrapped(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> None:
        as_json = kwargs.pop("as_json")
        answer, show = command(context.obj, *args, **kwargs)
        if as_json:
            from panicd.cli.documents import written  # noqa: PLC0415 - only where it is wanted

            name = str(context.meta.get(DOCUMENT, context.command.name))
            click.echo(written(name, answer))
        else:
            show()

    return wrapped


def note_findings(findings: object) -> None:
    """Note whether a command found a problem."""
    click.get_current_context().meta[FINDINGS] = bool(findings)


def fails_on_findings(command: Callable[P, None]) -> Callable[P, None]:
    """Have a command exit with 1 if it found a problem, after its answer is printed."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        command(*args, **kwargs)
        context = click.get_current_context()
        if context.meta.get(FINDINGS):
            context.exit(FAILED)

    return wrapped


# Completion; its module is loaded when something is completed.

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[Any]]


def _completing(name: str) -> Complete:
    """Return what completes an argument: a function of ``completing``."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
        from panicd.cli import completing  # noqa: PLC0415 - only where it is wanted

        found: list[Any] = getattr(completing, name)(Context(context.meta).socket, incomplete)
        return found

    return complete


every_domain: Final = _completing("every_domain")
panicked_domains: Final = _completing("panicked_domains")
held_domains: Final = _completing("held_domains")
free_domains: Final = _completing("free_domains")
every_incident: Final = _completing("every_incident")
unacknowledged_incidents: Final = _completing("unacknowledged_incidents")
