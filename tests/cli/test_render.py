"""What the commands print for people, on terminals of every width."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest

from panicd.cli import phrases, render
from panicd.host import terminal
from panicd.host.terminal import Terminal, line, table, to_copy, width_of

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


def test_the_reason_is_told_before_the_action_where_there_is_little_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = StringIO()
    monkeypatch.setattr(terminal, "console", Terminal(file=out, width=80, colours=False))
    decided = {"action": "preserve", "reason": "crash-loop"}
    waits = {"domain": "web-1", "ending": None, "state": "preserved", "decisions": [decided]}
    render.incidents([INCIDENT | waits], 1795408999.0)
    headings, row = out.getvalue().splitlines()
    assert headings.split() == ["INCIDENT", "DOMAIN", "STATE", "AGE", "REASON", "PANIC", "LINE"]
    assert row.split()[1:5] == ["web-1", "preserved", "9s", "crash-loop"]


PATH = "/var/lib/panicd/coredumps/107/web-1/" + "x" * 90


@pytest.mark.parametrize("width", [40, 80])
def test_a_path_in_a_table_is_not_broken(width: int) -> None:
    told = f"done: {PATH} is the dump, as configured, and nobody else has one like it"
    rows = [*table(("AFTER", "ABOUT"), [("1 s", told), ("2 s", PATH)], width)]
    lines = [*Terminal(file=StringIO(), width=width, colours=False).lines(rows)]
    assert sum(PATH in line for line in lines) == 2
    assert all(width_of(line) <= width for line in lines if PATH not in line)
    assert " ".join(" ".join(lines[1:-1]).split()) == f"1 s {told}", lines


EXPLAINED: dict[str, Any] = {
    "status": {
        "domain": "web-1", "uuid": "", "monitor": "/vm.qmp", "silent": False, "problem": "gone",
        "incident": "20261123T044310-42eeaf45", "incident_state": "preserved",
    },
    "plan": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "how"),
    [
        ("preserved", "the guest is stopped"),
        ("watched", "the guest handles its panic itself"),
        ("acting", "panicd is at work"),
    ],
)
def test_explain_says_first_that_an_incident_is_open(
    monkeypatch: pytest.MonkeyPatch, state: str, how: str
) -> None:
    def explained(**changed: str) -> list[str]:
        out = StringIO()
        monkeypatch.setattr(terminal, "console", Terminal(file=out, width=120, colours=False))
        render.explanation(EXPLAINED | {"status": EXPLAINED["status"] | changed})
        return out.getvalue().splitlines()

    said = f"incident      20261123T044310-42eeaf45 is open: {how}."
    assert explained(incident_state=state)[1] == said
    assert explained(incident="", incident_state="", monitor=PATH)[1] == f"monitor       {PATH}"


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
