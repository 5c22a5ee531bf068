"""What becomes of holds, budgets and storms when the clock is set."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from panicd.host.wall_clock import WallClock
from panicd.rules.operation import Holds, Operation, OperationKind
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu

DAY = 86400.0


def test_what_is_counted_in_it_is_as_long_ago_as_before() -> None:
    hold = Operation(0.0, 0, OperationKind.HOLD, "vm", "", until=100.0)
    holds = Holds([hold, replace(hold, domain="db", until=None)])
    holds.shift(DAY)
    assert holds.on(["vm"], DAY + 99) is not None
    assert holds.on(["vm"], DAY + 101) is None
    assert holds.on(["db"], 10 * DAY) is not None


def test_only_a_clock_that_is_set_is_told_of() -> None:
    told: list[float] = []
    wall, steady = 1_000_000.0, 50.0
    clock = WallClock([told.append], lambda: wall, lambda: steady)
    wall, steady = wall + 3600, steady + 3600
    assert clock() == wall
    assert told == []
    wall += DAY
    assert clock() == clock() == wall
    wall -= 2 * DAY
    clock()
    assert told == [DAY, -2 * DAY]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the clock by putting seconds in here."""
    seconds: list[float] = []
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + sum(seconds))
    return seconds


@pytest.mark.parametrize("by", [DAY, -DAY])
async def test_hold_lasts_as_long_as_was_asked_for(
    socket_dir: Path, set_clock: list[float], by: float
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, {"on_crash": "destroy"}) as daemon, vm.running():
        await daemon.wait_armed("vm")
        await daemon.call("hold", domain="vm", why="maintenance", **{"for": 7200.0})
        set_clock.append(by)
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert [reason for _, reason in incident.decisions] == ["held"]
        assert "quit" not in vm.commands
        await daemon.wait_log("the clock was set")


@pytest.mark.parametrize("by", [DAY, -DAY])
async def test_crash_loop_is_one_whatever_the_clock_says(
    socket_dir: Path, set_clock: list[float], by: float
) -> None:
    policy = {"on_crash": "restart", "restart": {"max": 1, "window": "1h", "min_uptime": "10m"}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        set_clock.append(by)
        mark = daemon.mark()
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved", since=mark)
        assert incident.decisions[-1][1] == "crash-loop"
        assert vm.commands.count("system_reset") == 1


@pytest.mark.parametrize("by", [DAY, -DAY])
async def test_grace_lasts_as_long_as_was_configured(
    socket_dir: Path, set_clock: list[float], by: float
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    policy = {"on_crash": "destroy", "grace": "1h"}
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_domain("vm", lambda domain: domain["incident_state"] == "watched")
        set_clock.append(by)
        await daemon.call("reload")  # whoever reads the clock does so now
        await daemon.wait_log("the clock was set")
        assert (await daemon.domain("vm"))["incident_state"] == "watched"
        assert "quit" not in vm.commands
        vm.guest_reset()
        await daemon.wait_incident("vm", ending="guest-reset")


@pytest.mark.parametrize("by", [DAY, -DAY])
async def test_a_storm_is_one_whatever_the_clock_says(
    socket_dir: Path, set_clock: list[float], by: float
) -> None:
    vms = [FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in "abc"]
    storm = {"share": "50%", "minimum": 3, "window": "10m"}
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "destroy"}, storm=storm) as daemon,
        AsyncExitStack() as running,
    ):
        for vm in vms:
            await running.enter_async_context(vm.running())
            await daemon.wait_armed(vm.socket.stem)
        for vm in vms[:2]:
            vm.panic()
            await daemon.wait_incident(vm.socket.stem, ending="destroyed")
        set_clock.append(by)
        vms[2].panic()
        incident = await daemon.wait_incident("c", state="preserved")
        assert incident.decisions[-1][1] == "storm"
