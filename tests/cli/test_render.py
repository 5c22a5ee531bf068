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
    render.incidents([INCIDENT, INCIDENT | {"panic_line": "bug check 0xa"}])
    shown = out.getvalue()
    assert r"Oops\u202e [bold]xxx" in shown
    assert "bug check 0xa" in shown
    assert shown.count(INCIDENT["id"]) == 2
    assert r"\x1b[2J[red]" in shown
    assert "\u202e" not in shown
    assert "\x1b[2J" not in shown


DOMAIN: dict[str, Any] = {
    "domain": "web",
    "connected": True,
    "silent": False,
    "spare_of": "",
    "problem": "",
    "run_state": "running",
    "armed": "yes",
    "panic_device": "requested",
    "on_crash": "restart",
    "effective_on_crash": "restart",
    "reason": "on-crash",
    "restarts_left": 3,
    "incident": "",
    "incident_state": "",
    "held_why": "",
    "beyond_signals": "",
    "dump": None,
}


def shown_status(monkeypatch: pytest.MonkeyPatch, **changed: object) -> str:
    out = StringIO()
    monkeypatch.setattr(render, "console", Terminal(file=out, width=200))
    answer: dict[str, Any] = {
        "now": 0.0,
        "journal_fault": None,
        "libvirt_problem": "",
        "problems": [],
        "passed_over": {},
        "domains": [],
        "waiting": [],
    }
    render.status(answer | changed)
    return out.getvalue()


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        ({}, "running    yes"),
        ({"panic_device": "none"}, "yes, but no panic device"),
        ({"silent": True}, "silent: QEMU does not answer (was running)"),
        ({"connected": False, "problem": "refused"}, "not connected: refused"),
        ({"connected": False, "problem": "stopped", "silent": True}, "silent: stopped"),
        ({"connected": False, "problem": "a second one", "spare_of": "db"}, "spare: a second one"),
    ],
)
def test_status_says_what_is_amiss_with_a_domain(
    monkeypatch: pytest.MonkeyPatch, domain: dict[str, object], says: str
) -> None:
    assert says in shown_status(monkeypatch, domains=[DOMAIN | domain])


def test_status_says_what_is_amiss_with_panicd(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_status(monkeypatch, problems=["/run/x: gone"], passed_over={"/run/a\x1b": "link"})
    assert "Problem: /run/x: gone" in shown
    assert r"Passed over: /run/a\x1b: link" in shown


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
    console = Terminal(file=out, width=width, force_terminal=True, no_color=True)
    monkeypatch.setattr(render, "console", console)
    render.panics([PANIC])
    shown = out.getvalue()
    for part in (
        "1-0a1b2c3d4e",
        "14",
        "9",
        PANIC["newest"],
        r"oops\x1b[2J in [red]queue_put < queue",
    ):
        assert part in shown
    assert "\x1b[2J" not in shown


def test_long_words_are_cut() -> None:
    assert render.short("Kernel panic - not syncing: Oops") == "Oops"
    assert render.short("x" * 65) == "x" * 63 + "…"
