"""Open incidents whose domain nobody is connected to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.incident import adoption, waiting
from tests.parts.daemon import DaemonInside, LoggedIncident
from tests.parts.fake import FakeQemu
from tests.parts.patience import patiently
from tests.parts.profile import RunState

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f59"

WAIT_FOR_RETURN = "AwaitReturn"


def fake(directory: Path, **what: Any) -> FakeQemu:
    return FakeQemu(directory / "vm.qmp", uuid=UUID, **what)


def relaunching(seconds: float) -> dict[str, Any]:
    relaunch = {"command": ["/bin/true"], "timeout": patiently(seconds)}
    return {"on_crash": "restart", "relaunch": relaunch}


async def relaunched(daemon: DaemonInside, directory: Path) -> LoggedIncident:
    """Have a VM panic that can't be reset; return when it is waited for."""
    async with fake(directory, reboot_action="shutdown").running() as vm:
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("step begins", domain="vm", step=WAIT_FOR_RETURN)
        await vm.exited.wait()
    (incident,) = daemon.incidents()
    return incident


async def test_relaunched_domain_that_comes_back_ends_its_incident(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir, relaunching(10)) as daemon:
        await relaunched(daemon, socket_dir)
        async with fake(socket_dir).running():
            await daemon.wait_incident("vm", ending="relaunched")
            assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 1


async def test_relaunched_domain_that_does_not_come_back_in_time_is_a_failure(
    socket_dir: Path,
) -> None:
    async with DaemonInside.start(socket_dir, relaunching(0.2)) as daemon:
        await relaunched(daemon, socket_dir)
        failed = await daemon.wait_incident("vm", state="failed")
        assert failed.details[-1] == "the domain did not come back in time"
        (waiting,) = (await daemon.call("status"))["waiting"]
        assert waiting["incident"] == failed.id

        async with fake(socket_dir).running():  # late, but here
            ended = await daemon.wait_incident("vm", ending="relaunched")
            assert ended.id == failed.id


async def test_domain_that_comes_back_just_when_it_is_given_up_ends_its_incident(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_up, given_up = adoption._take_up, trio.Event()

    async def when_it_is_connected(*what: Any) -> None:
        given_up.set()
        await daemon.wait_log("policy in force", domain="vm", count=2)
        await take_up(*what)

    monkeypatch.setattr(adoption, "_take_up", when_it_is_connected)
    async with DaemonInside.start(socket_dir, relaunching(0.2)) as daemon:
        incident = await relaunched(daemon, socket_dir)
        await given_up.wait()
        async with fake(socket_dir).running():
            ended = await daemon.wait_incident("vm", ending="relaunched")
            assert ended.id == incident.id
            assert (await daemon.call("status"))["waiting"] == []


async def test_time_limit_goes_on_over_a_restart_of_the_daemon(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FOUND_WITHIN", 0.1)
    async with DaemonInside.start(socket_dir, relaunching(0.5)) as daemon:
        incident = await relaunched(daemon, socket_dir)
    async with DaemonInside.start(socket_dir, relaunching(0.5)) as daemon:
        await daemon.wait_log("incident stays open", incident=incident.id, state="failed")


async def test_a_domain_that_came_back_while_panicd_was_away_is_no_failure(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DaemonInside.start(socket_dir, relaunching(10)) as daemon:
        incident = await relaunched(daemon, socket_dir)
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    async with fake(socket_dir).running(), DaemonInside.start(socket_dir) as daemon:
        ended = await daemon.wait_incident("vm", ending="relaunched")
        assert ended.id == incident.id
        assert await daemon.metric("panicd_domain_action_failures_total", domain="vm") == 0


@pytest.mark.parametrize("state", [RunState.GUEST_PANICKED, RunState.RUNNING])
async def test_incident_waits_for_its_domain_while_the_daemon_is_down(
    socket_dir: Path, state: RunState
) -> None:
    async with fake(socket_dir).running() as vm:
        async with DaemonInside.start(socket_dir) as daemon:
            await daemon.wait_armed("vm")
            vm.panic()
            incident = await daemon.wait_incident("vm", state="preserved")
        if state is RunState.RUNNING:
            await vm.foreign("cont")
        async with DaemonInside.start(socket_dir) as daemon:
            await daemon.wait_log("open incident found again", incident=incident.id)
            await daemon.wait_armed("vm")
            if state is RunState.RUNNING:
                await daemon.wait_incident("vm", ending="foreign-resume")
            else:
                assert (await daemon.domain("vm"))["incident"] == incident.id
        assert vm.changing_commands == ["set-action", "set-action"]
        (kept,) = daemon.journal()
        assert kept.id == incident.id


async def test_waiting_incident_is_not_taken_for_another_domain_s(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        async with fake(socket_dir).running() as vm:
            await daemon.wait_armed("vm")
            vm.panic()
            incident = await daemon.wait_incident("vm", state="preserved")
            vm.exit()
            await daemon.wait_log("monitor is not connected", domain="vm")
        async with FakeQemu(socket_dir / "other.qmp", name="other").running():
            await daemon.wait_armed("other")
            (waiting,) = (await daemon.call("status"))["waiting"]
            assert waiting["incident"] == incident.id
            assert (await daemon.domain("other"))["incident"] == ""
