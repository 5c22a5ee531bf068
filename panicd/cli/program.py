"""The program: its options, and where each of its commands is.

Exit status: 0 done, 1 failed, 2 bad usage or configuration.
"""

from typing import Final

import click

from panicd import __version__
from panicd.cli.base import Context, shared_options
from panicd.cli.deferred import Deferred, DeferringGroup

SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

COMMANDS: Final = {
    "Look": {
        "status": ("commands:status", "Show every domain, the worst first."),
        "incidents": ("incident_commands:incidents", "List incidents, the newest first."),
        "incident": (
            "incident_commands:incident",
            "Show one incident, from the panic to its end.",
        ),
        "panics": (
            "incident_commands:panics",
            "List the different panics, and how often each was seen.",
        ),
        "explain": (
            "commands:explain",
            "Show what panicd would do if DOMAIN panicked now, and why.",
        ),
        "audit": ("commands:audit", "List the domains that panicd could not act on, and why."),
        "export": (
            "incident_commands:export",
            "Pack all that is known of INCIDENT into one archive.",
        ),
    },
    "Decide": {
        "ack": ("operator_commands:ack", "Note that somebody has looked at INCIDENT."),
        "act": ("operator_commands:act", "Apply ACTION to the panicked guest of DOMAIN."),
        "release": (
            "operator_commands:release",
            "Let the panicked guest of DOMAIN run as it is (`cont`).",
        ),
        "hold": (
            "operator_commands:hold",
            "Suspend automation for a domain, or for the whole host.",
        ),
        "unhold": (
            "operator_commands:unhold",
            "End a hold. panicd then acts on panics of that time.",
        ),
        "arm": (
            "operator_commands:arm",
            "Give the VM of DOMAIN a panic device while it runs.",
        ),
        "disarm": (
            "operator_commands:disarm",
            "Take away the panic device that `panicd arm` gave the VM of DOMAIN.",
        ),
    },
    "Run the daemon": {
        "run": ("running:run", "Run the daemon, in the foreground."),
        "check": ("checking:check", "Check the configuration, and print every mistake."),
        "reload": ("commands:reload", "Make the daemon read its configuration again."),
    },
    "Set up VMs": {
        "qemu-args": ("arguments:qemu_args", "Print the arguments to start a VM with, and why."),
        "probe": (
            "probing:probe_command",
            "Ask a VM at its monitor what it can do, and change nothing.",
        ),
        "advise": (
            "advising:advise_command",
            "Say which panic device the guest of a libvirt domain can use.",
        ),
        "demo": (
            "demonstrating:demo",
            "Let guests of real QEMUs panic, and show what panicd does.",
        ),
    },
}
"""The commands by their purpose: where each is, below, and the first sentence of its help."""


@click.group(cls=DeferringGroup, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="panicd")
@click.pass_context
def main(context: click.Context) -> None:
    """Applies your crash policy when a guest's kernel panics.

    \b
    Begin with:
      panicd qemu-args --name web-1     how to start a VM so that panicd can act
      panicd check                      is the configuration right?
      panicd run                        the daemon
      panicd status                     what it sees
      panicd explain web-1              what it would do about a panic, and why
      panicd hold web-1 --why "…"       leave web-1 alone for now
    """  # noqa: D301 - \b is click's, not an escape
    context.obj = Context(context.meta)


main.params += shared_options(of_program=True)
for purpose, commands in COMMANDS.items():
    for name, (place, told) in commands.items():
        main.add_command(Deferred(name, told, f"panicd.cli.{place}", purpose))
