"""What a shell offers for a word that is half typed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from panicd.rules.on_crash import OnCrash
from tests.parts.commands import panicd
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu


def completions(daemon: ObservedDaemon, *words: str) -> list[str]:
    """What bash would offer for the last of these words; it gives them joined by spaces."""
    typed = ["panicd", "--config", str(daemon.config_file), *words]
    env = {
        "_PANICD_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    return [line.partition(",")[2] for line in panicd(env=env).output.split("\n") if line]


async def test_what_a_command_can_be_used_on_is_completed(socket_dir: Path) -> None:
    web, db = (FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in ("web-1", "db-1"))
    async with DaemonInside.start(socket_dir) as daemon, web.running(), db.running():
        for vm in (web, db):
            await daemon.wait_armed(vm.machine.name)

        async def offered(*words: str) -> list[str]:
            return await trio.to_thread.run_sync(lambda: completions(daemon, *words))

        assert await offered("explain", "") == ["db-1\tready", "web-1\tready"]
        assert await offered("explain", "we") == ["web-1\tready"]
        assert await offered("incidents", "--domain", "d") == ["db-1\tready"]
        assert set(OnCrash) <= set(await offered("act", "db-1", ""))
        for verb in ("act", "release", "unhold"):
            assert await offered(verb, "") == []
        db.panic()
        incident = await daemon.wait_incident("db-1", state="preserved")
        await daemon.wait_kept(incident)
        await daemon.call("hold", domain="web-1", why="a test")
        assert await offered("release", "") == await offered("act", "") == ["db-1\tpreserved"]
        assert await offered("unhold", "") == ["web-1\theld"]
        assert await offered("hold", "") == ["db-1\tpreserved"]
        for verb in ("incident", "ack", "export"):
            assert await offered(verb, "") == [f"{incident.id}\tdb-1, preserved"]
        await daemon.call("ack", incident=incident.id, why="a test")
        assert await offered("ack", "") == []


@pytest.mark.parametrize(
    "name",
    ["$(reboot)", "a;reboot", "`reboot`", "a b", "--all", "~root", "a*", "'a", "a\nb"],
)
async def test_a_name_that_a_shell_would_not_take_as_it_is_is_not_offered(
    socket_dir: Path, name: str
) -> None:
    vms = FakeQemu(socket_dir / "bad.qmp", name=name), FakeQemu(socket_dir / "vm.qmp", name="a~b#1")
    async with DaemonInside.start(socket_dir) as daemon, vms[0].running(), vms[1].running():
        for vm in vms:
            await daemon.wait_log("domain connected", monitor=str(vm.socket))
        found = await trio.to_thread.run_sync(completions, daemon, "explain", "")
        assert found == ["a~b#1\tready"]


async def test_options_after_the_command_count_for_a_completion(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", name="vm")
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        typed = ("panicd", "explain", "--config", str(daemon.config_file), "")
        env = {
            "_PANICD_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(typed),
            "COMP_CWORD": str(len(typed) - 1),
        }
        found = await trio.to_thread.run_sync(lambda: panicd(env=env).output)
        assert found == "plain,vm\tready\n"


def test_completion_offers_nothing_where_no_daemon_answers(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    assert completions(daemon, "explain", "") == []
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(daemon.control_socket))
        silent.listen()
        assert completions(daemon, "explain", "") == []
