"""What operators ask outlives the daemon, and ends when it should."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from panicd.journal.journal import Journal
from panicd.rules.operation import Operation, OperationKind
from tests.journal.journals import change
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import patience

RESTART = {"on_crash": "restart"}


@pytest.mark.parametrize("held", ["vm", "*"], ids=["domain", "host"])
async def test_hold_outlives_the_daemon_until_it_is_taken_back(socket_dir: Path, held: str) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        await daemon.call("hold", domain=held, why="looking at it")
        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        assert (await daemon.domain("vm"))["held_why"] == "looking at it"
        assert await daemon.foreseen("vm") == ("preserve", "held")
        fake.panic()
        await daemon.wait_kept(await daemon.wait_incident("vm", state="preserved"))
        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_log("open incident found again", recovery="Stay")
        await daemon.wait_armed("vm", since=daemon.began)
        assert fake.acting_commands == []

        await daemon.call("unhold", domain=held, why="done")
        incident = await daemon.wait_incident("vm", ending="restarted")
        (told,) = daemon.journal()
        assert [decision.reason for decision in told.decisions] == ["held", "on-crash"]
        assert told.id == incident.id
        assert fake.acting_commands == ["system_reset", "cont"]


async def test_hold_ends_by_itself(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic_at_boot(1)  # one panic is dealt with before the hold, one finds it over
        await daemon.call("hold", domain="vm", why="a moment", **{"for": patience(1.0)})
        fake.panic()
        await daemon.wait_incident("vm", ending="restarted", count=2)
        first, second = daemon.incidents()
        assert first.decisions == [("preserve", "held"), ("restart", "on-crash")]
        assert second.decisions == [("restart", "on-crash")]


async def test_hold_that_ended_while_the_daemon_was_away_is_over(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        await daemon.call("hold", domain="*", why="an upgrade", **{"for": 3600.0})
        fake.panic()
        held = await daemon.wait_incident("vm", state="preserved")
        assert held.decisions == [("preserve", "held")]
        await daemon.wait_kept(held)
        await daemon.kill()
        over = "UPDATE operation SET body = json_set(body, '$.until', ?)"
        change(socket_dir / "state" / "journal.sqlite3", over, time.time())
        await daemon.start_again()
        ended = await daemon.wait_incident("vm", ending="restarted")
        assert ended.id == held.id
        assert ended.decisions == [("preserve", "held"), ("restart", "on-crash")]
        assert fake.acting_commands == ["system_reset", "cont"]


async def test_what_was_asked_long_ago_is_forgotten_but_for_a_hold(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    old = Operation(1.0, 0, OperationKind.HOLD, "vm", "for good")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.kill()
        with Journal.open(socket_dir / "state" / "journal.sqlite3") as journal:
            await journal.append_operation(replace(old, kind=OperationKind.ACT))
            await journal.append_operation(old)
        await daemon.start_again()
        while len(journal.operations()) > 1:
            await trio.lowlevel.checkpoint()
        assert journal.operations() == [old]
        await daemon.wait_armed("vm", since=daemon.began)
        assert (await daemon.domain("vm"))["held_why"] == "for good"


async def test_acknowledgement_is_kept_with_who_and_why(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await daemon.call("ack", incident=incident.id, why="it is known")
        await daemon.kill()
        await daemon.start_again()
        (kept,) = daemon.journal()
        assert kept.acknowledged is not None
        assert (kept.acknowledged.uid, kept.acknowledged.why) == (os.getuid(), "it is known")


UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51"


@pytest.mark.parametrize("named", ["vm", UUID, UUID.upper(), "{directory}/vm.qmp"])
@pytest.mark.parametrize("before", [False, True], ids=["there", "to come"])
async def test_a_hold_by_whatever_a_domain_is_called(
    socket_dir: Path, named: str, before: bool
) -> None:
    fake, named = FakeQemu(socket_dir / "vm.qmp", uuid=UUID), named.format(directory=socket_dir)
    async with RunningDaemon.start(socket_dir, RESTART) as daemon:
        if before:
            await daemon.call("hold", domain=named, why="it is to come", future=True)
        async with fake.running():
            await daemon.wait_armed("vm")
            if not before:
                await daemon.call("hold", domain=named, why="it is there")
            assert (await daemon.domain("vm"))["held_why"]
            await daemon.call("unhold", domain="vm" if not before else named, why="done")
            left = (await daemon.domain("vm"))["held_why"]
            assert not left
