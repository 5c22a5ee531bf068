"""``python -m tests.kill [SCENARIO…]``: the whole kill matrix, and its figures."""

from __future__ import annotations

import sys

import trio

from tests.kill.cases import Verdict
from tests.kill.matrix import Figures, cases_of, points_of, run
from tests.kill.scenarios import SCENARIOS


def _tell(verdict: Verdict) -> None:
    if verdict.violations:
        print(f"VIOLATION  {verdict.case}", *verdict.violations, sep="\n  ", flush=True)


def _print(kind: str, figures: Figures) -> None:
    print(
        f"{kind}: {len(figures.points)} points struck in {figures.runs} runs,"
        f" {len(figures.violations)} violations, {len(figures.missed)} not reached,"
        f" {figures.seconds:.0f} s",
        flush=True,
    )


async def _main(names: list[str]) -> int:
    chosen = [s for s in SCENARIOS if not names or s.name in names]
    violations = 0
    for kind, scenarios in (
        ("fake", [s for s in chosen if s.fake]),
        ("real", [s for s in chosen if s.arguments is not None]),
    ):
        real = kind == "real"
        points = await points_of(scenarios, real=real)
        figures = await run(
            [case for s in scenarios for case in cases_of(s, points[s.name], real=real)], _tell
        )
        _print(kind, figures)
        violations += len(figures.violations)
    return violations


if __name__ == "__main__":
    sys.exit(bool(trio.run(_main, sys.argv[1:])))
