"""What `panicd audit`, `probe` and the metric say of domains that could not be acted on."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Collection
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from panicd.cli import main, render
from panicd.fleet import audit
from panicd.host import terminal
from panicd.host.terminal import Terminal
from panicd.qemu.process_list import RunningQemu
from tests.parts.daemon import DaemonInside, ObservedDaemon, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.profile import QEMU_1_5, QEMU_1_6, QEMU_2_8
from tests.parts.qemu import RealQemu

DONE, FAILED = 0, 1


async def no_qemu(_but: Collection[int]) -> list[RunningQemu]:
    return []


@pytest.fixture(autouse=True)
def only_the_fakes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what else runs on this machine."""
    if "any_process" not in request.fixturenames:
        monkeypatch.setattr(audit, "running_qemus", no_qemu)


@pytest.fixture
def any_process() -> None:
    """Take in what else runs on this machine."""


async def panicd(daemon: ObservedDaemon, command: str) -> Result:
    words = ["--config", str(daemon.config_file), *shlex.split(command)]
    return await trio.to_thread.run_sync(partial(CliRunner().invoke, main, words))


async def audited(daemon: ObservedDaemon) -> tuple[int, dict[str, list[str]]]:
    """Return the exit status, and each exposed domain's reasons."""
    result = await panicd(daemon, "audit --json")
    answer: Any = json.loads(result.output)
    for exposed in answer["exposed"]:
        assert all(exposed["exposures"].values()), "a remedy each"
    return result.exit_code, {e["domain"]: [*e["exposures"]] for e in answer["exposed"]}


async def test_host_on_which_all_could_be_acted_on(socket_dir: Path) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart", "grace": "1m"}) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running(),
    ):
        await daemon.wait_armed("vm")
        assert await audited(daemon) == (DONE, {})
        shown = await panicd(daemon, "audit")
        assert (shown.exit_code, "1 domain, and it could be acted on" in shown.output) == (
            DONE,
            True,
        )


async def test_each_exposed_domain_with_its_remedy(socket_dir: Path) -> None:
    rules = [
        {"match": "ignored", "on_crash": "ignore"},
        {"match": "unseen", "on_crash": "destroy"},
        {"match": "dumped", "on_crash": "coredump-restart", "coredump": {"min_free": "1000TiB"}},
    ]
    fakes = {
        "bare": FakeQemu(socket_dir / "bare.qmp", name="bare", devices=()),
        "builtin": FakeQemu(
            socket_dir / "builtin.qmp", name="builtin", devices=(), profile=QEMU_1_5
        ),
        "ignored": FakeQemu(socket_dir / "ignored.qmp", name="ignored", profile=QEMU_1_6),
        "unarmed": FakeQemu(socket_dir / "unarmed.qmp", name="unarmed", profile=QEMU_2_8),
        "fixed": FakeQemu(socket_dir / "fixed.qmp", name="fixed"),
        "dumped": FakeQemu(socket_dir / "dumped.qmp", name="dumped"),
        "good": FakeQemu(socket_dir / "good.qmp", name="good"),
        "unseen": FakeQemu(socket_dir / "unseen.qmp", name="unseen"),
    }
    with socket.socket(socket.AF_UNIX) as silent:  # a monitor that nobody listens on
        silent.bind(str(socket_dir / "silent.qmp"))
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart"}, domains=rules) as daemon,
        trio.open_nursery() as nursery,
    ):
        for name, fake in fakes.items():
            await nursery.start(fake.run)
            await daemon.wait_armed(name)
        await daemon.wait_log("monitor is not connected", domain="silent")
        await daemon.call("hold", domain="fixed", why="work")

        status, exposed = await audited(daemon)
        assert status == FAILED
        assert exposed == {
            "bare": ["no-device"],
            "builtin": ["firmware", "builtin-device"],
            "ignored": ["irreversible"],
            "unarmed": ["not-armed"],
            "fixed": ["held"],
            "dumped": ["no-dump-space"],
            "silent": ["no-monitor"],
            "unseen": ["no-signal"],  # its process is this test's: no QEMU
        }
        for reason in ("no-device", "irreversible", "no-dump-space", "no-monitor"):
            assert await daemon.metric("panicd_domains_exposed", reason=reason) == 1
        assert await daemon.metric("panicd_domains_exposed", reason="budget-spent") == 0

        shown = await panicd(daemon, "audit")
        assert shown.exit_code == FAILED
        assert "add -device pvpanic" in shown.output
        shown = await panicd(daemon, "explain unseen")
        assert "can't be ended by a signal: process" in shown.output
        nursery.cancel_scope.cancel()


@pytest.mark.real
async def test_qemu_that_can_be_ended_is_not_exposed(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon,
        RealQemu.start(socket_dir),
    ):
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["beyond_signals"] == ""
        assert await daemon.metric("panicd_domains_exposed", reason="no-signal") == 0


