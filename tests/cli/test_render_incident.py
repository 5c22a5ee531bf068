"""What `panicd incident ID` shows."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest

from panicd.cli.render_incident import duration, page, timeline
from panicd.host.terminal import Terminal


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0004, "0.4 ms"),
        (0.25, "250.0 ms"),
        (12.345, "12.35 s"),
        (61.0, "1 min 1 s"),
        (7200.0, "2 h"),
        (90061.0, "1 d 1 h 1 min 1 s"),
    ],
)
def test_durations_are_as_people_read_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_each_step_is_a_line_with_its_duration() -> None:
    moments = timeline(
        [
            {"kind": "opened", "at": 100.0, "source": "event"},
            {"kind": "step-begun", "at": 100.1, "index": 0, "step": "Collect"},
            {"kind": "repeated", "at": 100.2, "count": 3},
            {
                "kind": "step-ended",
                "at": 100.6,
                "index": 0,
                "step": "Collect",
                "outcome": "done",
                "detail": "\x1b[31m[bold]",
            },
            {"kind": "step-begun", "at": 101.0, "index": 1, "step": "Quit"},
        ]
    )
    assert [(m.what, m.took if m.took is None else round(m.took, 3)) for m in moments] == [
        ("opened", None),
        ("Collect", 0.5),
        ("repeated", None),
        ("Quit", None),
    ]
    assert moments[1].about.plain == r"done: \x1b[31m[bold]"
    assert "not ended" in moments[3].about.plain


def test_step_s_end_without_its_beginning_is_shown_all_the_same() -> None:
    end = {"kind": "step-ended", "at": 5.0, "index": 2, "step": "Kill", "outcome": "done"}
    assert [m.what for m in timeline([end | {"detail": ""}])] == ["step ended"]


PLAN: dict[str, Any] = {
    "on_crash": "restart",
    "unrequested": None,
    "action": "preserve",
    "reason": "held",
    "why": "an operator",
    "steps": [],
}
RECORD: dict[str, Any] = {
    "id": "20261123T040000-0a1b2c3d",
    "domain": "web-1",
    "uuid": "",
    "monitor": "/run/qemu/web-1.qmp",
    "opened_at": 1000.0,
    "closed_at": 1002.5,
    "source": "event",
    "payload": {
        "summary": "Windows bug check 0x0000000a: IRQL_NOT_LESS_OR_EQUAL",
        "members": [["arg1", "0xa"], ["arg2", "[red]"]],
        "missing": ["arg3"],
    },
    "panic_line": "Kernel panic - not syncing: Oops",
    "signature": {"title": "oops", "frames": ["queue_put", "[red]"], "hash": "1-0a1b2c3d4e"},
    "same": {
        "signature": "1-0a1b2c3d4e",
        "count": 14,
        "domains": 9,
        "first_at": 86400.0,
        "last_at": 1000.0,
        "newest": "x",
    },
    "repeats": 2,
    "state": "closed",
    "ending": "restarted",
    "acknowledged": {"uid": 0, "why": "ticket 42"},
    "history": [
        {"at": 1000.0, "kind": "opened", "source": "event"},
        {"at": 1000.0, "kind": "decided", "plan": PLAN},
        {"at": 1001.0, "kind": "decided", "plan": PLAN},
        {"at": 1002.0, "kind": "asked", "uid": 0, "what": "act destroy", "why": "it is [red]x"},
        {
            "at": 1002.0,
            "kind": "decided",
            "plan": PLAN | {"action": "destroy", "reason": "operator"},
        },
    ],
    "evidence_directory": "/var/lib/panicd/incidents/x",
    "evidence": {"files": {"screen.png": "the guest's screen"}, "problems": {"kernel log": "no"}},
    "screenshot": "/var/lib/panicd/incidents/x/screen.png",
    "dump": None,
    "dumps": ["/dumps/x.kdump"],
    "dump_facts": [
        {
            "path": "/dumps/x.kdump",
            "size": 17 << 20,
            "level": 31,
            "left_out": {"cache": 256, "cache_private": 512, "user": 0, "free": 25600},
            "reason": "it [red]lies",
            "open": ["crash vmlinux /dumps/x.kdump", "drgn -c /dumps/x.kdump"],
        }
    ],
}


def shown(**changed: Any) -> list[str]:
    text = StringIO()
    Terminal(text, 200, colours=False).print(*page(RECORD | changed, 4600.0, 200))
    return text.getvalue().splitlines()


def test_panic_line_comes_first_and_all_that_an_operator_asks_follows() -> None:
    lines = shown()
    payload = f"payload   {RECORD['payload']['summary']} (arg1 0xa, arg2 [red]); "
    payload += "not there, or malformed: arg3"
    assert lines[0] == "Kernel panic - not syncing: Oops"
    for line in (
        payload,
        "decided   preserve (on_crash restart, reason held: an operator)",
        "decided   destroy (root asked for it: it is [red]x)",
        "now       restarted, after 2.50 s",
        "ack       by root: ticket 42",
        "Dump        /dumps/x.kdump",
        "  17.0 MiB, level 31; left out: cache 1 MiB, cache private 2 MiB, free 100 MiB",
        "  less was left out than configured: it [red]lies",
        "  crash vmlinux /dumps/x.kdump",
        "  drgn -c /dumps/x.kdump",
        "Screenshot  /var/lib/panicd/incidents/x/screen.png",
        "Evidence    /var/lib/panicd/incidents/x",
        "  no kernel log: no",
    ):
        assert line in lines


def test_what_a_panic_is_known_by_is_shown_and_how_often_it_was_seen() -> None:
    def told(**changed: Any) -> list[str]:
        return [line for line in shown(**changed) if line.startswith(("panic ", "same "))]

    panic, same = told()
    assert panic == "panic     oops in queue_put < [red]"
    assert same.startswith("same      seen 14 times on 9 domains since 1970-01-0")
    assert same.endswith(" (1-0a1b2c3d4e)")
    once = RECORD["same"] | {"count": 1, "domains": 1}
    assert told(same=once)[1] == "same      not seen before (1-0a1b2c3d4e)"
    twice = RECORD["same"] | {"count": 2, "domains": 1}
    assert "seen 2 times on 1 domain since" in told(same=twice)[1]
    assert "too little is known" in told(same=None)[1]
    assert told(signature=None, same=None) == []


def test_open_incident_says_for_how_long() -> None:
    assert "now       preserved, open for 1 h" in shown(state="preserved", closed_at=None)


@pytest.mark.parametrize(
    ("name", "called"),
    [("web-1", "web-1"), ("$(reboot)", RECORD["monitor"]), ("-x", RECORD["monitor"])],
)
def test_open_incident_ends_with_the_commands_to_copy(name: str, called: str) -> None:
    lines = shown(state="preserved", closed_at=None, acknowledged=None, domain=name)
    assert lines[lines.index("Next:") :] == [
        "Next:",
        f'  panicd act {called} restart --why "evidence taken"',
        f'  panicd act {called} destroy --why "not needed"',
        f'  panicd release {called} --why "it may run on"',
        f'  panicd hold {called} --for 2h --why "looking at it"',
        f'  panicd ack {RECORD["id"]} --why "looked at"',
    ]
    assert "panicd ack" not in shown(state="preserved", closed_at=None)[-1]
    assert "Next:" not in shown()


def test_evidence_that_is_not_there_is_said_to_be_so() -> None:
    removed = {"files": {}, "problems": {}, "removed": {"at": 2000.0, "why": "one too many"}}
    (line,) = [line for line in shown(evidence=removed) if "removed" in line]
    assert line.endswith(": one too many")
    assert any("No evidence was kept" in line for line in shown(evidence=None))


def test_evidence_that_was_taken_and_not_written_is_said_to_be_lost() -> None:
    step = {"index": 0, "step": "Collect", "at": 1.0}
    begun = {"kind": "step-begun", **step}
    ended = {"kind": "step-ended", "outcome": "done", "detail": "", **step}
    lines = shown(history=[begun, ended], evidence=None)
    assert any("The evidence is not on the disk: panicd ended before" in line for line in lines)
    assert not any("No evidence was kept" in line for line in lines)
    failed = shown(history=[begun, ended | {"outcome": "failed"}], evidence=None)
    assert any("No evidence was kept" in line for line in failed)


def test_dump_that_is_not_there_any_more_is_missed() -> None:
    times = {"index": 0, "step": "Dump"}
    history = [
        {"kind": "step-begun", "at": 1.0, **times},
        {"kind": "step-ended", "at": 2.0, "outcome": "done", "detail": "/dumps/x", **times},
    ]
    lines = shown(history=history, dumps=[])
    assert any("dump is no longer there" in line for line in lines)
    assert not any("no longer" in line for line in shown(history=history))
    failed = [history[0], history[1] | {"outcome": "failed"}]
    assert not any("no longer" in line for line in shown(history=failed, dumps=[]))
