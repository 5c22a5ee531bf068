"""What the commands share: the configuration, the daemon's answers, completion, ``--json``."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, NoReturn, ParamSpec, cast

import click
from click.shell_completion import CompletionItem

from panicd.config.control_place import control_socket
from panicd.rules.printable import escape
from panicd.service.control_client import Answer, DaemonUnreachableError, RefusedError, call

FAILED: Final = 1
BAD_USAGE: Final = 2  # also click's own

FINDINGS: Final = "panicd.findings"
"""Where a command notes in click's context that it found something amiss."""

P = ParamSpec("P")


class Context:
    """What the commands share.

    Attributes:
        config_file: where the configuration is.
        socket: of the daemon, as given; None: as configured.
    """

    def __init__(self, config_file: Path, socket: Path | None) -> None:
        self.config_file = config_file
        self._socket = socket

    @property
    def socket(self) -> Path:
        """The daemon's control socket: as given, as configured, or where it is by default."""
        return self._socket or control_socket(self.config_file)

    def ask(self, command: str, **arguments: object) -> object:
        """Return the daemon's answer, or say why there is none and exit with 1."""
        try:
            return call(self.socket, command, arguments)
        except DaemonUnreachableError as error:
            fail("\n".join([str(error), *self._spoilt()]))
        except RefusedError as error:
            fail(str(error), BAD_USAGE if error.kind == "config" else FAILED)

    def _spoilt(self) -> list[str]:
        """Return what is wrong with the configuration, as it may be why no daemon is found."""
        if self._socket is not None:
            return []
        from panicd.config.config import ConfigError, read  # noqa: PLC0415 - slow to load

        try:
            read(self.config_file)
        except ConfigError as error:
            return str(error).split("\n")
        return []


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Say why a command can't be carried out, and exit."""
    for line in f"panicd: {message}".split("\n"):
        click.echo(escape(line), err=True)
    sys.exit(status)


def json_option(
    command: Callable[Concatenate[Context, P], tuple[object, Callable[[], None]]],
) -> Callable[P, None]:
    """Give a command ``--json``: it returns its answer, and what prints that for people."""

    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @click.pass_obj
    @wraps(command)
    def wrapped(context: Context, /, *args: P.args, **kwargs: P.kwargs) -> None:
        as_json = kwargs.pop("as_json")
        answer, show = command(context, *args, **kwargs)
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            show()

    return wrapped


def domain_names(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a domain's name."""
    answer = cast("Answer", _ask_quietly(context, "status") or {"domains": []})
    return _completions([domain["domain"] for domain in answer["domains"]], incomplete)


def incident_ids(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete an incident's id."""
    answer = cast("list[Answer]", _ask_quietly(context, "incidents") or [])
    return _completions([incident["id"] for incident in answer], incomplete)


def _ask_quietly(context: click.Context, command: str) -> object:
    """Return the running daemon's answer, for a completion; None where none runs."""
    given = context.find_root().params  # a completion parses the options, and calls no command
    shared = Context(given["config_file"], given["socket"])
    try:
        return call(shared.socket, command, {}, timeout=1.0)
    except (DaemonUnreachableError, RefusedError):
        return None


def _completions(names: list[str], incomplete: str) -> list[CompletionItem]:
    # What is offered is printed by the shell, a line each: what is not printable is not offered.
    fit = (name for name in names if name.startswith(incomplete) and name.isprintable())
    return [CompletionItem(name) for name in fit]


def note_findings(findings: object) -> None:
    """Note whether a command found something amiss."""
    click.get_current_context().meta[FINDINGS] = bool(findings)


def fails_on_findings(command: Callable[P, None]) -> Callable[P, None]:
    """Have a command exit with 1 where it found something amiss, once its answer is printed."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        command(*args, **kwargs)
        context = click.get_current_context()
        if context.meta.get(FINDINGS):
            context.exit(FAILED)

    return wrapped
