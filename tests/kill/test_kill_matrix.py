"""The fast part of the matrix: every kind of blow and of step, on some of the scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.kill.cases import Blow, Case
from tests.kill.matrix import Figures, cases_of, points_of, run
from tests.kill.scenarios import SCENARIOS, Kind, Scenario

pytestmark = pytest.mark.kill

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}

SOME_MAY_BE_MISSED = 0.1
"""The share of points that a busy machine's timing may leave out."""


def is_question(case: Case) -> bool:
    return case.point is not None and "query-" in case.point


async def try_some(names: list[str], holds: Callable[[Case], bool], kind: Kind) -> Figures:
    scenarios: list[Scenario] = [BY_NAME[name] for name in names]
    points = await points_of(scenarios, kind)

    def chosen() -> Iterator[Case]:
        for scenario in scenarios:
            for case in cases_of(scenario, points[scenario.name], kind):
                if not is_question(case) and holds(case):
                    yield case

    return await run(chosen())


def check(figures: Figures) -> None:
    wrong = [f"{verdict.case}: " + "; ".join(verdict.violations) for verdict in figures.violations]
    assert not wrong, "\n".join(wrong)
    assert figures.runs > 0
    assert len(figures.missed) <= SOME_MAY_BE_MISSED * figures.runs


async def test_panicd_is_killed_at_every_point_of_a_restart() -> None:
    kills = {Blow.KILL, Blow.KILL_LOST, Blow.KILL_LATE}
    check(await try_some(["restart"], lambda case: case.blow in kills, Kind.FAKE))


async def test_panicd_is_killed_around_every_command_of_other_plans() -> None:
    names = ["coredump-ignore", "release", "restart-by-2.5", "refused-restart-falls-back"]
    kills = {Blow.KILL_LOST, Blow.KILL_LATE}

    def commands_only(case: Case) -> bool:
        around = case.point is not None and case.point.startswith(("before", "answered"))
        is_commit = case.point is not None and "commit" in case.point
        return case.blow in kills or (case.blow is Blow.KILL and around and not is_commit)

    check(await try_some(names, commands_only, Kind.FAKE))


async def test_connection_is_cut_and_answers_are_lost() -> None:
    def sent_only(case: Case) -> bool:
        sent = case.point is not None and case.point.startswith("sent")
        return case.blow is Blow.SWALLOW or (case.blow is Blow.CUT and sent)

    check(await try_some(["coredump-restart", "destroy", "release"], sent_only, Kind.FAKE))


async def test_panicd_is_killed_and_cut_off_around_every_command_to_libvirt() -> None:
    blows = {Blow.KILL, Blow.KILL_LOST, Blow.KILL_LATE, Blow.CUT, Blow.SWALLOW}

    def sent_only(case: Case) -> bool:
        return case.blow in blows and case.point is not None and case.point.startswith("sent")

    names = ["coredump-restart", "ignore-by-libvirt"]
    check(await try_some(names, sent_only, Kind.FAKE_LIBVIRT))


@pytest.mark.real
async def test_panicd_is_killed_and_qemu_is_a_real_one() -> None:
    kills = {Blow.KILL, Blow.KILL_UNREAD}

    def in_flight(case: Case) -> bool:
        sent = case.point is not None and case.point.startswith(("sent", "after dump"))
        return case.blow in kills and sent

    check(await try_some(["coredump-restart", "destroy"], in_flight, Kind.REAL))


@pytest.mark.real
async def test_panicd_is_killed_around_a_relaunch_and_an_escalation() -> None:
    def at_the_end(case: Case) -> bool:
        said = case.point is not None and case.point.endswith(("relaunch #1", "SIGTERM #1"))
        return case.blow is Blow.KILL and said

    names = ["relaunch", "destroy-of-a-hung-qemu"]
    check(await try_some(names, at_the_end, Kind.REAL))


@pytest.mark.real
async def test_qemu_is_killed_in_the_middle_of_a_plan() -> None:
    def in_flight(case: Case) -> bool:
        sent = case.point is not None and case.point.startswith("sent")
        return case.blow is Blow.KILL_QEMU and sent

    check(await try_some(["coredump-restart"], in_flight, Kind.REAL))
