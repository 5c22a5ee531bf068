"""What the demonstration prints: plain lines, for people who have seen neither QMP nor panicd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from panicd.demo.qmp import Message
from panicd.demo.scene import Answer, Scene, stamp
from panicd.host.terminal import Part, Terminal, Text, line

_WIDTH_WITHOUT_TERMINAL: Final = 120
_INDENT: Final = 10  # columns before what is said of a VM
_STYLE_OF: Final = {"proof": "green", "fault": "red"}
_IDLE_SECONDS: Final = 0.05

_WORD_OF_EVENT: Final = {
    "GUEST_PANICKED": "action",
    "SHUTDOWN": "reason",
    "RESET": "reason",
}
"""What of an event's data is shown (QAPI run-state.json)."""


class OutputClosedError(Exception):
    """Nobody reads the output any more."""


class Report:
    """Prints, to the terminal or wherever the output goes.

    Every method raises OutputClosedError if nobody reads it any more.
    """

    def __init__(self) -> None:
        self.console = Terminal()

    @property
    def width(self) -> int:
        """How many columns there are."""
        return self.console.width or _WIDTH_WITHOUT_TERMINAL

    @contextmanager
    def _read_by_somebody(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            # At its end Python writes once more what its buffer has, and fails then (Python's
            # documentation of signal, 'Note on SIGPIPE').
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.console.file.fileno())
            raise OutputClosedError from error

    def say(self, *parts: Part) -> None:
        """Print a line."""
        with self._read_by_somebody():
            self.console.print(line(*parts))
            self.console.file.flush()

    def fault(self, text: str) -> None:
        """Print what went wrong."""
        self.say(("✘", "bold red"), " ", text)

    def typed(self, command: str, printed: str) -> None:
        """Print a command, and what it printed."""
        self.say("")
        self.say((f"$ {command}", "bold"))
        with self._read_by_somebody():
            self.console.file.write(printed)

    def scene(self, scene: Scene) -> None:
        """Print what became of one VM."""
        case = scene.case
        mark = ("✔", "bold green") if scene.proven else ("✘", "bold red")
        self.say("")
        self.say(mark, " ", (case.name, "bold"), f": {case.about}")
        rows = [("config", line(_flow(case.rule)))]
        if scene.events:
            rows.append(("QEMU", line(_qemu(scene))))
        rows.append(("panicd", _panicd(scene)))
        rows += [("proof", line(proof)) for proof in scene.proofs]
        if scene.fault:
            rows.append(("fault", line((scene.fault, "red"))))
        for name, text in rows:
            first, *rest = text.folded(self.width - _INDENT)
            self.say("  ", (f"{name:7} ", _STYLE_OF.get(name, "dim")), first)
            for more in rest:
                self.say(" " * _INDENT, more)


def _qemu(scene: Scene) -> str:
    """What QEMU did, each event with the time since the panic."""
    seen = [f"{_event(event)} {_after(scene, stamp(event))}" for event in scene.events]
    if scene.gone_at is not None:
        seen.append(f"process gone {_after(scene, scene.gone_at)}")
    return " · ".join(seen)


def _event(event: Message) -> str:
    name = str(event["event"])
    word = event.get("data", {}).get(_WORD_OF_EVENT.get(name))
    return f"{name} ({word})" if word else name


def _panicd(scene: Scene) -> Text:
    """What panicd decided and did."""
    incident = scene.incident
    if incident is None:
        return line("no incident")
    decision = incident["decisions"][-1]
    told = f"by {incident['source']} {_after(scene, incident['opened_at'])}"
    steps = [_step(scene, step) for step in incident["steps"] if not _is_idle(step)]
    became = incident["ending"] or incident["state"]
    return line(
        f"{told} · ",
        (decision["action"], "bold"),
        f" ({decision['reason']})",
        *(part for step in steps for part in (" · ", step)),
        " → ",
        (became, "bold"),
    )


def _is_idle(step: Answer) -> bool:
    """Whether the step had nothing to do and took no time."""
    if step["outcome"] != "skipped":
        return False
    return bool(step["ended_at"] - step["begun_at"] < _IDLE_SECONDS)


def _step(scene: Scene, step: Answer) -> Text:
    """One step, and when it had ended; also how, if it was not simply done."""
    ended = "" if step["outcome"] in {None, "done"} else f" {step['outcome']}"
    when = f" {_after(scene, step['ended_at'])}" if step["ended_at"] else ""
    return line(step["step"], (ended, "yellow"), when)


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
