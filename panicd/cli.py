"""The commands. Exit status: 0 done, 1 failed, 2 bad usage or configuration."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, NoReturn, ParamSpec, cast

import click
from click.shell_completion import CompletionItem

from panicd import __version__, render
from panicd.host import config as configuration
from panicd.host.config import Config, ConfigError, Places
from panicd.host.control import DaemonUnreachableError, RefusedError, call
from panicd.host.logs import escape
from panicd.incident_log import incident_log
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import EVERY_DOMAIN
from panicd.rules.qemu_args import qemu_arguments

FAILED: Final = 1
BAD_USAGE: Final = 2  # also click's own
SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

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

    def load(self) -> Config:
        """Return the configuration, or print its mistakes and exit with 2."""
        try:
            return configuration.load(self.config_file)
        except ConfigError as error:
            click.echo(str(error), err=True)
            sys.exit(BAD_USAGE)

    @property
    def socket(self) -> Path:
        """The daemon's control socket: as given, as configured, or where it is by default."""
        return self._socket or configuration.control_socket(self.config_file)

    def ask(self, command: str, **arguments: object) -> object:
        """Return the daemon's answer, or say why there is none and exit with 1."""
        try:
            return call(self.socket, command, arguments)
        except DaemonUnreachableError as error:
            _fail(str(error))
        except RefusedError as error:
            _fail(str(error), BAD_USAGE if error.kind == "config" else FAILED)


def _fail(message: str, status: int = FAILED) -> NoReturn:
    click.echo(f"panicd: {message}", err=True)
    sys.exit(status)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Return the exceptions themselves that nested groups hold."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _json_option(
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


def _domain_names(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a domain's name."""
    answer = cast("render.Answer", _ask_quietly(context, "status") or {"domains": []})
    return _completions([domain["domain"] for domain in answer["domains"]], incomplete)


def _incident_ids(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete an incident's id."""
    answer = cast("list[render.Answer]", _ask_quietly(context, "incidents") or [])
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
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="panicd")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="PANICD_CONFIG",
    default=lambda: Places.here().config_file,
    help="The configuration.  [default: /etc/panicd/panicd.yaml; without root ~/.config/…]",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="PANICD_SOCKET",
    help="The daemon's control socket.  [default: as configured]",
)
@click.pass_context
def main(context: click.Context, config_file: Path, socket: Path | None) -> None:
    """Decide, at once and for good, what happens when a QEMU guest's kernel panics.

    \b
    Begin with:
      panicd qemu-args --name web-1     how to start a VM so that panicd can act
      panicd check                      is the configuration right?
      panicd run                        the daemon
      panicd status                     what it sees
      panicd explain web-1              what a panic of web-1 would lead to, and why
      panicd hold web-1 --why "…"       leave web-1 alone for now
    """  # noqa: D301 - \b is click's, not an escape
    context.obj = Context(config_file, socket)


@main.command()
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@click.option(
    "--dry-run", is_flag=True, help="Decide, record and report, and do nothing to any VM."
)
@click.pass_obj
def run(context: Context, log_level: str, dry_run: bool) -> None:
    """Run the daemon, in the foreground.

    It logs to standard error, one JSON object a line; under systemd, fields to the journal. SIGHUP
    has it read its configuration anew, SIGTERM has it stop; guests keep what arming gave them.
    """
    import trio  # noqa: PLC0415 - the other commands start in a tenth of the time without

    from panicd.daemon import Daemon  # noqa: PLC0415 - as above
    from panicd.host.control import ControlSocketError  # noqa: PLC0415 - as above
    from panicd.host.http import HttpBindError  # noqa: PLC0415 - as above
    from panicd.host.journal import JournalError  # noqa: PLC0415 - as above
    from panicd.host.logs import configure  # noqa: PLC0415 - as above

    config = context.load()
    configure(level=log_level)
    problems: list[str] = []
    try:
        daemon = Daemon(context.config_file, config, dry_run=dry_run)
        trio.run(daemon.run)
    except* (ConfigError, ControlSocketError, HttpBindError, JournalError, OSError) as errors:
        problems += map(str, _leaves(errors))
    if problems:  # what is raised within except* comes out in a group
        _fail("; ".join(problems))


