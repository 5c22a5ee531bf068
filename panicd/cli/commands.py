"""The commands. Exit status: 0 done, 1 failed, 2 bad usage or configuration."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

import click

from panicd import __version__
from panicd.cli import render, render_changes
from panicd.cli.base import Context, fails_on_findings, note_findings
from panicd.cli.base import domain_names as _domain_names
from panicd.cli.base import fail as _fail
from panicd.cli.base import incident_ids as _incident_ids
from panicd.cli.base import json_option as _json_option
from panicd.cli.checking import warnings
from panicd.cli.incident_commands import export, incident, incidents, panics
from panicd.cli.moment import SECONDS
from panicd.cli.render_changes import counted
from panicd.host.config import ConfigError, Places
from panicd.rules.guest_system import parse_kernel
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import EVERY_DOMAIN
from panicd.rules.qemu_args import Wanted, qemu_arguments

SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Return the exceptions themselves that nested groups hold."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


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
    help="What is logged: this, and what is graver.",
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
    from panicd.host.logs import configure, last_words  # noqa: PLC0415 - as above

    config = context.load()
    configure(level=log_level)
    problems: list[str] = []
    try:
        with last_words():
            daemon = Daemon(context.config_file, config, dry_run=dry_run)
            trio.run(daemon.run)
    except* (ConfigError, ControlSocketError, HttpBindError, JournalError, OSError) as errors:
        problems += map(str, _leaves(errors))
    if problems:  # what is raised within except* comes out in a group
        _fail("; ".join(problems))


@main.command()
@click.pass_obj
def check(context: Context) -> None:
    """Check the configuration; print every mistake with its line, and exit with 2.

    A monitor's glob that matches no socket now, and a program that it names and that is not on this
    machine, are warned of, and no mistake.
    """
    config = context.load()
    for warning in warnings(config):
        click.echo(f"{context.config_file}: {warning}", err=True)
    click.echo(f"{context.config_file}: good, {counted(len(config.domains), 'domain rule')}")


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

    DOMAIN is a name, a UUID, or the path of its monitor, which no other domain has.
    """
    answer = cast("render.Answer", context.ask("explain", domain=domain))
    return answer, lambda: render.explanation(answer)


WHY: Final = click.option("--why", required=True, help="The reason; it is kept in the journal.")


@main.command()
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
    return answer, lambda: render_changes.hold(cast("render.Answer", answer))


@main.command()
@click.argument("domain", required=False, shell_complete=_domain_names)
@click.option("--all", "whole_host", is_flag=True, help="End the maintenance of the host.")
@WHY
@_json_option
def unhold(
    context: Context, domain: str | None, whole_host: bool, why: str
) -> tuple[object, Callable[[], None]]:
    """End a hold: what is due is done at once."""
    answer = context.ask("unhold", domain=_held(domain, whole_host), why=why)
    return answer, lambda: render_changes.unhold(cast("render.Answer", answer))


@main.command()
@click.argument("domain", shell_complete=_domain_names)
@WHY
@_json_option
def release(context: Context, domain: str, why: str) -> tuple[object, Callable[[], None]]:
    """Let the panicked guest of DOMAIN run as it is (`cont`), as `act DOMAIN ignore` does."""
    answer = context.ask("release", domain=domain, why=why)
    return answer, lambda: render_changes.act(cast("render.Answer", answer))


@main.command()
@click.argument("domain", shell_complete=_domain_names)
@click.argument("action", type=click.Choice([str(value) for value in OnCrash]))
@WHY
@_json_option
def act(context: Context, domain: str, action: str, why: str) -> tuple[object, Callable[[], None]]:
    """Apply ACTION to the panicked guest of DOMAIN, whatever its policy, budget or hold say."""
    answer = context.ask("act", domain=domain, action=action, why=why)
    return answer, lambda: render_changes.act(cast("render.Answer", answer))


@main.command()
@click.argument("incident_id", metavar="INCIDENT", shell_complete=_incident_ids)
@WHY
@_json_option
def ack(context: Context, incident_id: str, why: str) -> tuple[object, Callable[[], None]]:
    """Note that INCIDENT was looked at."""
    answer = context.ask("ack", incident=incident_id, why=why)
    return answer, lambda: render_changes.ack(cast("render.Answer", answer))


@main.command()
@_json_option
def reload(context: Context) -> tuple[object, Callable[[], None]]:
    """Have the daemon read its configuration anew: all of it, or on a mistake nothing."""
    answer = context.ask("reload")
    return answer, lambda: render_changes.reload(cast("render.Answer", answer))


