"""What the commands print for people, on terminals of every width."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest

from panicd.cli import phrases, render
from panicd.host import terminal
from panicd.host.terminal import Terminal, line, to_copy

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
    monkeypatch.setattr(terminal, "console", Terminal(file=out, width=width, colours=False))
    render.incidents([INCIDENT, INCIDENT | {"panic_line": "bug check 0xa"}], 1795408999.0)
    shown = out.getvalue()
    assert r"Oops\u202e [bol" in shown
    assert "bug check 0xa" in shown
    assert shown.count(INCIDENT["id"]) == 2
    assert r"\x1b[2J[red]" in shown
    assert "\u202e" not in shown
    assert "\x1b[2J" not in shown


PANIC: dict[str, Any] = {
    "signature": "1-0a1b2c3d4e", "count": 14, "domains": 9, "first_at": 1795308990.0,
    "last_at": 1795408990.0, "newest": "20261123T044310-42eeaf45", "title": "oops\x1b[2J",
    "frames": ["[red]queue_put", "queue_flush"],
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 120, 240])
def test_each_panic_is_told_with_how_often_it_was_seen(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    out = StringIO()
    monkeypatch.setattr(terminal, "console", Terminal(file=out, width=width, colours=False))
    render.panics([PANIC])
    shown = out.getvalue()
    for part in (
        "1-0a1b2c3d4e",
        "14",
        "9",
        PANIC["newest"],
        r"oops\x1b[2J in [red]que",
    ):
        assert part in shown
    assert "\x1b[2J" not in shown


def test_long_words_are_cut() -> None:
    assert phrases.short("Kernel panic - not syncing: Oops") == "Oops"
    assert phrases.short("x" * 65) == "x" * 63 + "…"


@pytest.mark.parametrize("width", [40, 80])
def test_what_is_to_be_copied_stays_one_line(width: int) -> None:
    command = "crash /usr/lib/debug/boot/vmlinux-VERSION " + "x" * 100
    text = Terminal(file=StringIO(), width=width, colours=False)
    first, *folded = text.lines([to_copy(command), line("a word " * 20)])
    assert first == command
    assert all(len(each) <= width for each in folded)
