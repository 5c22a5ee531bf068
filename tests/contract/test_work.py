"""What panicd relies on in a QEMU 7.2 or later: it tells of its jobs and migrations by events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.qemu.probe import TELL_OF_MIGRATIONS
from panicd.rules.machine.vm import Vm, follow
from panicd.rules.machine.work import Work as Followed
from panicd.rules.machine.work import found_work
from panicd.rules.qapi import RunState, parse_event
from tests.contract.asking import refusal
from tests.contract.subjects import Setup, Start, Subject, Work
from tests.parts.daemon import DaemonInside
from tests.parts.qmp import QmpClient
from tests.parts.recorded import FOLLOWS
from tests.rules.strategies import MODERN

AT_WORK = Setup(panic="pause", works=True)
PROXIED = Setup(works=True, proxied=True)
QUESTIONS = ("query-migrate", "query-jobs", "query-dump")
TOLD = {
    Work.JOB: ("created", "running", "null"),
    Work.MIGRATION: ("setup", "active", "cancelled"),
}
"""How it begins, goes on and ends; a job may be paused meanwhile."""
EVENTS = {Work.JOB: "JOB_STATUS_CHANGE", Work.MIGRATION: "MIGRATION"}


async def asked(qmp: QmpClient) -> Followed | None:
    """What panicd makes of the first answers."""
    followed = await qmp.execute(FOLLOWS, TELL_OF_MIGRATIONS)
    return found_work(followed, *[await qmp.execute(each) for each in QUESTIONS])


def statuses(qmp: QmpClient, work: Work) -> list[str]:
    """What the events about that work say, in order."""
    return [each["data"]["status"] for each in qmp.events if each["event"] == EVENTS[work]]


def followed(qmp: QmpClient) -> Followed | None:
    """What panicd knows of a QEMU's work by its events, if it was idle before."""
    vm = Vm(RunState.RUNNING, MODERN, work=Followed())
    for event in filter(None, map(parse_event, qmp.events)):
        vm = follow(vm, event)
    return vm.work


class TestWork:
    async def test_an_idle_one_is_followed(self, start: Start) -> None:
        async with start(AT_WORK) as vm, vm.client() as qmp:
            assert await asked(qmp) == Followed()

    @pytest.mark.parametrize("work", Work)
    async def test_it_tells_from_the_beginning_to_the_end(self, start: Start, work: Work) -> None:
        async with start(AT_WORK) as vm, vm.client() as qmp:
            await asked(qmp)
            await vm.begin(work)
            begins, goes_on, end = TOLD[work]
            while goes_on not in statuses(qmp, work):
                await qmp.execute("query-status")
            assert statuses(qmp, work)[0] == begins
            known = followed(qmp)
            assert known is not None
            assert not known.is_nothing
            await vm.end(work)
            while end not in statuses(qmp, work):
                await qmp.execute("query-status")
            assert statuses(qmp, work)[-1] == end
            known = followed(qmp)
            assert known is not None
            assert known.is_nothing
            again = await asked(qmp)
            assert again is not None
            assert again.is_nothing

    async def test_a_job_that_goes_on_is_found(self, start: Start) -> None:
        async with start(AT_WORK) as vm, vm.client() as qmp:
            await vm.begin(Work.JOB)
            assert await asked(qmp) == Followed(frozenset({"disk"}))

    async def test_a_migration_that_goes_on_forbids_to_be_told_of_it(self, start: Start) -> None:
        async with start(AT_WORK) as vm, vm.client() as qmp:
            await vm.begin(Work.MIGRATION)
            error, text = await refusal(qmp, FOLLOWS, TELL_OF_MIGRATIONS)
            assert error == "GenericError"
            assert "migration" in text
            assert (await qmp.execute("query-migrate"))["status"] == "active"
            assert statuses(qmp, Work.MIGRATION) == []

    async def test_nothing_is_told_of_a_migration_unless_wanted(self, start: Start) -> None:
        async with start(AT_WORK) as vm, vm.client() as qmp:
            await vm.begin(Work.MIGRATION)
            await vm.end(Work.MIGRATION)
            assert statuses(qmp, Work.MIGRATION) == []


@asynccontextmanager
async def watched(
    start: Start, directory: Path, **policy: Any
) -> AsyncIterator[tuple[DaemonInside, Subject]]:
    """A daemon, and a QEMU that it is connected to."""
    async with (
        start(PROXIED) as vm,
        DaemonInside.start(directory, {"on_crash": "restart", **policy}) as daemon,
    ):
        await daemon.wait_armed("contract")
        yield daemon, vm


def times_asked(vm: Subject) -> int:
    """How often QEMU was asked what it is busy with, since the session began."""
    return vm.commands.count("query-dump") - 1


class TestPanicd:
    async def test_an_idle_one_is_not_asked(self, start: Start, socket_dir: Path) -> None:
        async with watched(start, socket_dir) as (daemon, vm):
            await vm.panic()
            await daemon.wait_incident("contract", ending="restarted")
            assert times_asked(vm) == 0

    @pytest.mark.parametrize("work", Work)
    async def test_work_is_waited_for(self, start: Start, socket_dir: Path, work: Work) -> None:
        async with watched(start, socket_dir) as (daemon, vm):
            await vm.begin(work)
            await vm.panic()
            await daemon.wait_log("waiting", until_the_end_of=work.value)
            assert "system_reset" not in vm.commands
            await vm.end(work)
            incident = await daemon.wait_incident("contract", ending="restarted")
            assert f"waited for {work.value}" in incident.details
            assert times_asked(vm) > 0

    @pytest.mark.parametrize("work", Work)
    async def test_work_that_has_ended_is_not_asked_about(
        self, start: Start, socket_dir: Path, work: Work
    ) -> None:
        async with watched(start, socket_dir) as (daemon, vm):
            await vm.begin(work)
            await vm.end(work)
            await vm.panic()
            await daemon.wait_incident("contract", ending="restarted")
            assert times_asked(vm) == 0
