"""What the commands that change something print about it."""

from collections.abc import Sequence
from typing import Final

from panicd.cli.moment import written_time
from panicd.cli.phrases import counted
from panicd.host import terminal
from panicd.rules.operation import EVERY_DOMAIN
from panicd.rules.plugging import CONSEQUENCES
from panicd.service.control_client import Answer

NAMED: Final = 10
"""How many domains are named; of more, only their number."""

HOST: Final = "the whole host"


def hold(answer: Answer) -> None:
    """Print what ``panicd hold`` did."""
    until = answer["until"]
    end = "until `panicd unhold`" if until is None else f"until {written_time(until)}"
    terminal.console.print(f"Held {end}: {_called(answer)}.")
    if not answer["domains"]:
        terminal.console.print("No domain matches now. panicd will hold one that comes.")
    elif answer["domains"] != [answer["domain"]]:
        terminal.console.print(f"It matches {_domains(answer['domains'])}.")


def unhold(answer: Answer) -> None:
    """Print what ``panicd unhold`` did."""
    terminal.console.print(f"No longer held: {_called(answer)}.")
    if still := answer["still_held"]:
        terminal.console.print(
            f"Another hold still matches {_domains(still)}; see `panicd status`."
        )


def act(answer: Answer) -> None:
    """Print what ``panicd act`` and ``panicd release`` did."""
    name, incident = answer["domain"], f"incident {answer['incident']}"
    if not answer["done"]:
        terminal.console.print(f"{name}: not done yet; see `panicd incidents --open`.")
    elif answer["ending"]:
        terminal.console.print(f"{name}: {answer['ending']}; {incident} is closed.")
    else:
        terminal.console.print(f"{name}: {answer['state']}; {incident} stays open.")


def arm(answer: Answer) -> None:
    """Print what ``panicd arm`` did."""
    name, out = answer["domain"], terminal.console
    if answer["taken"]:
        out.print(f"{name}: the panic device is plugged in, and its guest has taken it.")
    else:
        out.print(
            f"{name}: the panic device is plugged in; its guest has not taken it yet. It needs the "
            "driver (Linux: modprobe pvpanic-pci)."
        )
    out.print(f"It is -device {answer['argument']}.")
    out.print(*CONSEQUENCES.splitlines())


def disarm(answer: Answer) -> None:
    """Print what ``panicd disarm`` did."""
    terminal.console.print(f"{answer['domain']}: the panic device is removed.")


def ack(answer: Answer) -> None:
    """Print what ``panicd ack`` did."""
    terminal.console.print(f"Acknowledged: incident {answer['incident']} of {answer['domain']}.")


def reload(answer: Answer) -> None:
    """Print what ``panicd reload`` did."""
    monitors = counted(answer["monitors"], "monitor")
    terminal.console.print(f"In force: {monitors}, {counted(answer['rules'], 'domain rule')}.")
    changed = answer["domains"]
    whose = f"The policy of {_domains(changed)}" if changed else "No domain's policy"
    terminal.console.print(f"{whose} changed.")
    for key in answer["at_next_start"]:
        terminal.console.print(f"{key} takes effect at the next start.")


def _called(answer: Answer) -> str:
    return HOST if answer["domain"] == EVERY_DOMAIN else str(answer["domain"])


def _domains(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return ", ".join(names)
