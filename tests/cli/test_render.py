"""What the commands print for people, on terminals of every width."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest

from panicd.cli import render
from panicd.cli.terminal import Terminal

INCIDENT: dict[str, Any] = {
    "id": "20261123T044310-42eeaf45",
    "domain": "web\x1b[2J[red]",
    "opened_at": 1795408990.0,
    "source": "event",
    "repeats": 0,
    "decisions": [{"action": "restart", "reason": "on-crash"}],
    "ending": "restarted",
    "state": "closed",
    "acknowledged": None,
    "panic_line": "Kernel panic - not syncing: Oops\u202e [bold]" + "x" * 200,
    "information": None,
    "payload": {"summary": "none"},
}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_each_incident_has_its_words(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    out = StringIO()
    console = Terminal(file=out, width=width, force_terminal=True, no_color=True)
    monkeypatch.setattr(render, "console", console)
    bug_check = {"panic_line": "", "information": {}, "payload": {"summary": "bug check 0xa"}}
    bug_check["information"] = {"type": "hyper-v"}
    render.incidents([INCIDENT, INCIDENT | bug_check])
    shown = out.getvalue()
    assert r"Oops\u202e [bold]xxx" in shown
    assert "bug check 0xa" in shown
    assert shown.count(INCIDENT["id"]) == 2
    assert r"\x1b[2J[red]" in shown
    assert "\u202e" not in shown
    assert "\x1b[2J" not in shown


def test_long_words_are_cut() -> None:
    assert render.short("Kernel panic - not syncing: Oops") == "Oops"
    assert render.short("x" * 65) == "x" * 63 + "…"
