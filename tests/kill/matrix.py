"""The matrix: every scenario with everything that can strike, at every point that it passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import trio

from tests.kill.cases import COMMANDS, FIRST, Blow, Case, Verdict, try_case
from tests.kill.scenarios import Kind, Scenario
from tests.parts.libvirt import Libvirtd

AT_ONCE = 3
"""Cases under way at a time: a case waits about as long as it computes."""

TRIES = 8
"""How often a case is tried in which the daemon does not come to its point."""


@dataclass
class Figures:
    """What a run came to.

    Attributes:
        points: The different points at which something struck.
        runs: The cases tried.
        missed: Those in which the daemon did not come to its point, as timing would have it.
        violations: Those in which something was wrong.
        seconds: How long it took.
    """

    points: set[tuple[str, Kind, str]] = field(default_factory=set)
    runs: int = 0
    missed: list[Verdict] = field(default_factory=list)
    violations: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        """Count a case."""
        case = verdict.case
        self.runs += 1
        if case.point is not None and verdict.reached:
            self.points.add((case.scenario.name, case.kind, case.point))
        if verdict.violations:
            self.violations.append(verdict)
        elif case.point is not None and not verdict.reached:
            self.missed.append(verdict)


async def run(
    cases: Iterable[Case],
    tell: Callable[[Verdict], None] = lambda _: None,
    libvirtd: Libvirtd | None = None,
) -> Figures:
    """Try cases, some at a time; on a real libvirtd, whose domain has one name, one by one."""
    at_once = AT_ONCE if libvirtd is None else 1
    figures, limiter, began = Figures(), trio.CapacityLimiter(at_once), time.monotonic()

    async def one(case: Case) -> None:
        async with limiter:
            verdict = await try_case(case, libvirtd)
            for _ in range(TRIES - 1):
                if case.point is None or verdict.reached or verdict.violations:
                    break
                verdict = await try_case(case, libvirtd)
        figures.add(verdict)
        tell(verdict)

    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(one, case)
    figures.seconds = time.monotonic() - began
    return figures


async def points_of(
    scenarios: Iterable[Scenario], kind: Kind, libvirtd: Libvirtd | None = None
) -> dict[str, list[str]]:
    """Return the points that each scenario passes when nothing strikes.

    Raises:
        AssertionError: It goes wrong even so.
    """
    found: dict[str, list[str]] = {}

    def take(verdict: Verdict) -> None:
        assert not verdict.violations, f"{verdict.case}: {verdict.violations}"
        found[verdict.case.scenario.name] = verdict.points

    await run([Case(scenario, kind) for scenario in scenarios], take, libvirtd)
    return found


def cases_of(scenario: Scenario, points: Iterable[str], kind: Kind) -> Iterator[Case]:
    """Return everything that can strike a scenario at these points."""
    for point in points:
        for blow in _blows(scenario, point, kind):
            yield Case(scenario, kind, point, blow)


def _blows(scenario: Scenario, point: str, kind: Kind) -> Iterator[Blow]:
    moment, _, rest = point.partition(" ")
    command, _, number = rest.partition(" #")
    sent = moment == "sent" and command in COMMANDS and command not in scenario.refused
    if scenario.hangs and point == FIRST:
        return  # there it begins to hang
    yield Blow.KILL
    if kind in {Kind.REAL, Kind.REAL_LIBVIRT}:
        yield Blow.KILL_QEMU if kind is Kind.REAL else Blow.KILL_LIBVIRTD
        # libvirtd is asked before each command, and while it stands still none is sent.
        if sent and not scenario.hangs and kind is Kind.REAL:
            yield Blow.KILL_UNREAD
        return
    yield Blow.CUT
    if sent and number == "1":
        yield from (Blow.KILL_LOST, Blow.KILL_LATE, Blow.SWALLOW)