@pytest.mark.real
@pytest.mark.usefixtures("any_process")
async def test_qemu_that_panicd_has_no_monitor_of(socket_dir: Path) -> None:
    elsewhere = socket_dir / "e"
    elsewhere.mkdir()
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart"}) as daemon,
        RealQemu.start(elsewhere, name="stranger") as stranger,
        FakeQemu(socket_dir / "watched.qmp", name="watched").running(),
    ):
        await daemon.wait_armed("watched")
        status, exposed = await audited(daemon)
        assert status == FAILED
        assert exposed["stranger"] == ["no-monitor"]
        assert "watched" not in exposed
        shown, name = (await panicd(daemon, "audit")).output, f"stranger (process {stranger.pid})"
        (told,) = [text for text in shown.splitlines() if text.startswith(name)]
        assert f"add `- glob: {stranger.socket}` to `monitors`" in told


@pytest.mark.real
async def test_qemu_hides_behind_no_other_ones_name(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namesake = RunningQemu(1, "vm", monitor=None, by_libvirt=False)
    async with DaemonInside.start(socket_dir) as daemon, RealQemu.start(socket_dir) as vm:
        await daemon.wait_armed("vm")

        async def look(but: Collection[int]) -> list[RunningQemu]:
            assert vm.pid in but
            return [namesake]

        monkeypatch.setattr(audit, "running_qemus", look)
        (exposed,) = json.loads((await panicd(daemon, "audit --json")).output)["exposed"]
        assert (exposed["domain"], exposed["pid"]) == ("vm", namesake.pid)


@pytest.mark.parametrize("width", [None, 80])
def test_each_remedy_is_told_once_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    out = StringIO()
    monkeypatch.setattr(terminal, "console", Terminal(file=out, width=width, colours=False))
    known = {"pid": None, "on_crash": "destroy", "reasons": {"held": "`panicd unhold`"}}
    exposed = [
        known | {"domain": "db-1"},
        known | {"domain": "db-2\x1b[2J"},
        {"domain": "", "pid": 7, "on_crash": "", "reasons": {"no-monitor": "give it one"}},
    ]
    render.audit({"domains": 5, "exposed": exposed})
    shown = out.getvalue()
    if width is None:
        assert [text.split()[0] for text in shown.splitlines()[1:3]] == ["db-1", r"db-2\x1b[2J"]
        return
    assert "2 of 5 domains could not be acted on.\n" in shown
    assert "panicd does not watch 1 QEMU of this host.\n" in shown
    assert r"db-1, db-2\x1b[2J" in shown
    assert shown.count("unhold") == 1
    assert "process 7" in shown


# -- probe


@pytest.mark.parametrize(
    ("on_crash", "status"), [("restart", DONE), ("ignore", FAILED), ("coredump-destroy", DONE)]
)
async def test_probe_fails_where_the_configured_policy_can_not_be_obeyed(
    socket_dir: Path, on_crash: str, status: int
) -> None:
    daemon = ObservedDaemon(socket_dir, {"on_crash": on_crash})
    async with FakeQemu(socket_dir / "vm.qmp", profile=QEMU_1_6).running():
        result = await panicd(daemon, f"probe --json {socket_dir / 'vm.qmp'}")
        seen = json.loads(result.output)
        assert result.exit_code == status
        assert bool(seen["remedies"]) == (status == FAILED)
        assert seen["configured"]["on_crash"] == on_crash


@pytest.mark.real
@pytest.mark.parametrize(("port", "shared"), [(0, True), (0x505, False), (0xFFF0, False)])
async def test_probe_warns_of_a_port_that_others_use(
    socket_dir: Path, port: int, shared: bool
) -> None:
    with fail_after(20):
        async with RealQemu.start(
            socket_dir,
            devices=[f"pvpanic,ioport={port}"],
            extra=("-action", "panic=none"),
        ) as vm:
            daemon = ObservedDaemon(socket_dir)
            result = await panicd(daemon, f"probe --json {vm.socket}")
            remedies = json.loads(result.output)["remedies"]
            assert [True for remedy in remedies if "dma-chan uses too" in remedy] == (
                [True] if shared else []
            )
            mark = vm.witness.mark()
            await vm.hmp("o /b 0x505 1")
            await vm.hmp("info status")
            heard = "GUEST_PANICKED" in vm.witness.sequence(mark)
            assert heard == (port == 0x505)


@pytest.mark.real
async def test_port_0_raises_false_panics(socket_dir: Path) -> None:
    with fail_after(20):
        async with RealQemu.start(
            socket_dir, devices=["pvpanic,ioport=0"], extra=("-action", "panic=none")
        ) as vm:
            mark = vm.witness.mark()
            await vm.hmp("o /b 0 1")  # as for the DMA controller's channel 0
            await vm.wait_event("GUEST_PANICKED", since=mark)
