"""Room that several users share: what one of them keeps there never makes another lose anything.

All of it together has a limit. Where that is passed, whoever comes with more makes room among what
is his own, down to an equal share of the limit and no further; nobody is made to by somebody else.
So all may take more than the limit for a time: until those who have more than their share come
again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


@dataclass(frozen=True, slots=True)
class Kept(Generic[Thing]):
    """Something that is kept.

    Attributes:
        thing: what it is.
        size: in bytes.
        owner: whose it is, as the host vouches for him; None: nobody is known.
    """

    thing: Thing
    size: int
    owner: int | None


def make_room(
    kept: Iterable[Kept[Thing]], stays: Mapping[int | None, int], owner: int | None, limit: int
) -> Iterator[Thing]:
    """Yield what is to go, for something that an owner has just added.

    Args:
        kept: what may go, in the order in which it would. What is nobody's goes first.
        stays: bytes of what may not, by its owner.
        owner: whose something it is.
        limit: bytes of it all.
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
