"""``python -m tests.kill [KIND…] [SCENARIO…]``: the whole kill matrix, and its figures."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from tests.kill.cases import Verdict
from tests.kill.matrix import Figures, cases_of, points_of, run
from tests.kill.scenarios import SCENARIOS, Kind
from tests.parts.libvirt import Libvirtd


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
    for verdict in figures.missed:
        print(f"not reached  {verdict.case}", flush=True)


async def _main(words: list[str]) -> int:
    violations = 0
    kinds = [kind for kind in Kind if kind in words] or list(Kind)
    names = set(words) - set(kinds)
    for kind in kinds:
        chosen = [s for s in SCENARIOS if kind in s.kinds and (not names or s.name in names)]
        with ExitStack() as stack:
            libvirtd = None
            if kind is Kind.REAL_LIBVIRT:
                directory = Path(stack.enter_context(TemporaryDirectory(prefix="panicd-")))
                libvirtd = stack.enter_context(Libvirtd.start(directory))
            points = await points_of(chosen, kind, libvirtd)
            cases = [case for s in chosen for case in cases_of(s, points[s.name], kind)]
            figures = await run(cases, _tell, libvirtd)
        _print(kind, figures)
        violations += len(figures.violations)
    return violations


if __name__ == "__main__":
    sys.exit(bool(trio.run(_main, sys.argv[1:])))
