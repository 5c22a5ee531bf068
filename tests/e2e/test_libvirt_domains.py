"""Domains as virt-install makes them, looked after by libvirt alone: nothing of them is edited."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from panicd.dumps.facts import dump_facts
from tests.e2e.test_policies import ENOUGH_SPACE, dumps
from tests.parts.daemon import RunningDaemon
from tests.parts.libvirt import Libvirtd, LibvirtVm, PlainDomain
from tests.parts.linux import Kernel, Trouble
from tests.parts.patience import fail_after

pytestmark = pytest.mark.real

TIME_LIMIT = 60.0  # seconds
MIGRATED_TO = "tcp://127.0.0.1"


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(2 * TIME_LIMIT):
        yield


def configured(libvirtd: Libvirtd, **changed: Any) -> dict[str, Any]:
    """A daemon that knows of this libvirt, and of nothing else."""
    settings = {"uri": libvirtd.uri, **changed}
    return {"libvirt": settings, "monitors": [], "time_limit": TIME_LIMIT}


@asynccontextmanager
async def looked_after(
    libvirtd: Libvirtd, directory: Path, on_crash: str, **config: Any
) -> AsyncIterator[tuple[PlainDomain, RunningDaemon]]:
    """A domain with an ``<on_crash>`` of its own, and a daemon that looks after it."""
    async with (
        libvirtd.plain_domain(directory, on_crash) as domain,
        RunningDaemon.start(directory, **configured(libvirtd), **config) as daemon,
    ):
        await daemon.wait_armed("vm")
        yield domain, daemon


async def test_destroy(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with looked_after(libvirtd, socket_dir, "destroy") as (domain, daemon):
        assert await domain.live("on_crash") == "preserve", "libvirt leaves it to panicd"
        await domain.press_key()

        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [("destroy", "on-crash")]
        assert incident.source == "event"
        assert ("Quit", "done") in incident.steps
        await domain.wait_state("shut off (destroyed)")


async def test_restart(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with looked_after(libvirtd, socket_dir, "restart") as (domain, daemon):
        await domain.press_key()

        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("restart", "on-crash")]
        await domain.wait_counting()
        assert await domain.state() == "running (unpaused)"
        assert "custom" not in await libvirtd.virsh("dominfo", "vm"), "it is not tainted by that"


async def test_nothing_of_the_domain_is_edited(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with libvirtd.plain_domain(socket_dir, "restart") as domain:
        before = await domain.xml("--inactive")
        async with RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon:
            await daemon.wait_armed("vm")
            await domain.press_key()
            await daemon.wait_incident("vm", ending="restarted")
        assert await domain.xml("--inactive") == before


async def test_preserve(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with looked_after(libvirtd, socket_dir, "preserve") as (domain, daemon):
        await domain.press_key()

        await daemon.wait_incident("vm", state="preserved")
        await domain.wait_state("crashed (panicked)")
        assert (await daemon.domain("vm"))["run_state"] == "guest-panicked"


async def test_ignore(libvirtd: Libvirtd, socket_dir: Path) -> None:
    domains = [{"match": "vm", "on_crash": "ignore"}]
    async with looked_after(libvirtd, socket_dir, "destroy", domains=domains) as (domain, daemon):
        await domain.press_key()

        await daemon.wait_incident("vm", state="running-on")
        await domain.wait_counting()
        assert await domain.state() == "running (unpaused)"


async def test_a_domain_that_starts_and_ends_is_seen_at_once(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    async with (
        RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon,
        libvirtd.plain_domain(socket_dir, "destroy") as domain,
    ):
        await daemon.wait_armed("vm")
        await libvirtd.virsh("destroy", "vm")
        await daemon.wait_log("domain ended", domain="vm")
        mark = daemon.mark()
        await domain.start()
        await daemon.wait_armed("vm", since=mark)
        await domain.press_key()
        await daemon.wait_incident("vm", ending="destroyed")


async def test_somebody_resumes_it(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with looked_after(libvirtd, socket_dir, "preserve") as (domain, daemon):
        await domain.press_key()
        await daemon.wait_incident("vm", state="preserved")
        await libvirtd.virsh("resume", "vm")

        await daemon.wait_incident("vm", ending="foreign-resume")
        assert await domain.state() == "running (unpaused)"


async def test_an_operator_restarts_it(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with looked_after(libvirtd, socket_dir, "preserve") as (domain, daemon):
        await domain.press_key()
        await daemon.wait_incident("vm", state="preserved")
        await daemon.call("act", domain="vm", action="restart", why="it is needed")

        await daemon.wait_incident("vm", ending="restarted")
        await domain.wait_counting()


# Where somebody is away. These domains have a monitor for the test to look through; panicd has not.


@asynccontextmanager
async def watched(
    libvirtd: Libvirtd, directory: Path, on_crash: str, guest: Guest = Guest.PANIC_ON_KEY
) -> AsyncIterator[tuple[LibvirtVm, RunningDaemon]]:
    async with (
        libvirtd.domain(directory, on_crash, guest=guest) as vm,
        RunningDaemon.start(directory, **configured(libvirtd)) as daemon,
    ):
        await daemon.wait_armed("vm")
        yield vm, daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_libvirtd_is_away_when_the_guest_panics(
    libvirtd: Libvirtd, socket_dir: Path, number: signal.Signals
) -> None:
    """libvirt itself never acts on such a panic."""
    async with watched(libvirtd, socket_dir, "restart") as (vm, daemon):
        mark = daemon.mark()
        with libvirtd.away(number):
            await daemon.wait_log("libvirt does not answer", since=mark)
            await vm.press_key()
            await vm.wait_status("guest-panicked")
            await daemon.wait_log("connection ended", domain="vm", since=mark)

        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"
        await vm.wait_counting()


async def test_panicd_is_away_when_the_guest_panics(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with watched(libvirtd, socket_dir, "restart") as (vm, daemon):
        await daemon.kill()
        await vm.press_key()
        await vm.wait_state("crashed (panicked)")  # libvirt has told whoever listened
        await daemon.start_again()

        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"
        await vm.wait_counting()


@pytest.mark.parametrize("on_crash", ["restart", "destroy"])
async def test_libvirtd_is_silent_when_the_guest_panics(
    libvirtd: Libvirtd, socket_dir: Path, on_crash: str
) -> None:
    async with watched(libvirtd, socket_dir, on_crash) as (vm, daemon):
        with libvirtd.frozen():
            await vm.press_key()
            await daemon.wait_log("libvirt does not answer")
        ending = "restarted" if on_crash == "restart" else "destroyed"
        await daemon.wait_incident("vm", ending=ending)
        assert len(daemon.incidents()) == 1, "its event and its state tell of the same panic"


async def test_the_next_start_of_a_domain_is_left_alone(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    """What panicd has not yet heard of may have ended with the panicked QEMU."""
    async with watched(libvirtd, socket_dir, "destroy") as (vm, daemon):
        mark = daemon.mark()
        with daemon.frozen():
            await vm.press_key()
            await libvirtd.virsh("destroy", "vm")
            await libvirtd.virsh("start", "vm")
        await daemon.wait_armed("vm", since=mark)
        await daemon.wait_incident("vm", ending="qemu-gone")
        assert (await vm.state()).startswith("running")


async def test_a_saved_domain_comes_back_with_its_own_policy(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    """The live XML, with panicd's doing, is saved along."""
    async with libvirtd.plain_domain(socket_dir, "restart") as domain:
        async with RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon:
            await daemon.wait_armed("vm")
            await libvirtd.virsh("managedsave", "vm")
            await daemon.wait_log("domain ended", domain="vm")
        await domain.start()
        assert await domain.live("on_crash") == "preserve"

        async with RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon:
            await daemon.wait_armed("vm")
            await domain.press_key()
            await daemon.wait_incident("vm", ending="restarted")
        async with RunningDaemon.start(
            socket_dir, **configured(libvirtd, take_over=False)
        ) as daemon:
            await daemon.wait_armed("vm")
            assert await domain.live("on_crash") == "restart", "it is put right"


