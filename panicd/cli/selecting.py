"""Which domains ``panicd status`` shows, and in what order."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Final, NamedTuple

from panicd.rules.standing import PROBLEMS, rank
from panicd.service.control_client import Answer


class Wanted(NamedTuple):
    """Which domains are wanted, and in what order.

    Attributes:
        patterns: globs of names, or UUIDs or monitors; none: all domains.
        problems: only those that somebody has to look at.
        policies: only those with one of these; none: all.
        sort: the order.
        everything: even if they don't fit the window.
    """

    patterns: Sequence[str] = ()
    problems: bool = False
    policies: Sequence[str] = ()
    sort: str = "state"
    everything: bool = False

    def select(self, answer: Answer) -> Answer:
        """Return an answer of ``status`` with the wanted domains, in their order.

        Its key ``of`` says how many domains there are.
        """
        rows = _rows(answer)
        chosen = sorted(filter(self._has, rows), key=SORTED_BY[self.sort])
        return answer | {"domains": chosen, "waiting": [], "of": len(rows)}

    def unmatched(self, answer: Answer) -> Iterator[str]:
        """Yield the patterns that match no domain of an answer, whatever else is wanted."""
        rows = _rows(answer)
        for pattern in self.patterns:
            if not any(_matches(row, pattern) for row in rows):
                yield pattern

    def _has(self, row: Answer) -> bool:
        return (
            (not self.problems or row["standing"] in PROBLEMS)
            and (not self.policies or row["on_crash"] in self.policies)
            and (not self.patterns or any(_matches(row, pattern) for pattern in self.patterns))
        )


def since(row: Answer) -> float | None:
    """Return since when, from the epoch, a domain stands as it does, if that matters."""
    if row["opened_at"] is not None:
        return float(row["opened_at"])
    if row["connected"]:
        return None if row["silent_since"] is None else float(row["silent_since"])
    return float(row["since"])


def _rows(answer: Answer) -> list[Answer]:
    """Return the domains, and the open incidents whose domains are gone.

    If panicd still tries the monitor of such an incident, both are one row. One monitor may have
    several
    incidents: VMs that dial in get new numbers when panicd starts.
    """
    gone = defaultdict[str, list[Answer]](list)
    for row in answer["waiting"]:
        gone[row["monitor"]].append(row)
    known = [
        gone[row["monitor"]].pop(0) | {"problem": row["problem"]}
        if not row["connected"] and gone.get(row["monitor"])
        else row
        for row in answer["domains"]
    ]
    return [*known, *chain.from_iterable(gone.values())]


def _matches(row: Answer, pattern: str) -> bool:
    names = (row["domain"], row["uuid"], row["monitor"])
    return any(name == pattern or fnmatchcase(name, pattern) for name in names if name)


def _worst_first(row: Answer) -> tuple[float, str]:
    return rank(row["standing"], acknowledged=row["acknowledged"]), row["domain"]


def _oldest_first(row: Answer) -> tuple[float, str]:
    began = since(row)
    return math.inf if began is None else began, row["domain"]


SORTED_BY: Final[dict[str, Callable[[Answer], tuple[float | str, str]]]] = {
    "state": _worst_first,
    "name": lambda row: ("", row["domain"]),
    "age": _oldest_first,
    "policy": lambda row: (row["on_crash"], row["domain"]),
}
