"""What happened while nobody listened, and which VM it is that is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

UUID = "b7a0c3c2-6f5e-4a43-9a8b-6f1de1c0a002"

PAUSES = ("-action", "panic=pause")


async def test_guest_found_panicked_gets_its_policy(socket_dir: Path) -> None:
    async with RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=PAUSES) as vm:
        await vm.press_key()
        await vm.wait_status("guest-panicked")
        async with RunningDaemon.start(socket_dir, {"on_crash": "restart"}) as daemon:
            incident = await daemon.wait_incident("vm", ending="restarted")
            assert incident.source == "reconciliation"
            assert incident.decisions == [("restart", "on-crash")]
            await vm.wait_counting()
            found = await daemon.metric("panicd_panics_total", source="reconciliation")
            assert found == 1


async def test_arming_outlives_the_daemon(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await daemon.terminate()
        await vm.press_key()
        await vm.wait_status("guest-panicked")
        await daemon.start_again()

        assert await vm.wait_exit() == 0
        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.source == "reconciliation"


async def test_preserved_guest_stays_so_when_the_daemon_is_restarted(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        (incident,) = [await daemon.wait_incident("vm", state="preserved")]
        await daemon.terminate()
        await daemon.start_again()
        await daemon.wait_log("open incident found again", incident=incident.id)

        status = await daemon.wait_domain("vm", lambda domain: domain["incident"] == incident.id)
        assert status["incident_state"] == "preserved"
        await daemon.wait_armed("vm", since=daemon.began)
        assert await vm.status() == "guest-panicked"
        assert vm.proxy.changing_commands == ["set-action", "set-action"]
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 1


@pytest.mark.parametrize("daemon_runs", [True, False], ids=["seen", "unseen"])
async def test_vm_made_anew_on_the_same_path_is_a_new_one(
    socket_dir: Path, daemon_runs: bool
) -> None:
    async with RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon:
        async with RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, uuid=UUID) as vm:
            await daemon.wait_armed("vm")
            await vm.press_key()
            old = await daemon.wait_incident("vm", state="preserved")
            if not daemon_runs:
                await daemon.terminate()
            vm.kill()
            await vm.wait_exit()
        (socket_dir / "vm.qmp").unlink()
        mark = daemon.mark()
        async with RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, uuid=UUID) as vm:
            if not daemon_runs:
                await daemon.start_again()
            await daemon.wait_armed("vm", since=mark)
            ended = await daemon.wait_incident("vm", ending="qemu-gone")
            assert ended.id == old.id
            await daemon.wait_domain("vm", lambda domain: domain["connected"])
            assert (await daemon.domain("vm"))["incident"] == ""

            await vm.press_key()
            new = await daemon.wait_incident("vm", state="preserved")
            assert new.id != old.id
            assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 2


async def test_two_domains_of_one_name_are_told_apart(socket_dir: Path) -> None:
    here, there = socket_dir / "here", socket_dir / "there"
    here.mkdir()
    there.mkdir()
    monitors = [{"glob": str(socket_dir / "*" / "*.qmp")}]
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": "preserve"}, monitors=monitors) as daemon,
        RealQemu.start(here, name="twin", guest=Guest.PANIC_ON_KEY) as one,
    ):
        await daemon.wait_armed("twin")
        async with RealQemu.start(there, name="twin", uuid=UUID, guest=Guest.PANIC_ON_KEY) as two:
            other = f"twin@{UUID}"
            await daemon.wait_armed(other)
            said = await daemon.wait_log("two domains have one name", called=other)
            assert said["monitor"] == str(two.socket)

            await two.press_key()
            await daemon.wait_incident(other, state="preserved")
            assert (await daemon.domain("twin"))["run_state"] == "running"
            assert (await daemon.domain(other))["run_state"] == "guest-panicked"
            await one.wait_counting()


async def test_vms_that_dial_in_are_looked_after_each_by_its_own_policy(socket_dir: Path) -> None:
    listening = socket_dir / "listen.sock"
    domains = [
        {"match": "end-*", "on_crash": "destroy"},
        {"match": UUID, "on_crash": "restart"},
    ]
    async with (
        RunningDaemon.start(
            socket_dir, domains=domains, monitors=[{"listen": str(listening)}]
        ) as daemon,
        RealQemu.start(socket_dir, name="end-1", dial=listening, guest=Guest.PANIC_ON_KEY) as ended,
        RealQemu.start(
            socket_dir, name="again", uuid=UUID, dial=listening, guest=Guest.PANIC_ON_KEY
        ) as restarted,
        RealQemu.start(socket_dir, name="kept", dial=listening, guest=Guest.PANIC_ON_KEY) as kept,
    ):
        for vm in (ended, restarted, kept):
            await daemon.wait_armed(vm.name)
        for vm in (ended, restarted, kept):
            await vm.press_key()

        await daemon.wait_incident("end-1", ending="destroyed")
        await daemon.wait_incident("again", ending="restarted")
        await daemon.wait_incident("kept", state="preserved")
        assert await ended.wait_exit() == 0
        await restarted.wait_counting()
        assert await kept.status() == "guest-panicked"
        await daemon.wait_log("monitor is not connected", domain="end-1")
        status = await daemon.call("status")
        assert [domain["domain"] for domain in status["domains"]] == ["again", "kept"]