async def test_a_domain_that_migrates(libvirtd: Libvirtd, socket_dir: Path) -> None:
    """It comes with panicd's doing of where it was, and gets its own policy where it is."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as place, Libvirtd.start(Path(place)) as to:
        there = PlainDomain(to, "vm")
        other = socket_dir / "other"
        other.mkdir()
        async with (
            looked_after(libvirtd, socket_dir, "restart") as (domain, source),
            RunningDaemon.start(other, **configured(to)) as target,
        ):
            await libvirtd.virsh("migrate", "--live", "vm", to.uri, "--migrateuri", MIGRATED_TO)
            await target.wait_armed("vm")
            await source.wait_log("domain ended", domain="vm")
            assert await there.live("on_crash") == "preserve"
            assert 'taken_from="restart"' in await there.xml()
            await there.press_key()
            incident = await target.wait_incident("vm", ending="restarted")
            assert incident.decisions == [("restart", "on-crash")]
            await there.wait_counting()

            mark = source.mark()
            await to.virsh("migrate", "--live", "vm", libvirtd.uri, "--migrateuri", MIGRATED_TO)
            await source.wait_armed("vm", since=mark)
            await domain.press_key()
            await source.wait_incident("vm", ending="restarted")
            assert len(target.incidents()) == len(source.incidents()) == 1


async def test_a_panic_at_once_after_the_start_is_libvirt_s(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    """It takes a moment until libvirt leaves a domain that was started to panicd."""
    async with (
        RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon,
        libvirtd.plain_domain(socket_dir, "destroy", name="other"),
        AsyncExitStack() as stack,
    ):
        await daemon.wait_armed("other")  # so libvirt's events are heard
        with daemon.frozen():  # a long moment, so that libvirt is sure to be faster
            starts = libvirtd.plain_domain(socket_dir, "destroy", guest=Guest.PANIC_ONCE)
            domain = await stack.enter_async_context(starts)
            await domain.wait_state("shut off (crashed)")
        incident = await daemon.wait_incident("vm", ending="qemu-gone")
        assert incident.decisions == [("preserve", "libvirt")]
        assert daemon.logged("decided", domain="vm", on_crash="destroy")
        assert await daemon.metric("panicd_fallbacks_total", reason="libvirt") == 1


@pytest.mark.parametrize("on_stop", ["keep", "restore"])
async def test_what_becomes_of_it_when_panicd_stops(
    libvirtd: Libvirtd, socket_dir: Path, on_stop: str
) -> None:
    async with libvirtd.plain_domain(socket_dir, "restart") as domain:
        settings = configured(libvirtd, on_stop=on_stop)
        async with RunningDaemon.start(socket_dir, **settings) as daemon:
            await daemon.wait_armed("vm")
            assert await domain.live("on_crash") == "preserve"
        assert await domain.live("on_crash") == ("preserve" if on_stop == "keep" else "restart")
        assert ("taken_from" in await domain.xml()) == (on_stop == "keep")


@pytest.mark.linux
@pytest.mark.parametrize(
    ("kind", "level"), [("kdump-zlib", 31), ("elf-zstd", 1), ("elf", 0)], ids=str
)
async def test_what_is_kept_of_a_linux(
    libvirtd: Libvirtd, socket_dir: Path, linux_kernel: Kernel, kind: str, level: int
) -> None:
    policy = {
        "on_crash": "coredump-destroy",
        "evidence": {"budget": "20s"},
        "coredump": {**ENOUGH_SPACE, "format": kind, "level": level},
    }
    guest = linux_kernel, Trouble()
    async with (
        RunningDaemon.start(socket_dir, policy, **configured(libvirtd)) as daemon,
        libvirtd.plain_domain(
            socket_dir, "coredump-destroy", guest=guest, vmcoreinfo=True, paused=True
        ) as domain,
    ):
        await daemon.wait_armed("vm")
        await domain.resume()
        found = await daemon.wait_incident("vm", ending="destroyed")
        await daemon.wait_kept(found)
        assert {("Collect", "done"), ("Dump", "done")} <= set(found.steps)
        incident: Any = await daemon.call("incident", incident=found.id)
        assert incident["panic_line"] == "Kernel panic - not syncing: sysrq triggered crash"
        assert incident["signature"]["title"] == "crash key"
        kept = Path(incident["evidence_directory"])
        assert len((kept / "kernel.log").read_text().splitlines()) > 300
        assert (kept / "screen.png").read_bytes().startswith(b"\x89PNG")
        (dump,) = dumps(socket_dir / "state" / "coredumps")
        facts = dump_facts(dump)
        assert (facts.level, facts.reason) == (level or None, ""), "of a whole one nothing is said"
        assert libvirtd.running
