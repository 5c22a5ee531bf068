"""What ``panicd status`` shows: 200 domains, and the three that need somebody."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from panicd.cli import render_status
from panicd.cli.selecting import SORTED_BY, Wanted
from panicd.host import terminal
from panicd.host.terminal import Terminal, width_of
from panicd.rules.standing import PROBLEMS, Standing
from tests.parts.background import background
from tests.parts.commands import FAILED, ask, ask_json
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_2_8

ID = "20261123T044310-42eeaf45"
DOMAIN: dict[str, Any] = {
    "domain": "web",
    "standing": "ready",
    "uuid": "",
    "monitor": "",
    "connected": True,
    "problem": "",
    "since": 1000.0,
    "spare_of": "",
    "silent": False,
    "silent_since": None,
    "run_state": "running",
    "armed": "yes",
    "on_crash": "restart",
    "effective_on_crash": "restart",
    "reason": "on-crash",
    "restarts_left": 3,
    "incident": "",
    "incident_reason": "",
    "opened_at": None,
    "acknowledged": False,
    "panic_line": "",
    "held_until": None,
    "held_why": "",
    "beyond_signals": "",
    "dump": None,
}
ANSWER: dict[str, Any] = {
    "now": 1100.0,
    "journal_fault": None,
    "journal_damaged": False,
    "storm": False,
    "libvirt_problem": "",
    "problems": [],
    "passed_over": {},
    "dry_run": False,
    "domains": [],
    "waiting": [],
}
PANICKED: dict[str, Any] = {
    "standing": "preserved",
    "incident": ID,
    "opened_at": 1000.0,
    "panic_line": "Kernel panic - not syncing: Oops",
    "run_state": "guest-panicked",
}
DAMAGED = "panicked guests are preserved until journal.sqlite3.damaged-… is moved away."
NEED_SOMEBODY = ("db-3", "web-117", "a-long-name-of-a-domain")
FLEET = [
    *(DOMAIN | {"domain": f"web-{n:03}"} for n in range(197) if n != 117),
    *(DOMAIN | PANICKED | {"domain": name} for name in NEED_SOMEBODY),
    DOMAIN | {"domain": "x" * 90},
]


def shown(
    monkeypatch: pytest.MonkeyPatch,
    *domains: dict[str, Any],
    width: int | None = None,
    height: int | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008 - it does not change
    **answer: object,
) -> list[str]:
    out = StringIO()
    monkeypatch.setattr(terminal, "console", Terminal(out, width, height, colours=False))
    selected = wanted.select(ANSWER | {"domains": list(domains)} | answer)
    render_status.status(selected, wanted.everything)
    return out.getvalue().splitlines()


def test_a_window_of_80_by_24_shows_the_three_that_need_somebody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = shown(monkeypatch, *FLEET, width=80, height=24)
    assert len(lines) < 24
    assert max(map(width_of, lines)) <= 80
    assert lines[0] == "200 domains: 3 preserved, 197 ready"
    assert lines[1].split() == ["DOMAIN", "STATE", "AGE", "INCIDENT", "NOTE"]
    for name, line in zip(sorted(NEED_SOMEBODY), lines[2:5], strict=True):
        assert line.split()[:4] == [name, "preserved", "1m", ID]
        assert "Oops" in line
    assert lines[-1] == "… 180 more (all: --all, or | less)"


@pytest.mark.parametrize(
    ("reason", "more", "note"),
    [
        (
            "crash-loop",
            {"acknowledged": True},
            "restarts spent in a crash loop; acknowledged; Oops",
        ),
        ("budget-spent", {}, "restarts spent; Oops"),
        ("storm", {}, "storm; Oops"),
        ("action-failed", {}, "action failed; Oops"),
        ("held", {}, "held; Oops"),
        (
            "held",
            {"held_why": "a disk is replaced"},
            "held until `unhold`: a disk is replaced; Oops",
        ),
        ("on-crash", {}, "Oops"),
        ("operator", {}, "Oops"),
    ],
)
def test_the_note_begins_with_why_a_guest_waits(
    monkeypatch: pytest.MonkeyPatch, reason: str, more: dict[str, Any], note: str
) -> None:
    domain = DOMAIN | PANICKED | {"domain": "db-3", "incident_reason": reason} | more
    assert shown(monkeypatch, domain, width=200)[2].endswith(f"  {note}")
    narrow = shown(monkeypatch, domain, width=80)[2]
    assert note[:15] in narrow


@pytest.mark.parametrize("width", [20, 40, 61, 80, 132, 250])
def test_a_domain_is_one_line_at_any_width_and_ids_are_never_cut(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    lines = shown(monkeypatch, *FLEET, width=width, height=24, wanted=Wanted(everything=True))
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("DOMAIN")) :]
    names = {name: line.split() for line in table if (name := line.split()[0]) in NEED_SOMEBODY}
    assert set(names) == set(NEED_SOMEBODY) or width < 23
    assert len([line for line in table if line.startswith("web-")]) == 197
    assert all((ID in line) == (width >= 61) for line in names.values())
    assert all("preserved" in line for line in names.values()) or width < 40
    assert "x" * 90 in "".join(table)


def test_piped_it_is_everything_plain_and_greppable(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "a disk\tis \x1b[31mreplaced"
    held = DOMAIN | {"domain": "db", "standing": "held", "held_why": why}
    lines = shown(monkeypatch, *FLEET, held)
    assert len(lines) == 203
    assert all(line.isprintable() and "\t" not in line for line in lines)
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert rows["web-001"] == [
        *("web-001", "ready", "-", "-", "restart", "restart", "3", "running", "yes", "-"),
    ]
    assert rows["db"][9:] == [
        "held",
        "until",
        "`unhold`:",
        *[r"a", r"disk\tis", r"\x1b[31mreplaced"],
    ]


def test_the_worst_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = [DOMAIN | {"domain": f"{s}", "standing": s} for s in reversed(Standing)]
    seen = DOMAIN | PANICKED | {"domain": "seen", "acknowledged": True}
    lines = shown(monkeypatch, *domains, seen)
    order = [line.split()[0] for line in lines[2:]]
    assert [each for each in order if each != "seen"] == list(Standing)
    assert order[order.index("seen") - 1] == Standing.LIBVIRT_ACTS
    assert lines[0].startswith("15 domains: 1 failed, 2 preserved, 1 reset, 1 silent, ")
    assert lines[0].endswith("1 spare, 1 acknowledged")


def test_a_second_monitor_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "a second monitor of web, which is looked after by /run/web.qmp"
    second = {"connected": False, "spare_of": "web", "problem": why, "standing": Standing.SPARE}
    *_, line = shown(monkeypatch, DOMAIN | second)
    assert line.endswith(" spare of web")


def test_what_is_wanted_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    ignoring = DOMAIN | {"domain": "lab", "on_crash": "ignore", "uuid": "u-1", "monitor": "/run/m"}
    domains = [DOMAIN, ignoring, DOMAIN | PANICKED | {"domain": "db"}]

    def names(**how: Any) -> list[str]:
        wanted = Wanted(**how)
        return [line.split()[0] for line in shown(monkeypatch, *domains, wanted=wanted)[2:]]

    assert names() == ["db", "lab", "web"]
    assert names(problems=True) == ["db"]
    assert names(policies=["ignore"]) == ["lab"]
    assert names(patterns=["w*", "d?"]) == ["db", "web"]
    assert names(patterns=["u-1"]) == names(patterns=["/run/m"]) == ["lab"]
    assert names(patterns=["*"], problems=True, policies=["ignore"]) == []
    assert names(sort="name") == ["db", "lab", "web"]
    assert names(sort="age") == ["db", "lab", "web"]
    assert names(sort="policy") == ["lab", "db", "web"]
    assert set(SORTED_BY) == {"state", "name", "age", "policy"}
    lines = shown(monkeypatch, *domains, wanted=Wanted(problems=True))
    assert lines[0] == "1 of 3 domains: 1 preserved"


def test_what_is_amiss_with_panicd_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(
        monkeypatch,
        DOMAIN,
        problems=["/run/x: gone"],
        passed_over={"/run/a\x1b": "link"},
        journal_fault="full",
        journal_damaged=True,
        storm=True,
        libvirt_problem="silent",
        dry_run=True,
    )
    assert lines[:7] == [
        "1 domain, a dry run: nothing is done: 1 ready",
        "The journal can't be written: full",
        f"The journal was damaged: {DAMAGED}",
        "A storm: many domains panicked at once; `storm.then` applies.",
        "libvirt does not answer: silent",
        "Problem: /run/x: gone",
        r"Passed over: /run/a\x1b: link",
    ]


def test_an_incident_without_a_connection_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = DOMAIN | PANICKED | {"domain": "gone", "connected": False, "problem": "x"}
    away = DOMAIN | {"standing": "not-connected", "connected": False, "problem": "refused"}
    waiting = [gone | {"monitor": "/run/a"}, gone | {"domain": "left", "monitor": "/run/b"}]
    lines = shown(monkeypatch, away | {"monitor": "/run/a"}, waiting=waiting)
    assert [line.split()[:2] for line in lines[2:]] == [
        ["gone", "preserved"],
        ["left", "preserved"],
    ]
    assert "refused; Oops" in lines[2]


def test_no_incident_hides_another_that_was_at_its_monitor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = DOMAIN | PANICKED | {"connected": False, "monitor": "/run/qmp.sock#1"}
    waiting = [gone | {"domain": name} for name in ("one", "other", "third")]
    trying = DOMAIN | {"connected": False, "monitor": "/run/qmp.sock#1"}
    for domains in ([], [trying]):
        lines = shown(monkeypatch, *domains, waiting=waiting)
        assert [line.split()[0] for line in lines[2:]] == ["one", "other", "third"]


async def test_how_domains_stand_is_found(socket_dir: Path) -> None:
    fleet = {
        "panicked": FakeQemu(socket_dir / "a.qmp", name="panicked"),
        "plain": FakeQemu(socket_dir / "b.qmp", name="plain", devices=()),
        "old": FakeQemu(socket_dir / "c.qmp", name="old", profile=QEMU_2_8),
        "held": FakeQemu(socket_dir / "d.qmp", name="held"),
        "ready": FakeQemu(socket_dir / "e.qmp", name="ready"),
        "ignored": FakeQemu(socket_dir / "f.qmp", name="ignored"),
        "reset": FakeQemu(socket_dir / "g.qmp", name="reset"),
        "mute": FakeQemu(socket_dir / "mute.qmp", greeting=b""),
    }
    rules = [{"match": "ignored", "on_crash": "ignore"}]
    async with DaemonInside.start(socket_dir, domains=rules) as daemon, background() as nursery:
        for vm in fleet.values():
            await nursery.start(vm.run)
        for name in ("panicked", "plain", "held", "ready", "ignored", "reset"):
            await daemon.wait_armed(name)
        await daemon.wait_log("policy in force", domain="old")
        await daemon.wait_log("monitor is not connected", domain="mute")
        await daemon.call("hold", domain="held", why="a test")
        for name in ("panicked", "reset", "ignored"):
            fleet[name].panic()
        for name in ("panicked", "reset"):
            await daemon.wait_incident(name, state="preserved")
        await daemon.wait_incident("ignored", state="running-on")
        fleet["reset"].machine.reset("host-qmp-system-reset", guest=False)
        await daemon.wait_incident("reset", state="reset")
        domains = (await ask_json(daemon, "status"))["domains"]
        assert {domain["domain"]: domain["standing"] for domain in domains} == {
            "panicked": Standing.PRESERVED,
            "reset": Standing.RESET,
            "mute": Standing.SILENT,
            "ignored": Standing.RUNNING_ON,
            "plain": Standing.NO_PANIC_DEVICE,
            "old": Standing.NOT_ARMED,
            "held": Standing.HELD,
            "ready": Standing.READY,
        }
        problems = await ask(daemon, "status", "--problems")
        assert {line.split()[1] for line in problems.splitlines()[2:-1]} <= PROBLEMS
        assert "no domain matches 'nope'" in await ask(daemon, "status", "nope", status=FAILED)
