"""Room that several users share: one user's things never cost another user anything.

All users' things together have a limit. Past the limit, a user who adds something makes room among
his own things, down to an equal share of the limit and no further. Nobody makes room for somebody
else. So all together may exceed the limit for a time, until users above their share add something
again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class Kept(Generic[Thing]):
    """A kept thing.

    Attributes:
        thing: the thing itself.
        size: in bytes.
        owner: its owner, as the host vouches for him; None: unknown.
    """

    thing: Thing
    size: int
    owner: int | None


def make_room(
    kept: Iterable[Kept[Thing]], stays: Mapping[int | None, int], owner: int | None, limit: int
) -> Iterator[Thing]:
    """Yield the things to remove after an owner has added a thing.

    Args:
        kept: the removable things, in the order of removal. Things without an owner go first.
        stays: bytes of the things that must stay, by owner.
        owner: the owner of the added thing.
        limit: bytes that all things may take together.
    """
    kept = list(kept)
    taken = dict(stays)
    for one in kept:
        taken[one.owner] = taken.get(one.owner, 0) + one.size
    total = sum(taken.values())
    share = limit // max(1, len(taken.keys() - {None}))
    for one in sorted(kept, key=lambda one: one.owner is not None):
        if total <= limit:
            return
        if one.owner is None or (one.owner == owner and taken[owner] > share):
            total -= one.size
            taken[one.owner] -= one.size
            yield one.thing
