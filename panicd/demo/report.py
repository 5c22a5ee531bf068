"""What the demonstration prints: plain lines, for people who have seen neither QMP nor panicd."""

from __future__ import annotations

import os
from typing import Final, NoReturn

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from panicd.demo.qmp import Message
from panicd.demo.scene import Answer, Scene, stamp
from panicd.rules.printable import escape

_WIDTH_WITHOUT_TERMINAL: Final = 120
_IDLE_SECONDS: Final = 0.05

_WORD_OF_EVENT: Final = {
    "GUEST_PANICKED": "action",
    "SHUTDOWN": "reason",
    "RESET": "reason",
}
"""What of an event's data is shown (QAPI run-state.json)."""


class OutputClosedError(Exception):
    """Nobody reads what is printed any more."""


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """End as an error does, and not in the midst of everything."""
        try:
            super().on_broken_pipe()
        except SystemExit as error:
            raise OutputClosedError from error
        raise AssertionError("rich exits on a broken pipe")


class Report:
    """Prints, to the terminal or wherever the output goes.

    Every method raises OutputClosedError where nobody reads it any more.
    """

    def __init__(self) -> None:
        self.console = _Console(highlight=False, emoji=False)
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = _WIDTH_WITHOUT_TERMINAL

    def say(self, text: str) -> None:
        """Print a line; ``text`` may have markup."""
        self.console.print(text, soft_wrap=True)

    def fault(self, text: str) -> None:
        """Print what went wrong."""
        self.console.print(f"[bold red]✘[/] {_plain(text)}", soft_wrap=True)

    def typed(self, command: str, printed: str) -> None:
        """Print a command, and what it printed."""
        self.console.print(f"\n[bold]$ {command}[/]")
        self.console.out(printed, end="", highlight=False)

    def scene(self, scene: Scene) -> None:
        """Print what became of one VM."""
        case = scene.case
        mark = "[bold green]✔[/]" if scene.proven else "[bold red]✘[/]"
        self.console.print(f"\n{mark} [bold]{case.name}[/]: {case.about}")
        table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 0, 0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("config", _plain(_flow(case.rule)))
        if scene.events:
            table.add_row("QEMU", _plain(_qemu(scene)))
        table.add_row("panicd", _panicd(scene))
        for proof in scene.proofs:
            table.add_row("[green]proof[/]", _plain(proof))
        if scene.fault:
            table.add_row("[red]fault[/]", f"[red]{_plain(scene.fault)}[/]")
        self.console.print(table)


def _qemu(scene: Scene) -> str:
    """What QEMU was seen to do, each with the time since the panic."""
    seen = [f"{_event(event)} {_after(scene, stamp(event))}" for event in scene.events]
    if scene.gone_at is not None:
        seen.append(f"process gone {_after(scene, scene.gone_at)}")
    return " · ".join(seen)


def _event(event: Message) -> str:
    name = str(event["event"])
    word = event.get("data", {}).get(_WORD_OF_EVENT.get(name))
    return f"{name} ({word})" if word else name


def _panicd(scene: Scene) -> str:
    """What panicd decided and did."""
    incident = scene.incident
    if incident is None:
        return "no incident"
    decision = incident["decisions"][-1]
    told = f"by {incident['source']} {_after(scene, incident['opened_at'])}"
    decided = f"[bold]{decision['action']}[/] ({decision['reason']})"
    steps = [_step(scene, step) for step in incident["steps"] if not _is_idle(step)]
    became = incident["ending"] or incident["state"]
    return f"{' · '.join([told, decided, *steps])} → [bold]{became}[/]"


def _is_idle(step: Answer) -> bool:
    """Whether there was nothing to do and no time was spent on it."""
    if step["outcome"] != "skipped":
        return False
    return bool(step["ended_at"] - step["begun_at"] < _IDLE_SECONDS)


def _step(scene: Scene, step: Answer) -> str:
    """One step, and when it had ended; how, where it was not simply done."""
    ended = "" if step["outcome"] in {None, "done"} else f" [yellow]{step['outcome']}[/]"
    when = f" {_after(scene, step['ended_at'])}" if step["ended_at"] else ""
    return f"{step['step']}{ended}{when}"


def _after(scene: Scene, moment: float) -> str:
    milliseconds = (moment - scene.panicked_at) * 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _flow(rule: object) -> str:
    """A rule as YAML has it on one line, without the outer braces."""
    if not isinstance(rule, dict):
        return str(rule)
    return ", ".join(
        f"{key}: {{{_flow(value)}}}" if isinstance(value, dict) else f"{key}: {value}"
        for key, value in rule.items()
    )


def _plain(text: str) -> str:
    return escape_markup(escape(text))
