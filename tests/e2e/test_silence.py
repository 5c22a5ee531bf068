"""A QEMU that is stopped or hangs says nothing: panicd notices, and goes on when it can."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from panicd.fleet import connector
from panicd.incident import liveness
from tests.parts.daemon import DaemonInside
from tests.parts.patience import patience
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "ASK_EVERY", 0.1)
    monkeypatch.setattr(liveness, "SILENT_AFTER", patience(0.3))  # or a busy one would be silent
    monkeypatch.setattr(connector, "GREETING_TIMEOUT", patience(0.3))


@contextmanager
def stopped(vm: RealQemu) -> Iterator[None]:
    """Have QEMU stand still for a while."""
    os.kill(vm.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(vm.pid, signal.SIGCONT)


@asynccontextmanager
async def daemon_and_vm(directory: Path) -> AsyncIterator[tuple[DaemonInside, RealQemu]]:
    async with (
        DaemonInside.start(directory, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(directory, guest=Guest.COUNT) as vm,
    ):
        await daemon.wait_armed("vm")
        yield daemon, vm


async def test_a_silent_qemu_is_noticed_and_so_is_its_return(socket_dir: Path) -> None:
    async with daemon_and_vm(socket_dir) as (daemon, vm):
        with stopped(vm):
            await daemon.wait_log("QEMU does not answer", domain="vm")
            status = await daemon.wait_domain("vm", lambda domain: domain["silent"])
            assert status["connected"]
            assert status["silent_since"] <= (await daemon.call("status"))["now"]
            assert [*await daemon.exposures("vm")] == ["silent"]
            assert await daemon.metric("panicd_domain_up", domain="vm") == 0
            assert await daemon.metric("panicd_domains_exposed", reason="silent") == 1
        await daemon.wait_log("QEMU answers again", domain="vm")
        await daemon.wait_domain("vm", lambda domain: not domain["silent"])
        assert await daemon.metric("panicd_domain_up", domain="vm") == 1
        await vm.panic()
        await daemon.wait_incident("vm", state="preserved")


async def test_a_preserved_guest_s_silent_qemu_is_noticed_too(socket_dir: Path) -> None:
    async with daemon_and_vm(socket_dir) as (daemon, vm):
        await vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        with stopped(vm):
            await daemon.wait_log("QEMU does not answer", domain="vm")
        await daemon.wait_log("QEMU answers again", domain="vm")


async def test_a_qemu_that_is_silent_at_panicd_s_start_is_told_from_a_taken_one(
    socket_dir: Path,
) -> None:
    async with RealQemu.start(socket_dir, guest=Guest.COUNT) as vm:
        async with DaemonInside.start(socket_dir) as daemon:
            await daemon.wait_armed("vm")
        with stopped(vm):
            async with DaemonInside.start(socket_dir) as daemon:
                why = "QEMU does not answer: it takes no connection"
                await daemon.wait_log("monitor is not connected", reason=why, domain="vm")
                status = await daemon.domain("vm")
                assert (status["connected"], status["silent"]) == (False, True)
                assert [*await daemon.exposures("vm")] == ["silent"]
                assert await daemon.metric("panicd_domains_exposed", reason="silent") == 1
                os.kill(vm.pid, signal.SIGCONT)
                await daemon.wait_armed("vm")
                assert not (await daemon.domain("vm"))["silent"]
