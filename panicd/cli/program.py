"""The program: its options, and where each of its commands is.

Exit status: 0 done, 1 failed, 2 bad usage or configuration.
"""

from pathlib import Path
from typing import Final

import click

from panicd import __version__
from panicd.cli.base import Context
from panicd.cli.deferred import Deferred, DeferringGroup
from panicd.config.places import Places

SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

COMMANDS: Final = {
    "run": ("running:run", "Run the daemon, in the foreground."),
    "check": (
        "checking:check",
        "Check the configuration; print every mistake with its line, and exit with 2.",
    ),
    "status": (
        "commands:status",
        "Show every domain: whether it is armed, what a panic would lead to, what is open.",
    ),
    "explain": (
        "commands:explain",
        "Show what a panic of DOMAIN would lead to now, step by step, and why.",
    ),
    "hold": (
        "commands:hold",
        "Suspend automation for DOMAIN: its panics are recorded, and nothing is done about them.",
    ),
    "unhold": ("commands:unhold", "End a hold: what is due is done at once."),
    "release": (
        "commands:release",
        "Let the panicked guest of DOMAIN run as it is (`cont`), as `act DOMAIN ignore` does.",
    ),
    "act": (
        "commands:act",
        "Apply ACTION to the panicked guest of DOMAIN, whatever its policy, budget or hold say.",
    ),
    "ack": ("commands:ack", "Note that INCIDENT was looked at."),
    "reload": (
        "commands:reload",
        "Have the daemon read its configuration anew: all of it, or on a mistake nothing.",
    ),
    "probe": (
        "probing:probe_command",
        "Ask the VM behind a monitor SOCKET what it can do, and change nothing.",
    ),
    "audit": (
        "commands:audit",
        "List every domain that could not be acted on if it panicked now, and what to do about it.",
    ),
    "advise": (
        "advising:advise_command",
        "Say which panic device the guest of a libvirt DOMAIN can use, and what suits it.",
    ),
    "demo": (
        "demonstrating:demo",
        "Start real QEMUs whose guests panic, and show what panicd does with each policy.",
    ),
    "incidents": ("incident_commands:incidents", "List incidents, the newest first."),
    "incident": (
        "incident_commands:incident",
        "Show INCIDENT from the panic to its end: what was seen, decided and done, and when.",
    ),
    "panics": (
        "incident_commands:panics",
        "List the panics that were told from each other: how often each was seen, and where.",
    ),
    "export": (
        "incident_commands:export",
        "Write all that is known of INCIDENT into one archive, to send to whoever debugs it.",
    ),
    "qemu-args": (
        "arguments:qemu_args",
        "Print the arguments that a VM should be started with, a line each with its reason.",
    ),
}
"""Where each command is, in which module below, and the first sentence of its help."""


@click.group(cls=DeferringGroup, context_settings=SETTINGS)
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


for name, (place, told) in COMMANDS.items():
    main.add_command(Deferred(name, told, f"panicd.cli.{place}"))
