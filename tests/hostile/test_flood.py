"""A guest that panics as fast as it can, while it is ignored."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from panicd.qemu.pace import BURST
from panicd.rules.incident import State
from tests.hostile.monitors import serving, then_says
from tests.hostile.scale import whole
from tests.parts.daemon import DaemonInside, LoggedIncident, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.qemu import RealQemu
from tests.parts.vitals import cpu_seconds, forget_peak, peak_bytes
from tests.parts.wire import encode

FLOODER = {"match": "bad", "on_crash": "ignore"}
AGAIN = "guest panicked again"

LONG = 1_000_000 if whole() else 200_000
"""Panics over which memory must not grow."""

SPELL = 20_000
"""Panics that are read while the memory's peak is taken: a few seconds' worth."""

LIMIT = 600.0 if whole() else 60.0
"""Seconds for that."""

GROWTH = 1 << 20
"""Bytes by which two such peaks may differ: what else a daemon does for half a minute took up to
0.6 MB. Six bytes a panic that are kept would be more, of a million panics two."""


@asynccontextmanager
async def flooded(
    directory: Path, *, time_limit: float = 40.0, **flood: Any
) -> AsyncIterator[tuple[RunningDaemon, RealQemu, RealQemu]]:
    """A daemon, a guest that panics without end, and one that panics when told to."""
    domains = [{**FLOODER, "flood": flood}]
    async with (
        RunningDaemon.start(directory, domains=domains, time_limit=time_limit) as daemon,
        RealQemu.start(directory, name="good", guest=Guest.PANIC_ON_KEY) as good,
        RealQemu.start(directory, name="bad", guest=Guest.FLOOD, paused=True) as bad,
    ):
        await daemon.wait_armed("good")
        await daemon.wait_armed("bad")
        await bad.witness.execute("cont")
        await daemon.wait_log("guest panicked", domain="bad")
        yield daemon, good, bad


def the_flood(daemon: RunningDaemon | DaemonInside) -> LoggedIncident:
    (incident,) = [incident for incident in daemon.incidents() if incident.domain == "bad"]
    return incident


@pytest.mark.real
async def test_flood_is_counted_and_ends_in_preserve(socket_dir: Path) -> None:
    async with flooded(socket_dir, max=2000, window="1h") as (daemon, _, bad):
        incident = await daemon.wait_incident("bad", state="preserved")
        assert incident.decisions == [("ignore", "on-crash"), ("preserve", "flood")]
        assert incident.steps == [("EnsureStopped", "done")]
        assert await bad.status() == "paused"
        said = await all_said(bad)
        assert said > 2000
        # Those that were on their way when it was stopped are counted as well.
        await daemon.wait_log(AGAIN, domain="bad", repeats=said - 1)
        assert await daemon.metric("panicd_domain_panics_total", domain="bad") == said
        assert await daemon.metric("panicd_fallbacks_total", reason="flood") == 1
        assert the_flood(daemon).id == incident.id


@pytest.mark.real
async def test_flood_that_goes_on_costs_its_share_and_nobody_else(socket_dir: Path) -> None:
    share = 0.05
    async with flooded(socket_dir, then="ignore", max=10, share="5%") as (daemon, good, bad):
        began, used = time.monotonic(), cpu_seconds(daemon.pid)
        mark = daemon.mark()
        await daemon.wait_log(AGAIN, domain="bad", since=mark, count=4)
        took = time.monotonic() - began
        # Beside the reading there is what else a daemon does; a whole processor it would be.
        assert cpu_seconds(daemon.pid) - used < took * (share + 0.15) + BURST
        stamps = [line["timestamp"] for line in daemon.logged(AGAIN, domain="bad", since=mark)]
        told_at = [datetime.fromisoformat(stamp).timestamp() for stamp in stamps]
        assert told_at[3] - told_at[0] > 2, "once a second"

        await good.press_key()
        await daemon.wait_incident("good", state="preserved")
        assert await good.status() == "guest-panicked"
        await daemon.call("act", domain="bad", action="preserve", why="enough")
        await daemon.wait_incident("bad", state="preserved")
        assert await bad.status() == "paused"
        assert the_flood(daemon).decisions[-1] == ("preserve", "operator")


async def all_said(vm: RealQemu) -> int:
    """How often QEMU said that its guest panicked, as its other monitor heard."""
    await vm.witness.execute("query-name")  # answered after all that was said before
    kept = sum("event" in message for message in vm.witness.messages)
    return kept + vm.witness.events_dropped - len(["RESUME", "STOP"])


PANIC = encode(
    {
        "timestamp": {"seconds": 1, "microseconds": 1},
        "event": "GUEST_PANICKED",
        "data": {"action": "run"},
    }
)


async def test_one_that_is_held_is_let_go_on(socket_dir: Path) -> None:
    async with ignored(socket_dir, max=100) as (daemon, vm):
        vm.send_raw(PANIC)
        await daemon.wait_incident("bad", state="running-on")
        await daemon.call("hold", domain="bad", **{"for": 3600.0}, why="it is looked at")
        vm.send_raw(PANIC * 1000)
        await daemon.wait_log(AGAIN, domain="bad")
        await daemon.call("explain", domain="bad")  # answered after what was heard before
        assert the_flood(daemon).state == State.RUNNING_ON
        await daemon.call("unhold", domain="bad", why="it was looked at")
        vm.send_raw(PANIC * 1000)
        await daemon.wait_incident("bad", state="preserved")


async def test_one_whose_qemu_does_not_stop_it_is_told_of(socket_dir: Path) -> None:
    async with ignored(socket_dir, max=100, timeouts={"stop": "100ms"}) as (daemon, vm):
        vm.swallow("stop")
        vm.send_raw(PANIC * 1000)
        await daemon.wait_log("guest panicked", domain="bad")
        vm.send_raw(PANIC * 1000)
        await daemon.wait_log("decided", domain="bad", reason="flood")


@asynccontextmanager
async def ignored(directory: Path, **settings: Any) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    """A daemon that ignores the panics of one fake VM, up to a limit."""
    timeouts = settings.pop("timeouts", {})
    rule = {**FLOODER, "flood": {**settings, "window": "1h"}, "timeouts": timeouts}
    fake = FakeQemu(directory / "bad.qmp", name="bad")
    async with DaemonInside.start(directory, domains=[rule]) as daemon, fake.running() as vm:
        await daemon.wait_armed("bad")
        yield daemon, vm


async def test_monitor_that_says_panics_without_end_costs_its_share(socket_dir: Path) -> None:
    endless = then_says(lambda: itertools.repeat(PANIC * 500))
    async with (
        RunningDaemon.start(socket_dir, {"flood": {"share": "10%"}}, time_limit=40) as daemon,
        serving(socket_dir / "bad.qmp", endless),
    ):
        await daemon.wait_log(AGAIN, domain="bad", count=2)
        began, used = time.monotonic(), cpu_seconds(daemon.pid)
        await daemon.wait_log(AGAIN, domain="bad", count=5)
        # Unbounded it is a whole processor, where one is to be had.
        assert cpu_seconds(daemon.pid) - used < (time.monotonic() - began) * 0.3
        assert len(daemon.incidents()) == 1


@pytest.mark.real
@pytest.mark.skipif(not whole(), reason="it is minutes until a QEMU has said so much")
async def test_memory_is_flat_however_long_a_guest_floods(socket_dir: Path) -> None:
    flood = {"then": "ignore", "share": "100%"}
    async with flooded(socket_dir, time_limit=LIMIT, **flood) as (daemon, _, bad):
        bad.witness.hang_up()  # to write it all twice takes QEMU as long again
        await check_memory_is_flat(daemon)


async def test_memory_is_flat_however_long_a_monitor_says_panics(socket_dir: Path) -> None:
    endless = then_says(lambda: itertools.repeat(PANIC * 500))
    flood = {"share": "100%", "then": "ignore"}
    async with (
        RunningDaemon.start(
            socket_dir, domains=[{**FLOODER, "flood": flood}], time_limit=LIMIT
        ) as daemon,
        serving(socket_dir / "bad.qmp", endless),
    ):
        await check_memory_is_flat(daemon)


async def check_memory_is_flat(daemon: RunningDaemon) -> None:
    """Compare the memory's peak after the flood's first spell with that of a much later one.

    What is allocated once, the reader's buffer above all, is there in the first spell already.
    """
    await read(daemon, SPELL)
    first = await peak_of_a_spell(daemon)
    await read(daemon, LONG)
    last = await peak_of_a_spell(daemon)
    print(f"{first / 1e6:.2f} MB, {LONG} panics later {last / 1e6:.2f} MB")
    assert last - first < GROWTH


async def peak_of_a_spell(daemon: RunningDaemon) -> int:
    forget_peak(daemon.pid)
    await read(daemon, SPELL)
    return peak_bytes(daemon.pid)


async def read(daemon: RunningDaemon, panics: int) -> None:
    """Wait until the daemon has read so many more panics of the flood."""
    (*_, first) = [0, *(line["repeats"] for line in daemon.logged(AGAIN, domain="bad"))]
    repeats = first
    while repeats - first < panics:
        line = await daemon.wait_log(AGAIN, domain="bad", since=daemon.mark())
        repeats = line["repeats"]
