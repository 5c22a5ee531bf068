"""The metrics of a running daemon: all there, true over its restarts, gone with their domain."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from panicd.demo.guests import Guest
from tests.parts.daemon import DaemonInside, ObservedDaemon, RunningDaemon, scrape
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

Series = dict[str, float]

KEPT = (
    "panicd_panics_total",
    "panicd_actions_total",
    "panicd_action_failures_total",
    "panicd_fallbacks_total",
    "panicd_restarts_suppressed_total",
    "panicd_foreign_actions_total",
    "panicd_domain_panics_total",
    "panicd_domain_restarts_total",
    "panicd_domain_action_failures_total",
)
"""Counters that go on where the daemon's last run left them."""

MOMENTARY = (
    "panicd_coredump_directory_",
    "panicd_config_last_reload_",
    "panicd_journal_healthy",
    "panicd_loop_pulse_age_seconds",
    "panicd_build_info",
)
"""What is not a count, so that 0 is not what it begins with."""


async def series(daemon: ObservedDaemon) -> Series:
    """All series of a scrape, by name and labels."""
    served = await daemon.wait_log("metrics are served", since=daemon.began)
    text = await trio.to_thread.run_sync(scrape, served["host"], served["port"])
    return {
        sample.name + "".join(f",{key}={sample.labels[key]}" for key in sorted(sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


OPEN = "panicd_domain_open_incident_timestamp_seconds"
HELD = "panicd_hold_timestamp_seconds"
"""There as long as an incident is open, and a hold lasts, whether their domain is there or not."""


def of_domains(found: Series) -> Series:
    return {
        name: value
        for name, value in found.items()
        if ",domain=" in name and not name.startswith((OPEN, HELD))
    }


async def no_domain_is_left(daemon: ObservedDaemon) -> None:
    """Wait until no domain has series: that its monitor is gone is told a moment before."""
    while of_domains(await series(daemon)):
        pass  # each look is a scrape


async def test_all_begins_at_0(socket_dir: Path) -> None:
    async with RunningDaemon.start(socket_dir) as daemon:
        found = await series(daemon)
        assert not of_domains(found)
        for name in KEPT[:6]:
            assert any(key.startswith(name) for key in found), name
        counts = {key: n for key, n in found.items() if not key.startswith(MOMENTARY)}
        assert set(counts.values()) == {0}
        assert found["panicd_journal_healthy"] == 1
        assert 0 <= found["panicd_loop_pulse_age_seconds"] < 15
        usable, free = (found[f"panicd_coredump_directory_{of}_bytes"] for of in ("usable", "free"))
        assert 0 <= usable < free


async def test_counters_go_on_and_domains_go(socket_dir: Path) -> None:
    async with RunningDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon:
        guest = Guest.PANIC_ONCE_THEN_BOOT_HEALTHY
        async with RealQemu.start(socket_dir, guest=guest, paused=True) as vm:
            await daemon.wait_armed("vm")
            assert of_domains(await series(daemon))["panicd_domain_panics_total,domain=vm"] == 0
            await vm.start_guest()
            await daemon.wait_incident("vm", ending="restarted")
            await vm.wait_counting()
            await daemon.call("hold", domain="vm", why="a test")
            await vm.panic()
            await daemon.wait_incident("vm", state="preserved")
            vm.kill()
            await daemon.wait_incident("vm", ending="qemu-gone")

            before = await series(daemon)
            await daemon.terminate()
            await daemon.start_again()
            after = await series(daemon)
            for key in before:
                if key.startswith(KEPT[:6]):
                    assert after[key] == before[key], key
            assert after["panicd_panics_total,source=event"] == 2
            assert after["panicd_actions_total,action=restart"] == 1
            assert after["panicd_foreign_actions_total,action=exit"] == 1

        mark = daemon.mark()
        async with RealQemu.start(socket_dir, guest=Guest.IDLE, uuid=vm_uuid(before)):
            await daemon.wait_armed("vm", since=mark)
            domain = of_domains(await series(daemon))
            assert len(domain) == 8
            assert domain["panicd_domain_panics_total,domain=vm"] == 2
            assert domain["panicd_domain_restarts_total,domain=vm"] == 1
            assert all(value.is_integer() for value in domain.values())
            mark = daemon.mark()
        (socket_dir / "vm.qmp").unlink(missing_ok=True)
        await daemon.wait_log("monitor is gone", since=mark)
        await no_domain_is_left(daemon)


def vm_uuid(found: Series) -> str:
    (info,) = [key for key in found if key.startswith("panicd_domain_info")]
    return info.rpartition(",uuid=")[2]


async def test_an_open_incident_shows_while_its_monitor_is_away(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        await daemon.wait_incident("vm", state="preserved")
        vm.proxy.stop_listening()
        await daemon.terminate()
        await daemon.start_again()
        await daemon.wait_log("monitor is not connected", domain="vm", since=daemon.began)

        assert await daemon.metric("panicd_domain_up", domain="vm") == 0
        assert await daemon.metric("panicd_domain_panicked", domain="vm") == 1
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") is None
        assert await daemon.metric("panicd_incidents_open") == 1


async def test_an_open_incident_of_a_domain_that_is_gone_is_its_host_s(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "relaunch": {"command": ["/bin/false"]}}
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        assert await daemon.metric("panicd_incidents_open") == 0
        await vm.set_panic_action("shutdown")  # as it is before panicd arms it
        await vm.press_key()
        await daemon.wait_incident("vm", state="failed")
        await daemon.wait_log("monitor is gone")
        await no_domain_is_left(daemon)
        (waits,) = [key for key in await series(daemon) if key.startswith(OPEN)]
        assert ",domain=vm,reason=qemu-exited,signature=,state=failed" in waits
        assert await daemon.metric("panicd_incidents_open") == 1


async def test_a_resume_that_is_taken_back_is_counted(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve", "enforce": True}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        await daemon.wait_incident("vm", state="preserved")
        await vm.witness.execute("cont")
        await daemon.wait_log("somebody resumed the panicked guest: stopped again")
        assert await daemon.metric("panicd_foreign_actions_total", action="resume") == 1


async def test_a_directory_that_can_t_be_looked_at_costs_two_series_only(socket_dir: Path) -> None:
    directory = socket_dir / ("x" * 300) / "dumps"  # ENAMETOOLONG
    async with RunningDaemon.start(
        socket_dir, {"coredump": {"directory": str(directory)}}
    ) as daemon:
        found = await series(daemon)
        assert "panicd_coredump_directory_free_bytes" not in found
        assert math.isnan(found["panicd_coredump_directory_usable_bytes"])
        assert found["panicd_journal_healthy"] == 1


async def test_a_loop_that_stands_still_is_seen_from_outside(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        served = await daemon.wait_log("metrics are served")

        def pulse_age() -> float:
            """Scrape without letting the loop, which is the daemon's too, turn meanwhile."""
            families = text_string_to_metric_families(scrape(served["host"], served["port"]))
            return {s.name: s.value for f in families for s in f.samples}[
                "panicd_loop_pulse_age_seconds"
            ]

        began = time.monotonic()
        first, last = pulse_age(), pulse_age()
        assert 0 < first < last < first + time.monotonic() - began
