"""A QEMU that claims to be a domain of a real libvirt's: that one goes on running."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from panicd.service.control_client import RefusedError
from tests.parts.daemon import ExecutedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.libvirt import Libvirtd
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

TIME_LIMIT = 90.0  # seconds; virsh is a process of its own each time


class NeighbourDaemon(ExecutedDaemon):
    """A daemon that sees the files of the libvirtd: they are in its mount namespace only."""


@pytest.fixture(autouse=True)
def _neighbour(libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = ["nsenter", "--target", str(libvirtd.pid), "--mount"]
    monkeypatch.setattr(NeighbourDaemon, "before", inside)


def configured(libvirtd: Libvirtd, **config: Any) -> dict[str, Any]:
    """Keywords for a daemon that knows this libvirt."""
    return {"libvirt": {"uri": libvirtd.uri}, "time_limit": TIME_LIMIT, **config}


async def uuid_of(libvirtd: Libvirtd) -> str:
    return await libvirtd.virsh("domuuid", "vm")


@pytest.mark.parametrize("dials_in", [False, True], ids=["dialled", "dials in"])
async def test_its_uuid(libvirtd: Libvirtd, socket_dir: Path, dials_in: bool) -> None:
    """The domain is libvirt's by its monitor, and not by what another QEMU says."""
    listening = socket_dir / "dial-in.sock"
    monitors = [{"glob": f"{socket_dir}/*.qmp"}, {"listen": str(listening)}]
    async with (
        libvirtd.domain(socket_dir, "destroy") as vm,
        NeighbourDaemon.start(
            socket_dir,
            {"on_crash": "destroy"},
            **configured(libvirtd, monitors=monitors),
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["libvirt"] == "preserve"
        async with RealQemu.start(
            socket_dir,
            name="liar",
            uuid=await uuid_of(libvirtd),
            dial=listening if dials_in else None,
        ) as liar:
            await daemon.wait_armed("liar")
            assert (await daemon.domain("liar"))["libvirt"] == ""
            await liar.panic()
            await daemon.wait_incident("liar", ending="destroyed")
            await liar.wait_exit()
        assert await vm.state() == "running (booted)"
        own = await daemon.domain("vm")
        assert (own["connected"], own["libvirt"]) == (True, "preserve")
        await vm.press_key()
        await daemon.wait_incident("vm", ending="destroyed")
        await vm.wait_state("shut off (destroyed)")


async def test_its_monitor_s_path(libvirtd: Libvirtd, socket_dir: Path) -> None:
    """Whoever listens where the domain's monitor was is not the process that libvirt started."""
    async with libvirtd.domain(socket_dir, "destroy") as vm:
        (socket_dir / "vm.qmp").unlink()
        async with (
            NeighbourDaemon.start(
                socket_dir, {"on_crash": "destroy"}, **configured(libvirtd)
            ) as daemon,
            RealQemu.start(
                socket_dir,
                name="vm",
                uuid=await uuid_of(libvirtd),
                # As libvirt's QEMUs are known: their arguments name its directories.
                extra=("-fw_cfg", "name=opt/x,string=/libvirt/"),
            ) as liar,
        ):
            await daemon.wait_log("not treated as libvirt's", domain="vm")
            # Whichever comes first has the name: this one, or libvirt's by its API.
            called = (await daemon.wait_log("domain connected", monitor=str(liar.socket)))["domain"]
            await daemon.wait_armed(called)
            assert (await daemon.domain(called))["libvirt"] == ""
            await liar.panic()
            await daemon.wait_incident(called, ending="destroyed")
            await liar.wait_exit()
            assert await vm.state() == "running (booted)"


@pytest.mark.parametrize("name", ["vm", "liar"])
async def test_a_domain_that_is_off_is_not_started(
    libvirtd: Libvirtd, socket_dir: Path, name: str
) -> None:
    """A relaunch by libvirt starts the domain whose XML names the monitor."""
    rules = {"on_crash": "restart", "relaunch": {"libvirt": libvirtd.uri, "timeout": "20s"}}
    async with libvirtd.domain(socket_dir, "destroy") as vm:
        uuid = await uuid_of(libvirtd)
        await libvirtd.virsh("destroy", "vm")
        liar = FakeQemu(socket_dir / "liar.qmp", name=name, uuid=uuid, reboot_action="shutdown")
        async with (
            NeighbourDaemon.start(socket_dir, rules, **configured(libvirtd)) as daemon,
            liar.running(),
        ):
            await daemon.wait_armed(name)
            liar.panic()
            failed = await daemon.wait_incident(name, state="failed")
            assert f"does not name {socket_dir}/liar.qmp" in failed.details[-1]
            assert (await vm.state()).startswith("shut off")


@pytest.mark.parametrize("dials_in", [False, True], ids=["dialled", "dials in"])
@pytest.mark.parametrize("name", ["vm", "liar"])
async def test_all_that_belongs_to_a_domain_that_libvirt_alone_reaches(
    libvirtd: Libvirtd, socket_dir: Path, name: str, dials_in: bool
) -> None:
    """Its budget, its counts, its hold, its incident, what is asked for it, and that itself."""
    listening = socket_dir / "dial-in.sock"
    monitors = [{"glob": f"{socket_dir}/*.qmp"}, {"listen": str(listening)}]
    policy = {
        "on_crash": "restart",
        "restart": {"max": 1, "min_uptime": "0s"},
        "coredump": {"min_free": "1MiB"},
    }
    async with (
        libvirtd.plain_domain(socket_dir, "restart") as vm,
        NeighbourDaemon.start(
            socket_dir, policy, **configured(libvirtd, monitors=monitors)
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        its = (await daemon.domain("vm"))["monitor"]
        async with RealQemu.start(
            socket_dir,
            name=name,
            uuid=await uuid_of(libvirtd),
            dial=listening if dials_in else None,
            extra=("-fw_cfg", "name=opt/x,string=/libvirt/"),
        ) as liar:
            known = await daemon.wait_log("policy in force", count=2)
            called = known["domain"]
            await daemon.wait_armed(called)
            assert (await daemon.domain(called))["libvirt"] == ""
            await liar.panic()
            await daemon.wait_incident(called, ending="restarted")
            await liar.panic()
            await daemon.wait_incident(called, state="preserved")
            own = await daemon.domain("vm")
            assert (own["restarts_left"], own["incident"], own["connected"]) == (1, "", True)
            assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 0
            with pytest.raises(RefusedError, match="there is no hold on"):
                await daemon.call("unhold", domain=its, why="of nothing")
            his = (await daemon.domain(called))["monitor"]
            await daemon.call("act", domain=his, action="coredump-destroy", why="it lies")
            ended = await daemon.wait_incident(called, ending="destroyed")
            assert ("Dump", "failed") in ended.steps  # by libvirt, whose it is not
            await liar.wait_exit()
        assert await vm.state() == "running (booted)"
        await vm.press_key()
        ended = await daemon.wait_incident("vm", ending="restarted")
        assert ended.decisions == [("restart", "on-crash")]
        assert await vm.state() == "running (unpaused)"


def sockets_of(name: str) -> int:
    """How many ends the domain's own monitor has (proc(5), /proc/net/unix)."""
    return Path("/proc/net/unix").read_text(encoding="utf-8").count(f"-{name}/monitor.sock")


async def test_libvirt_s_own_monitor_is_not_dialled(libvirtd: Libvirtd, socket_dir: Path) -> None:
    pattern = "/var/lib/libvirt/qemu/domain-*/monitor.sock"
    name = f"own-{os.getpid()}"  # /proc/net/unix shows those of everybody
    async with (
        libvirtd.domain(socket_dir, "destroy", name=name) as vm,
        NeighbourDaemon.start(
            socket_dir, **configured(libvirtd, monitors=[{"glob": pattern}])
        ) as daemon,
    ):
        told = await daemon.wait_log("monitor is not connected")
        assert told["reason"].startswith("libvirt's own monitor")
        assert told["monitor"].endswith("/monitor.sock")
        # The domain has no monitor that is dialled: it is looked after by libvirt.
        await daemon.wait_domain(name, lambda domain: domain["connected"])
        assert await libvirtd.virsh("qemu-monitor-command", name, '{"execute": "query-status"}')
        assert await vm.state() == "running (booted)"
        assert sockets_of(name) == 2, "who listens and who is connected, and nobody who waits"
