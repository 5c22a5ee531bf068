"""What is printed can neither be taken for markup nor act on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.cli import render, render_incident, render_status
from panicd.cli.selecting import Wanted
from panicd.host import terminal
from panicd.host.terminal import Terminal, line
from tests.parts.commands import ask, panicd
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu

HOSTILE = ":skull: [red]x[/red] [/] \x1b[2J\x07\x00\u202e\u2066\n\ud800"
SHOWN = r":skull: [red]x[/red] [/] \x1b[2J\x07\x00\u202e\u2066\n\ud800"

DUMP = {
    "state": "writing",
    "since": 0.0,
    "total": 0,
    "done": 1,
    "rate": 1,
    "left": None,
    "left_out": 1 << 30,
    "written": 1,
    "expected": None,
    "ahead": 0,
}
DOMAIN: dict[str, Any] = {
    **dict.fromkeys(("domain", "uuid", "monitor", "problem", "run_state", "qemu_version"), HOSTILE),
    **dict.fromkeys(("armed", "panic_device", "on_crash", "effective_on_crash"), HOSTILE),
    **dict.fromkeys(("reason", "incident", "incident_state", "incident_reason"), HOSTILE),
    **dict.fromkeys(("held_why", "libvirt"), HOSTILE),
    "connected": True,
    "standing": "silent",
    "since": 0.0,
    "silent_since": 0.0,
    "opened_at": 0.0,
    "acknowledged": False,
    "panic_line": HOSTILE,
    "silent": True,
    "spare_of": "",
    "beyond_signals": HOSTILE,
    "held_until": 1.0,
    "restarts_left": 1,
    "inherited": False,
    "dump": DUMP,
}
PLAN: dict[str, Any] = {
    **dict.fromkeys(("action", "on_crash", "unrequested", "reason", "why"), HOSTILE),
    "steps": [{"step": HOSTILE, "timeout": 1.0, "on_failure": HOSTILE, "does": HOSTILE}],
    "at_once": [1, 2],
}
KINDS = ("opened", "decided", "settled", "closed", "asked", "acknowledged", "observed", HOSTILE)
INCIDENT: dict[str, Any] = {
    **dict.fromkeys(("id", "domain", "uuid", "monitor", "source", "state", "panic_line"), HOSTILE),
    "opened_at": 0.0,
    "closed_at": None,
    "ending": None,
    "repeats": 1,
    "information": None,
    "signature": {"hash": HOSTILE, "title": HOSTILE, "frames": [HOSTILE]},
    "same": {"count": 2, "domains": 1, "first_at": 0.0},
    "payload": {"summary": HOSTILE, "members": [[HOSTILE, HOSTILE]], "missing": [HOSTILE]},
    "decisions": [PLAN],
    "acknowledged": {"uid": 0, "why": HOSTILE},
    "history": [
        *({"kind": "step-begun", "at": 0.0, "index": i, "step": HOSTILE} for i in (0, 1)),
        *(
            {
                "kind": "step-ended",
                "at": 0.0,
                "index": i,
                "step": "Dump",
                "outcome": HOSTILE,
                "detail": HOSTILE,
            }
            for i in (0, 2)
        ),
        *(
            {
                **dict.fromkeys(("source", "state", "ending", "detail", "what", "why"), HOSTILE),
                "kind": kind,
                "at": 0.0,
                "uid": 0,
                "plan": PLAN,
            }
            for kind in KINDS
        ),
    ],
    "evidence": {"files": {HOSTILE: HOSTILE}, "problems": {HOSTILE: HOSTILE}},
    "evidence_directory": HOSTILE,
    "screenshot": HOSTILE,
    "dump": DUMP,
    "dumps": [HOSTILE],
    "dump_facts": [
        {
            "path": HOSTILE,
            "size": 1,
            "level": 31,
            "left_out": {"free": 1},
            "reason": HOSTILE,
            "open": [HOSTILE],
        }
    ],
}
STATUS: dict[str, Any] = {
    "journal_fault": HOSTILE,
    "journal_damaged": True,
    "storm": True,
    "libvirt_problem": HOSTILE,
    "problems": [HOSTILE],
    "passed_over": {HOSTILE: HOSTILE},
    "now": 1.0,
    "domains": [
        DOMAIN,
        DOMAIN | {"connected": False, "dump": None},
        DOMAIN | {"connected": False, "dump": None, "spare_of": HOSTILE},
    ],
    "dry_run": True,
    "waiting": [DOMAIN | {"connected": False, "dump": None, "monitor": "other"}],
}
PROBED: dict[str, Any] = {
    **DOMAIN,
    "name": HOSTILE,
    "device_types": [HOSTILE],
    "why": HOSTILE,
    "libvirt_acts": True,
    "libvirt_problem": HOSTILE,
    "policies": [PLAN],
    "on_crash_applies": False,
    "unrequested": HOSTILE,
    "configured": PLAN,
    "remedies": [HOSTILE],
}
EXPLAINED: dict[str, Any] = {
    "status": DOMAIN,
    "plan": PLAN,
    "device_types": [HOSTILE],
    "then": PLAN,
    "budget": {"used": 0, "left": 3},
    "plugged": True,
    "work": "idle",
}
ADVISED: dict[str, Any] = {
    **dict.fromkeys(("domain", "device", "arguments", "libvirt", "why"), HOSTILE),
    **dict.fromkeys(("ignore", "grace", "kdump"), HOSTILE),
    "system": dict.fromkeys(("id", "name", "known_by"), HOSTILE),
    "has": [HOSTILE],
    "support": [dict.fromkeys(("device", "verdict", "why", "source"), HOSTILE)],
}
GROUP: dict[str, Any] = {
    **dict.fromkeys(("signature", "newest", "title"), HOSTILE),
    "frames": [HOSTILE],
    "count": 2,
    "domains": 1,
    "first_at": 0.0,
    "last_at": 1.0,
}
EXPOSED = {"domain": HOSTILE, "pid": 7, "on_crash": HOSTILE, "reasons": {HOSTILE: HOSTILE}}
COMMANDS: dict[str, Callable[[], None]] = {
    "status": partial(render_status.status, Wanted().select(STATUS), everything=True),
    "explain": partial(render.explanation, EXPLAINED),
    "explain, not connected": partial(render.explanation, EXPLAINED | {"plan": None}),
    "incidents": partial(render.incidents, [INCIDENT], 9.0),
    "panics": partial(render.panics, [GROUP]),
    "probe": partial(render.probe, PROBED),
    "audit": partial(render.audit, {"domains": 1, "exposed": [EXPOSED]}),
    "advise": partial(render.advice, [ADVISED, ADVISED | {"device": ""}]),
    "incident": lambda: terminal.console.print(
        *render_incident.page(INCIDENT, 9.0, terminal.console.width)
    ),
}
"""What each command prints of an answer in which every text is hostile."""


@pytest.mark.parametrize("width", [80, 240])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_text_acts_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    out = StringIO()
    monkeypatch.setattr(terminal, "console", Terminal(file=out, width=width, colours=False))
    COMMANDS[command]()
    shown = out.getvalue()
    assert all(map(str.isprintable, shown.split("\n")))
    assert ":skull:" in shown
    assert "[red]" in shown
    assert "\N{SKULL}" not in shown


def test_line_keeps_texts_and_styles_apart() -> None:
    made = line(HOSTILE, (HOSTILE, "bold"), line("ok"))
    assert made.plain == SHOWN + SHOWN + "ok"
    assert made.pieces == ((SHOWN, ""), (SHOWN, "bold"), ("ok", ""))


async def test_domain_with_a_hostile_name(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", name=HOSTILE)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_log("domain connected")
        vm.panic()
        incident = await daemon.wait_log("incident stays open")
        await daemon.call("ack", incident=incident["incident"], why="it is in the journal by now")
        answers = [
            await ask(daemon, *words)
            for words in (["status"], ["incidents"], ["incident", incident["incident"]])
        ]
        refused = await trio.to_thread.run_sync(
            panicd, "--config", daemon.config_file, "release", HOSTILE[:10] + "\x1b", "--why", "x"
        )
        for answer in answers:
            assert SHOWN in answer
        for answer in (*answers, refused.output):
            assert all(map(str.isprintable, answer.split("\n")))
