"""Dumps in their turn, as the daemon makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.qemu.session import Session
from panicd.service.control_client import RefusedError
from tests.parts.background import background
from tests.parts.commands import ask
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu

FAILURES = "panicd_coredump_failures_total"


@asynccontextmanager
async def one_at_a_time(
    directory: Path, *names: str, enforce: bool = False, **coredump: Any
) -> AsyncIterator[tuple[DaemonInside, list[FakeQemu]]]:
    """A daemon that makes one dump at a time; the guests have panicked in this order.

    The first one's dump is held, so the others wait.
    """
    vms = [FakeQemu(directory / f"{name}.qmp", name=name) for name in names]
    policy = {
        "on_crash": "coredump-destroy",
        "coredump": {"min_free": "1MiB", **coredump},
        "enforce": enforce,
    }
    async with (
        DaemonInside.start(directory, policy, coredumps_at_once=1) as daemon,
        background() as nursery,
    ):
        for vm, name in zip(vms, names, strict=True):
            nursery.start_soon(vm.run)
            await daemon.wait_armed(name)
        vms[0].hold_dumps()
        vms[0].panic()
        await vms[0].wait_command("dump-guest-memory")
        for vm, name in zip(vms[1:], names[1:], strict=True):
            vm.panic()
            await daemon.wait_log("dump waits for its turn", domain=name)
        yield daemon, vms


async def test_dumps_are_made_in_the_order_of_the_panics(socket_dir: Path) -> None:
    async with one_at_a_time(socket_dir, "z", "y", "x") as (daemon, vms):
        dumped, *waiting = [(await daemon.domain(name))["dump"] for name in "zyx"]
        assert (dumped["state"], dumped["format"]) == ("dumping", "kdump-zlib")
        assert [(dump["state"], dump["ahead"]) for dump in waiting] == [
            ("waiting", 0),
            ("waiting", 1),
        ]
        assert await daemon.metric("panicd_coredumps_in_progress") == 1
        shown = (await ask(daemon, "status")).splitlines()[-3:]
        assert [line.split()[:3] for line in shown] == [["dump", "of", name] for name in "zyx"]
        assert ", 1 before it" in shown[2]
        for name, state in (("z", "dumping"), ("y", "waiting")):
            going_on = (await daemon.domain(name))["incident"]
            assert (await daemon.call("incident", incident=going_on))["dump"]["state"] == state
            (line,) = [
                line
                for line in (await ask(daemon, "incident", going_on)).splitlines()
                if line.startswith(f"dump of {name}")
            ]
            assert ("written" in line) is (state == "dumping")
        vms[0].release_dumps()
        for name in "zyx":
            await daemon.wait_incident(name, ending="destroyed")
        began = [
            line["domain"] for line in daemon.logged("step ended", step="Dump", outcome="done")
        ]
        assert began == ["z", "y", "x"]
        assert await daemon.metric("panicd_coredumps_total") == 3


async def test_status_shows_no_dump_where_there_is_none(socket_dir: Path) -> None:
    async with one_at_a_time(socket_dir, "first") as (daemon, vms):
        assert (await daemon.domain("first"))["dump"] is not None
        vms[0].release_dumps()
        await daemon.wait_incident("first", ending="destroyed")
        assert all(not d["dump"] for d in (await daemon.call("status"))["domains"])


@pytest.mark.parametrize("required", [False, True])
async def test_guest_that_others_reset_leaves_the_queue(socket_dir: Path, required: bool) -> None:
    async with one_at_a_time(socket_dir, "first", "second", required=required) as (daemon, vms):
        await vms[1].foreign("system_reset")
        incident = await daemon.wait_incident("second", state="reset")
        assert incident.steps[-1] == ("Dump", "skipped")
        assert "dump-guest-memory" not in vms[1].commands
        assert await daemon.metric(FAILURES, reason="overtaken") == 1
        vms[0].release_dumps()
        await daemon.wait_incident("first", ending="destroyed")


async def test_guest_that_others_resume_is_stopped_again_and_dumped_in_its_turn(
    socket_dir: Path,
) -> None:
    async with one_at_a_time(socket_dir, "first", "second", enforce=True) as (daemon, vms):
        mark = daemon.mark()
        await vms[1].foreign("cont")
        await daemon.wait_log("dump waits for its turn", domain="second", since=mark)
        assert vms[1].commands.count("stop") == 1
        assert "dump-guest-memory" not in vms[1].commands
        vms[0].release_dumps()
        incident = await daemon.wait_incident("second", ending="destroyed")
        assert incident.steps[2:5] == [("Dump", "skipped"), ("Dump", "done"), ("Quit", "done")]
        # Is it a Windows, what can be left out, and the dump.
        assert vms[1].commands.count("dump-guest-memory") == 3


async def test_domain_that_is_gone_leaves_the_queue(socket_dir: Path) -> None:
    async with one_at_a_time(socket_dir, "first", "second", "third") as (daemon, vms):
        vms[1].exit()
        await daemon.wait_log("connection ended", domain="second")
        assert (await daemon.domain("third"))["dump"]["ahead"] == 0
        assert await daemon.metric(FAILURES, reason="lost") == 1
        vms[0].release_dumps()
        await daemon.wait_incident("third", ending="destroyed")


async def test_turn_that_does_not_come_costs_the_dump_only(socket_dir: Path) -> None:
    async with one_at_a_time(socket_dir, "first", "second", timeout="1s") as (daemon, vms):
        # The first one's time is over too; its place is free when QEMU has let go of the dump.
        incident = await daemon.wait_incident("second", ending="destroyed")
        assert ("Dump", "failed") in incident.steps
        assert await daemon.metric(FAILURES, reason="no-turn") == 1
        vms[0].release_dumps()
        await daemon.wait_incident("first", ending="destroyed")


async def test_guest_that_libvirt_runs_is_not_dumped_behind_its_back(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "by_libvirt", True)
    vm = FakeQemu(socket_dir / "vm.qmp", name="vm")
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "coredump-destroy"}) as daemon,
        vm.running(),
    ):
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="destroyed")
        dump = incident.steps.index(("Dump", "failed"))
        assert incident.details[dump].startswith("libvirt: libvirt runs this VM")
        assert "dump-guest-memory" not in vm.commands
        assert await daemon.metric(FAILURES, reason="libvirt") == 1


async def test_an_operator_has_a_failed_dump_made_again_and_a_complete_one_kept(
    socket_dir: Path,
) -> None:
    place = socket_dir / "dumps"
    place.write_text("no directory")
    coredump = {"min_free": "1MiB", "format": "elf", "directory": str(place)}
    vm = FakeQemu(socket_dir / "vm.qmp", name="vm")
    policy = {"on_crash": "coredump-preserve", "coredump": coredump}
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert ("Dump", "failed") in incident.steps
        place.unlink()

        mark = daemon.mark()
        await daemon.call("act", domain="vm", action="coredump-preserve", why="there is room now")
        await daemon.wait_log("step ended", step="Dump", outcome="done", since=mark)
        await daemon.wait_incident("vm", state="preserved")
        (dump,) = place.rglob("*.elf")
        for action in ("coredump-preserve", "coredump-restart"):
            with pytest.raises(RefusedError, match=f"has a dump, {dump}: ask for"):
                await daemon.call("act", domain="vm", action=action, why="another")
        await daemon.call("act", domain="vm", action="restart", why="seen")
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.commands.count("dump-guest-memory") == 1
