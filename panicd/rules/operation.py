"""What operators ask for, as it is kept in the journal."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EVERY_DOMAIN: Final = "*"
"""Stands for all domains of the host: maintenance."""


class OperationKind(StrEnum):
    """What was asked for."""

    HOLD = "hold"
    UNHOLD = "unhold"
    RELEASE = "release"
    ACT = "act"
    ACK = "ack"


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of an operator.

    Attributes:
        at: seconds since the epoch.
        uid: the user who asked (SO_PEERCRED, unix(7)).
        kind: what was asked for.
        domain: the domain's key, or ``EVERY_DOMAIN``.
        why: in the operator's words.
        until: of a hold, when it ends by itself; None: when it is taken back.
        detail: of ``act`` the action, of ``ack`` the incident.
    """

    at: float
    uid: int
    kind: OperationKind
    domain: str
    why: str
    until: float | None = None
    detail: str = ""


class Holds:
    """Which domains are held: the latest hold or unhold of each counts."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self._latest: dict[str, Operation] = {}
        for operation in operations:
            self.add(operation)

    def add(self, operation: Operation) -> None:
        """Take in an operation, later than those before."""
        match operation.kind:
            case OperationKind.HOLD:
                self._latest[operation.domain] = operation
            case OperationKind.UNHOLD:
                self._latest.pop(operation.domain, None)
            case _:
                pass

    def on(self, key: str, name: str, now: float) -> Operation | None:
        """Return the hold that a domain is under, by its key, its name or the whole host."""
        for held in (key, name, EVERY_DOMAIN):
            hold = self._latest.get(held)
            if hold is not None and (hold.until is None or now < hold.until):
                return hold
        return None

    def next_end(self, now: float) -> float | None:
        """Return when the next hold ends by itself, in seconds since the epoch."""
        ends = (hold.until for hold in self._latest.values() if hold.until is not None)
        return min((end for end in ends if end > now), default=None)
