"""Many domains of a host that panic at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

DOMAINS = 6


@asynccontextmanager
async def host_of_six(
    directory: Path, storm: dict[str, Any], *, proxied: bool = False
) -> AsyncIterator[tuple[RunningDaemon, list[RealQemu]]]:
    """A daemon and six armed VMs.

    Args:
        directory: For everything.
        storm: The configured limits.
        proxied: Whether the VMs have proxies.
    """
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(
            RunningDaemon.start(
                directory, {"on_crash": "restart"}, storm={"window": "1h", **storm}, time_limit=40
            )
        )
        vms = [
            await stack.enter_async_context(
                RealQemu.start(directory, name=f"vm{i}", guest=Guest.COUNT, proxied=proxied)
            )
            for i in range(DOMAINS)
        ]
        for vm in vms:
            await daemon.wait_armed(vm.name)
        yield daemon, vms


async def panic_at_once(daemon: RunningDaemon, vms: list[RealQemu]) -> None:
    """Have all guests panic before panicd can react to the first."""
    with daemon.frozen():
        for vm in vms:
            await vm.panic()


async def test_what_a_storm_hits_is_left_for_an_operator(socket_dir: Path) -> None:
    async with host_of_six(socket_dir, {"minimum": 3, "share": "50%"}) as (daemon, vms):
        await panic_at_once(daemon, vms)
        for vm in vms:
            await daemon.wait_log("guest panicked", domain=vm.name)
        before = DOMAINS // 2 - 1  # so many have panicked before it is seen to be a storm
        await daemon.wait_log("incident closed", ending="restarted", count=before)
        await daemon.wait_log("incident stays open", state="preserved", count=DOMAINS - before)
        incidents = daemon.incidents()
        assert len(incidents) == DOMAINS
        decisions = [decision for incident in incidents for decision in incident.decisions]
        assert sorted(decisions) == [
            *[("preserve", "storm")] * (DOMAINS - before),
            *[("restart", "on-crash")] * before,
        ]
        assert len(daemon.logged("many domains panic at once", level="error")) == 1
        assert await daemon.metric("panicd_storm") == 1
        assert (await daemon.call("status"))["storm"] is True

        for vm in vms:
            assert await daemon.foreseen(vm.name) == ("preserve", "storm")

        preserved = {told.domain for told in incidents if told.state == "preserved"}
        kept = next(vm for vm in vms if vm.name in preserved)
        assert await kept.status() == "guest-panicked"
        await daemon.call("act", domain=kept.name, action="restart", why="it was looked at")
        await daemon.wait_incident(kept.name, ending="restarted")
        await kept.wait_counting()

        await daemon.wait_kept(daemon.incidents()[-1])
        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_armed(kept.name, since=daemon.began)
        assert (await daemon.call("status"))["storm"] is True
        await kept.panic()
        again = await daemon.wait_incident(kept.name, state="preserved", since=daemon.began)
        assert again.decisions == [("preserve", "storm")]


async def test_storm_lets_a_few_be_acted_on_at_a_time(socket_dir: Path) -> None:
    storm = {"minimum": 1, "share": "0%", "then": "limit", "at_once": 2}
    async with host_of_six(socket_dir, storm, proxied=True) as (daemon, vms):
        resets = [vm.proxy.hold("system_reset") for vm in vms]
        await panic_at_once(daemon, vms)
        for vm in vms:
            await daemon.wait_log("decided", domain=vm.name, action="restart")
        await daemon.wait_log("step begins", step="SystemReset", count=2)
        assert len(daemon.logged("step begins", step="EnsureStopped")) == 2
        for reset in resets:
            reset.release()
        for vm in vms:
            await daemon.wait_incident(vm.name, ending="restarted")
            await vm.wait_counting()
            assert vm.proxy.acting_commands == ["system_reset", "cont"]
            assert await daemon.foreseen(vm.name) == ("restart", "on-crash")
        assert most_at_once(daemon) == 2


def most_at_once(daemon: RunningDaemon) -> int:
    """How many domains were acted on at once, at most, as the log tells."""
    most, under_way = 0, 0
    for line in daemon.log:
        if line["event"] == "step begins" and line["step"] == "EnsureStopped":
            under_way += 1
        elif line["event"] == "incident closed":
            under_way -= 1
        most = max(most, under_way)
    return most
