"""What panicd 0.1.0 left goes on: it kept everything under what a QEMU claims."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from panicd.journal.journal import Journal
from panicd.rules.incident import AnyEntry, Opened, Settled, Source, State
from panicd.rules.operation import Operation, OperationKind
from tests.journal.journals import decided, restart
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51"
POLICY = {"on_crash": "restart", "restart": {"max": 2, "min_uptime": "0s"}}


async def written(directory: Path, incidents: dict[str, list[AnyEntry]], *held: str) -> None:
    """Write a journal as 0.1.0 did."""
    path = directory / "state" / "journal.sqlite3"
    path.parent.mkdir(mode=0o700)
    with Journal.open(path) as journal:
        for incident_id, entries in incidents.items():
            await journal.append(incident_id, *entries)
        for domain in held:
            at = time.time()
            await journal.append_operation(Operation(at, 0, OperationKind.HOLD, domain, "old"))
    with closing(sqlite3.connect(path)) as database:
        for incident_id, body in database.execute(
            "SELECT incident, body FROM entry WHERE position = 0"
        ).fetchall():
            fields = json.loads(body)
            assert (fields.pop("key"), fields.pop("name")) == ("", "")
            database.execute(
                "UPDATE entry SET body = ? WHERE incident = ? AND position = 0",
                (json.dumps(fields), incident_id),
            )
        database.execute("DROP TABLE signature")
        database.execute("ALTER TABLE incident DROP COLUMN domain_key")
        database.execute("PRAGMA user_version = 3")
        database.commit()


def restarted(uuid: str) -> dict[str, list[AnyEntry]]:
    """Two restarts of one VM."""
    now = time.time()
    return {name: list(restart(now - ago, "vm", uuid)) for name, ago in (("a", 60), ("b", 30))}


@pytest.mark.parametrize("uuid", [UUID, ""])
async def test_budget_and_counts(socket_dir: Path, uuid: str) -> None:
    await written(socket_dir, restarted(uuid))
    fake = FakeQemu(socket_dir / "vm.qmp", uuid=uuid or None)
    async with RunningDaemon.start(socket_dir, POLICY) as daemon, fake.running():
        await daemon.wait_armed("vm")
        assert await daemon.metric("panicd_domain_restarts_total", domain="vm") == 2
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "budget-spent")]
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 3
        await daemon.wait_kept(incident)
        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 3


async def test_hold_and_its_end(socket_dir: Path) -> None:
    """It was kept under the UUID, whatever the operator had said."""
    await written(socket_dir, {}, UUID)
    fake = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with RunningDaemon.start(socket_dir, POLICY) as daemon, fake.running():
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["held_why"] == "old"
        await daemon.call("unhold", domain="vm", why="done")
        assert (await daemon.domain("vm"))["held_why"] == ""


@pytest.mark.parametrize("place", ["vm.qmp", "elsewhere.qmp"])
async def test_open_incident(socket_dir: Path, place: str) -> None:
    """It is gone on with by the QEMU at the monitor that it began on."""
    at = time.time() - 60
    began = Opened(at, "vm", UUID, str(socket_dir / "vm.qmp"), "", Source.EVENT)
    await written(socket_dir, {"a": [began, decided(at), Settled(at, State.PRESERVED)]})
    fake = FakeQemu(socket_dir / place, uuid=UUID, state=RunState.GUEST_PANICKED)
    async with RunningDaemon.start(socket_dir, {"on_crash": "preserve"}) as daemon, fake.running():
        await daemon.wait_armed("vm")
        if place == "vm.qmp":
            await daemon.wait_log("open incident found again", incident="a")
            assert (await daemon.call("status"))["waiting"] == []
        else:
            await daemon.wait_log("guest panicked", source="reconciliation")
            (waits,) = (await daemon.call("status"))["waiting"]
            assert waits["incident"] == "a"
