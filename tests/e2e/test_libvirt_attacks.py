"""What others do between a domain's panic and what panicd does about it, on a real libvirtd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.guests import Guest
from panicd.libvirt.look import HOLDS
from tests.e2e.test_libvirt_domains import TIME_LIMIT, configured
from tests.kill.cases import GatedDaemon
from tests.kill.gate import Gate
from tests.parts.daemon import RunningDaemon
from tests.parts.libvirt import Libvirtd, LibvirtVm
from tests.parts.patience import fail_after

pytestmark = pytest.mark.real

ON_RECORD = "before system_reset #1"
"""The restart is on record, and libvirt is not yet told: here panicd stands still."""


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(2 * TIME_LIMIT):
        yield


@asynccontextmanager
async def about_to_reset(
    libvirtd: Libvirtd, directory: Path, **policy: Any
) -> AsyncIterator[tuple[LibvirtVm, GatedDaemon, Gate]]:
    """A domain that has panicked, and a panicd that is about to have it reset."""
    async with (
        Gate.open(directory) as gate,
        libvirtd.domain(directory, "restart", guest=Guest.COUNT) as vm,
        GatedDaemon.start(
            directory, {"evidence": {"budget": "0s"}, **policy}, **configured(libvirtd)
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        gate.watch(ON_RECORD)
        await vm.panic()
        await gate.wait_reached()
        reached = trio.current_time()
        while trio.current_time() < reached + HOLDS:  # then panicd looks anew before it acts
            await libvirtd.virsh("domstate", "vm")
        yield vm, daemon, gate


def resets(vm: LibvirtVm) -> int:
    return [message["event"] for message in vm.events].count("RESET")


async def test_libvirtd_is_stopped(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with about_to_reset(libvirtd, socket_dir) as (vm, daemon, gate):
        with libvirtd.frozen():
            gate.go_on()
            await daemon.wait_log("libvirt does not answer")
        await daemon.wait_incident("vm", ending="restarted")
        await vm.wait_counting()
        assert resets(vm) == 1


async def test_panicd_is_killed(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with about_to_reset(libvirtd, socket_dir) as (vm, daemon, gate):
        await daemon.kill()
        gate.ignore()
        await daemon.start_again()
        await daemon.wait_incident("vm", ending="restarted")
        await vm.wait_counting()
        assert resets(vm) == 1


async def test_somebody_resumes_it(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with about_to_reset(libvirtd, socket_dir) as (vm, daemon, gate):
        await libvirtd.virsh("resume", "vm")
        gate.go_on()
        await daemon.wait_incident("vm", ending="foreign-resume")
        assert resets(vm) == 0
        await vm.wait_counting()


async def test_somebody_starts_it_anew(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with about_to_reset(libvirtd, socket_dir) as (vm, daemon, gate):
        await libvirtd.virsh("destroy", "vm")
        await libvirtd.virsh("start", "vm")
        mark = daemon.mark()
        gate.go_on()
        await daemon.wait_log("incident closed", since=mark)
        await daemon.wait_armed("vm", since=mark)
        assert await vm.state() == "running (booted)", "and not '(unpaused)', as after a reset"


async def test_somebody_starts_it_anew_where_panicd_would(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    relaunch = {"libvirt": libvirtd.uri}
    async with about_to_reset(libvirtd, socket_dir, relaunch=relaunch) as (vm, daemon, gate):
        await libvirtd.virsh("destroy", "vm")
        await libvirtd.virsh("start", "vm")
        started = await libvirtd.virsh("domid", "vm")
        mark = daemon.mark()
        gate.go_on()
        relaunched = await daemon.wait_log("step ended", step="RunRelaunch", since=mark)
        assert relaunched["detail"] == "somebody else has started it"
        await daemon.wait_incident("vm", ending="relaunched")
        assert await libvirtd.virsh("domid", "vm") == started
        assert await vm.state() == "running (booted)"


async def test_a_preserved_domain_is_saved_and_started(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    async with (
        libvirtd.plain_domain(socket_dir, "preserve") as domain,
        RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon,
    ):
        await daemon.wait_armed("vm")
        await domain.press_key()
        await daemon.wait_incident("vm", state="preserved")
        await libvirtd.virsh("managedsave", "vm")
        await daemon.wait_incident("vm", ending="qemu-gone")
        mark = daemon.mark()
        await domain.start()
        await daemon.wait_armed("vm", since=mark)
        assert (await domain.state()).startswith("paused")
        assert len(daemon.incidents()) == 1, "nobody knows any more that it had panicked"


async def test_two_panic_at_once(libvirtd: Libvirtd, socket_dir: Path) -> None:
    """Both are heard in one turn; each gets its own."""
    async with (
        libvirtd.plain_domain(socket_dir, "restart", name="stays") as stays,
        libvirtd.plain_domain(socket_dir, "destroy", name="ends") as ends,
        RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon,
    ):
        for name in ("stays", "ends"):
            await daemon.wait_armed(name)
        with daemon.frozen():
            async with trio.open_nursery() as nursery:
                for domain in (stays, ends):
                    nursery.start_soon(domain.press_key)
            for domain in (stays, ends):
                await domain.wait_state("crashed (panicked)")
        await daemon.wait_incident("stays", ending="restarted")
        await daemon.wait_incident("ends", ending="destroyed")
        await stays.wait_counting()
        await ends.wait_state("shut off (destroyed)")
        assert len(daemon.incidents()) == 2
