"""Operators' requests, as the journal keeps them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

LONGEST_HOLD: Final = 100 * 365 * 86400.0  # seconds; a later end has no date
EVERY_DOMAIN: Final = "*"
"""Stands for all domains of the host: maintenance."""


class OperationKind(StrEnum):
    """What was asked for."""

    HOLD = "hold"
    UNHOLD = "unhold"
    RELEASE = "release"
    ACT = "act"
    ACK = "ack"
    ARM = "arm"
    DISARM = "disarm"


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of an operator.

    Attributes:
        at: seconds since the epoch.
        uid: the user who asked (SO_PEERCRED, unix(7)).
        kind: the kind of request.
        domain: the operator's word for it, a name or a UUID; its key if no QEMU claims that word;
            or ``EVERY_DOMAIN``.
        why: in the operator's words.
        until: when a hold ends by itself; None: it lasts until an operator takes it back.
        detail: of ``act`` the action, of ``ack`` the incident, of ``arm`` the device.
        user: who asked by the page (its requests have panicd's own uid); empty for others.
    """

    at: float
    uid: int
    kind: OperationKind
    domain: str
    why: str
    until: float | None = None
    detail: str = ""
    user: str = ""


class Holds:
    """Which domains are held: the latest hold or unhold of each counts."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self._latest: dict[str, Operation] = {}
        for operation in operations:
            self.add(operation)

    def add(self, operation: Operation) -> None:
        """Add an operation that is later than all before."""
        match operation.kind:
            case OperationKind.HOLD:
                self._latest[operation.domain] = operation
            case OperationKind.UNHOLD:
                self._latest.pop(operation.domain, None)
            case _:
                pass

    def shift(self, seconds: float) -> None:
        """Move the ends of all holds: the clock was set, and the holds last as long as before."""
        for domain, hold in self._latest.items():
            if hold.until is not None:
                self._latest[domain] = replace(hold, until=hold.until + seconds)

    def on(self, names: Iterable[str], now: float) -> Operation | None:
        """Return the hold on a domain, by any of its names, or on the whole host."""
        if not self._latest:  # asked at each step of each panic
            return None
        holds = (self.at(held, now) for held in (*names, EVERY_DOMAIN))
        return next(filter(None, holds), None)

    def at(self, held: str, now: float) -> Operation | None:
        """Return the hold under exactly this key, name or ``EVERY_DOMAIN``, if it lasts."""
        hold = self._latest.get(held)
        return hold if hold is not None and (hold.until is None or now < hold.until) else None

    def lasting(self, now: float) -> list[Operation]:
        """Return the holds that last. May be asked for in any thread."""
        holds = list(self._latest.values())
        return [hold for hold in holds if hold.until is None or now < hold.until]

    def next_end(self, now: float) -> float | None:
        """Return when the next hold ends by itself, in seconds since the epoch."""
        ends = (hold.until for hold in self._latest.values() if hold.until is not None)
        return min((end for end in ends if end > now), default=None)


def over(operations: Mapping[int, Operation], before: float) -> list[int]:
    """Return which operations were over before a time, in the order in which they may be forgotten.

    A domain's latest hold is over when it ends; any other operation is over at once. A domain's
    later holds and unholds are never forgotten before its earlier ones, which would then be in
    force again.

    Args:
        operations: the operations by their positions, in order.
        before: seconds since the epoch.
    """
    latest = {asked.domain: position for position, asked in operations.items() if _holds(asked)}
    found, kept = [], set[str]()
    for position, asked in operations.items():
        lasts = asked.kind is OperationKind.HOLD and latest[asked.domain] == position
        end = asked.at
        if lasts:
            end = math.inf if asked.until is None else max(asked.at, asked.until)
        if end < before and not (_holds(asked) and asked.domain in kept):
            found.append(position)
        elif _holds(asked):
            kept.add(asked.domain)
    return found


def _holds(operation: Operation) -> bool:
    return operation.kind in {OperationKind.HOLD, OperationKind.UNHOLD}
