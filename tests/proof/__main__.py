"""``python -m tests.proof [PANICS FOREIGN CRASHES CUTS DEATHS [WORLDS [WORKS]]]``: how far.

With WORKS, so many jobs and migrations begin, and panicd follows QEMU's work.
"""

import sys
from dataclasses import replace

from panicd.rules.on_crash import OnCrash
from tests.proof.search import search, start
from tests.proof.world import Limits

given = [int(word) for word in sys.argv[1:6]] or [2, 1, 1, 1, 1]
at_most = int(sys.argv[6]) if len(sys.argv) > 6 else None
works = int(sys.argv[7]) if len(sys.argv) > 7 else 0
limits = replace(Limits(*given), works=works)
violations = 0
for on_crash in OnCrash:
    figures = search(start(on_crash, limits, follows=works > 0), at_most=at_most)
    violations += figures.violation is not None
    print(
        f"{on_crash}: {figures.worlds} worlds, {figures.moves} moves, depth {figures.depth}, "
        f"{figures.seconds:.0f} s: {figures.violation or 'nothing wrong'}",
        flush=True,
    )
sys.exit(violations > 0)