@main.command()
@click.pass_obj
def check(context: Context) -> None:
    """Check the configuration; print every mistake with its line, and exit with 2."""
    config = context.load()
    click.echo(f"{context.config_file}: good, {len(config.domains)} domain rules")


@main.command()
@click.option("--watch", is_flag=True, help="Show it anew every second, until interrupted.")
@_json_option
def status(context: Context, watch: bool) -> tuple[object, Callable[[], None]]:
    """Show every domain: whether it is armed, what a panic would lead to, what is open."""
    answer = cast("render.Answer", context.ask("status"))
    if watch:
        return answer, lambda: render.watch(lambda: cast("render.Answer", context.ask("status")))
    return answer, lambda: render.status(answer)


@main.command()
@click.argument("domain", shell_complete=_domain_names)
@_json_option
def explain(context: Context, domain: str) -> tuple[object, Callable[[], None]]:
    """Show what a panic of DOMAIN would lead to now, step by step, and why.

    DOMAIN is a name as `panicd status` shows it, or a UUID.
    """
    answer = cast("render.Answer", context.ask("explain", domain=domain))
    return answer, lambda: render.explanation(answer)


@main.command()
@click.option("--domain", shell_complete=_domain_names, help="Only this domain's, by name or UUID.")
@click.option("--open", "open_only", is_flag=True, help="Only those that go on.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@_json_option
def incidents(
    context: Context, domain: str | None, open_only: bool, limit: int
) -> tuple[object, Callable[[], None]]:
    """List incidents, the newest first."""
    wanted = {"domain": domain} if domain else {}
    answer = context.ask("incidents", **wanted, open=open_only, limit=limit)
    return answer, lambda: render.incidents(cast("list[render.Answer]", answer))


WHY: Final = click.option("--why", required=True, help="The reason; it is kept in the journal.")


@main.command()
@click.argument("domain", required=False, shell_complete=_domain_names)
@click.option("--all", "whole_host", is_flag=True, help="Every domain: maintenance of the host.")
@click.option("--for", "duration", metavar="2h", callback=lambda _c, _p, text: _duration(text))
@WHY
@click.pass_obj
def hold(
    context: Context, domain: str | None, whole_host: bool, duration: float | None, why: str
) -> None:
    """Suspend automation for DOMAIN: its panics are recorded, and nothing is done about them.

    It ends by `panicd unhold`, or by itself when its time is over; then what is due is done. It
    survives a restart of the daemon.
    """
    context.ask("hold", domain=_held(domain, whole_host), why=why, **{"for": duration})


@main.command()
@click.argument("domain", required=False, shell_complete=_domain_names)
@click.option("--all", "whole_host", is_flag=True, help="End the maintenance of the host.")
@WHY
@click.pass_obj
def unhold(context: Context, domain: str | None, whole_host: bool, why: str) -> None:
    """End a hold: what is due is done at once."""
    context.ask("unhold", domain=_held(domain, whole_host), why=why)


@main.command()
@click.argument("domain", shell_complete=_domain_names)
@WHY
@click.pass_obj
def release(context: Context, domain: str, why: str) -> None:
    """Let the panicked guest of DOMAIN run as it is (`cont`). Only `release` ever does that."""
    _tell_done(context.ask("release", domain=domain, why=why))


@main.command()
@click.argument("domain", shell_complete=_domain_names)
@click.argument("action", type=click.Choice([str(value) for value in OnCrash]))
@WHY
@click.pass_obj
def act(context: Context, domain: str, action: str, why: str) -> None:
    """Apply ACTION to the panicked guest of DOMAIN, whatever its policy, budget or hold say."""
    _tell_done(context.ask("act", domain=domain, action=action, why=why))


@main.command()
@click.argument("incident_id", metavar="INCIDENT", shell_complete=_incident_ids)
@WHY
@click.pass_obj
def ack(context: Context, incident_id: str, why: str) -> None:
    """Note that INCIDENT was looked at."""
    context.ask("ack", incident=incident_id, why=why)


@main.command()
@click.pass_obj
def reload(context: Context) -> None:
    """Have the daemon read its configuration anew: all of it, or on a mistake nothing."""
    context.ask("reload")


@main.command()
@click.argument("incident_id", metavar="INCIDENT", shell_complete=_incident_ids)
@click.option("--log", is_flag=True, help="Show the kernel's log from its memory dump instead.")
@_json_option
def incident(context: Context, incident_id: str, log: bool) -> tuple[object, Callable[[], None]]:
    """Show INCIDENT from the panic to its end: what was seen, decided and done, and when."""
    answer = cast("render.Answer", context.ask("incident", incident=incident_id))
    if log:
        try:
            return incident_log(answer)
        except NotReadableError as error:
            _fail(f"no kernel log: {escape(str(error))}")
    return answer, lambda: render.incident(answer)


@main.command()
@click.argument("socket_path", metavar="SOCKET", type=click.Path(path_type=Path))
@_json_option
def probe(context: Context, socket_path: Path) -> tuple[object, Callable[[], None]]:
    """Ask the VM behind a monitor SOCKET what it can do, and change nothing.

    QEMU serves one client on each monitor: one that the daemon is connected to does not answer
    here. Ask `panicd explain` for such a domain.
    """
    from panicd.probing import UnreachableMonitorError, probe_socket  # noqa: PLC0415 - slow to load

    try:
        answer = probe_socket(socket_path, context.load())
    except UnreachableMonitorError as error:
        _fail(str(error))
    return answer, lambda: render.probe(answer)


@main.command("qemu-args")
@click.option("--name", required=True, help="The VM's name.")
@click.option(
    "--qemu-version",
    default="7.2",
    show_default=True,
    metavar="X.Y",
    callback=lambda _context, _parameter, text: _version(text),
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/run/qemu"),
    show_default=True,
    help="Where the VM's monitor socket is to be.",
)
@click.option(
    "--dial-in",
    type=click.Path(path_type=Path),
    help="Have the VM connect to panicd's listening socket instead.",
)
@click.option("--pci", is_flag=True, help="For a machine without an ISA bus.")
def qemu_args(
    name: str, qemu_version: tuple[int, int, int], directory: Path, dial_in: Path | None, pci: bool
) -> None:
    """Print the arguments that a VM should be started with, a line each with its reason."""
    socket = dial_in or directory / f"{name}.qmp"
    try:
        arguments = qemu_arguments(qemu_version, socket=str(socket), dial_in=bool(dial_in), pci=pci)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    render.arguments(name, arguments)


@main.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Start real QEMUs whose guests panic, and show what panicd does with each policy.

    Takes less than a minute, needs qemu-system-x86_64, and leaves nothing behind.
    """
    from panicd.demo.story import tell  # noqa: PLC0415 - slow to load

    context.exit(tell())


def _held(domain: str | None, whole_host: bool) -> str:
    if (domain is None) is not whole_host:
        raise click.UsageError("give a DOMAIN, or --all for the whole host")
    return EVERY_DOMAIN if domain is None else domain


def _tell_done(answer: object) -> None:
    if not cast("render.Answer", answer)["done"]:
        click.echo("It goes on; see `panicd incidents`.")


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter("expected a duration such as 90s, 30m, 2h or 1d")
    return int(match[1]) * SECONDS[match[2]]


def _version(text: str) -> tuple[int, int, int]:
    numbers = text.split(".")
    if not all(number.isascii() and number.isdecimal() for number in numbers) or len(numbers) > 3:
        raise click.BadParameter("expected a version such as 7.2 or 10.0.2")
    major, minor, micro = [int(number) for number in (*numbers, "0", "0")[:3]]
    return major, minor, micro