@main.command()
@fails_on_findings
@click.argument("socket_path", metavar="SOCKET", type=click.Path(path_type=Path))
@_json_option
def probe(context: Context, socket_path: Path) -> tuple[object, Callable[[], None]]:
    """Ask the VM behind a monitor SOCKET what it can do, and change nothing.

    Exit status 1 where what is configured for it could not be obeyed if it panicked.

    QEMU serves one client on each monitor: one that the daemon is connected to does not answer
    here. Ask `panicd explain` for such a domain.
    """
    from panicd.cli.probing import UnreachableMonitorError, probe_socket  # noqa: PLC0415 - slow to load

    try:
        answer = probe_socket(socket_path, context.load())
    except UnreachableMonitorError as error:
        _fail(str(error))
    note_findings(answer["exposed"])
    return answer, lambda: render.probe(answer)


@main.command()
@fails_on_findings
@_json_option
def audit(context: Context) -> tuple[object, Callable[[], None]]:
    """List every domain that could not be acted on if it panicked now, and what to do about it.

    Exit status 1 where there is one.
    """
    answer = cast("render.Answer", context.ask("audit"))
    note_findings(answer["exposed"])
    return answer, lambda: render.audit(answer)


@main.command()
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1, shell_complete=_domain_names)
@click.option(
    "--os",
    "system",
    default="",
    metavar="ID",
    help="What the guest runs: libosinfo's id, such as debian11, or linux, windows, freebsd.",
)
@click.option("--kernel", metavar="X.Y", help="The version of a Linux guest's kernel.")
@click.option("--libvirt", "uri", metavar="URI", help="The libvirt that has the domains.")
@_json_option
def advise(
    context: Context, domains: tuple[str, ...], system: str, kernel: str | None, uri: str | None
) -> tuple[object, Callable[[], None]]:
    """Say which panic device the guest of a libvirt DOMAIN can use, and what suits it.

    What it runs is known by libosinfo's id in libvirt's XML, by osinfo-query where that is
    installed, by the guest's agent, or by --os. Without DOMAIN: each that libvirt has, or --os
    alone. Nothing is changed.
    """
    from panicd.cli.advising import advise_on  # noqa: PLC0415 - slow to load
    from panicd.host.virsh import LibvirtError  # noqa: PLC0415 - as above

    version = parse_kernel(kernel) if kernel else None
    if kernel and version is None:
        raise click.BadParameter("expected a version such as 5.10", param_hint="--kernel")
    try:
        answer = advise_on(domains, uri or context.libvirt_uri, system, version)
    except LibvirtError as error:
        _fail(str(error))
    return answer, lambda: render.advice(answer)


@main.command("qemu-args")
@click.option("--name", required=True, help="The VM's name.")
@click.option(
    "--qemu-version",
    default="7.2",
    show_default=True,
    metavar="X.Y",
    callback=lambda _context, _parameter, text: _version(text),
    help="Of the QEMU that runs it.",
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
@click.option("--machine", default="", metavar="TYPE", help="Its machine type, as in -machine.")
@click.option("--pci", is_flag=True, help="For a machine without an ISA bus.")
@click.option("--no-notifier", is_flag=True, help="The guest is to report no panic.")
def qemu_args(  # noqa: PLR0917 - click calls it, each by its name
    name: str,
    qemu_version: tuple[int, int, int],
    directory: Path,
    dial_in: Path | None,
    machine: str,
    pci: bool,
    no_notifier: bool,
) -> None:
    """Print the arguments that a VM should be started with, a line each with its reason."""
    socket = dial_in or directory / f"{name}.qmp"
    wanted = Wanted(
        qemu_version,
        str(socket),
        dial_in=bool(dial_in),
        machine=machine,
        pci=pci,
        notifier=not no_notifier,
    )
    try:
        arguments = qemu_arguments(wanted)
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


for command in (incidents, incident, panics, export):
    main.add_command(command)


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


def _version(text: str) -> tuple[int, int, int]:
    numbers = text.split(".")
    if not all(number.isascii() and number.isdecimal() for number in numbers) or len(numbers) > 3:
        raise click.BadParameter("expected a version such as 7.2 or 10.0.2")
    major, minor, micro = [int(number) for number in (*numbers, "0", "0")[:3]]
    return major, minor, micro
