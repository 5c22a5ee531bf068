"""Two QEMUs of one name: a VM that moves to another QEMU on its host, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.qemu import RealQemu

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51"
DESTROYED = {"on_crash": "destroy"}
KEPT = [{"match": "db", "on_crash": "preserve"}]


@pytest.mark.real
async def test_a_vm_that_migrates_on_its_host_keeps_its_rule_and_its_hold(
    socket_dir: Path,
) -> None:
    """As a QEMU is upgraded in place: name and UUID are the same, the monitor is another."""
    target_dir = socket_dir / "t"
    target_dir.mkdir()
    way = f"unix:{target_dir / 'migration'}"
    monitors = [{"glob": f"{socket_dir}/*.qmp"}, {"glob": f"{target_dir}/*.qmp"}]
    paused = ("-action", "panic=pause")
    async with (
        RunningDaemon.start(
            socket_dir, DESTROYED, domains=KEPT, monitors=monitors, time_limit=40
        ) as daemon,
        RealQemu.start(
            target_dir, name="db", uuid=UUID, guest=Guest.COUNT, paused=True,
            extra=(*paused, "-incoming", way),
        ) as target,
    ):  # fmt: skip
        async with RealQemu.start(
            socket_dir, name="db", uuid=UUID, guest=Guest.COUNT, extra=paused
        ) as source:
            await daemon.wait_log("policy in force", on_crash="preserve", count=2)
            await daemon.call("hold", domain="db", why="it moves")
            for domain in (await daemon.call("status"))["domains"]:
                assert (domain["on_crash"], domain["held_why"]) == ("preserve", "it moves")
            await source.witness.execute("migrate", {"uri": way})
            while (await source.witness.execute("query-migrate")).get("status") != "completed":
                pass  # each look is a round trip to QEMU
            await source.witness.execute("quit")
            await source.wait_exit()
        while len((await daemon.call("status"))["domains"]) > 1:
            pass
        (domain,) = (await daemon.call("status"))["domains"]
        assert domain["domain"] == "db"
        await daemon.call("unhold", domain="db", why="it has moved")
        await target.start_guest()
        await target.panic()
        incident = await daemon.wait_incident("db", state="preserved")
        assert incident.decisions == [("preserve", "on-crash")]
        assert await target.status() == "guest-panicked"


async def test_a_vm_that_is_renamed_leaves_a_socket_and_no_panics(socket_dir: Path) -> None:
    before = FakeQemu(socket_dir / "old.qmp", name="old", uuid=UUID)
    after = FakeQemu(socket_dir / "new.qmp", name="new", uuid=UUID)
    async with RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon:
        async with before.running():
            await daemon.wait_armed("old")
            before.exit()
        await daemon.wait_domain("old", lambda domain: not domain["connected"])
        async with after.running():
            await daemon.wait_armed("new")
            after.panic()
            await daemon.wait_incident("new", state="preserved")
            for name, panics in (("new", 1), ("old", 0)):
                assert await daemon.metric("panicd_domain_panics_total", domain=name) == panics
                assert await daemon.metric("panicd_domain_panicked", domain=name) == panics


async def test_a_reload_names_each_that_its_rule_applies_to(socket_dir: Path) -> None:
    one, other = (FakeQemu(socket_dir / f"{monitor}.qmp", name="db") for monitor in ("a", "b"))
    async with RunningDaemon.start(socket_dir, DESTROYED) as daemon, one.running(), other.running():
        await daemon.wait_log("policy in force", count=2)
        daemon.write_config(domains=KEPT)
        answer = await daemon.call("reload")
        assert len(answer["domains"]) == 2
