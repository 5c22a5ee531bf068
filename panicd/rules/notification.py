"""The entries of an incident that panicd sends a notice about."""

from enum import StrEnum

from panicd.rules.incident import AnyEntry, Closed, Decided, Incident, Settled, State


class Notice(StrEnum):
    """The kinds of notice; each stands for one entry of an incident."""

    PANICKED = "panicked"  # and the first decision about it
    SETTLED = "settled"  # the incident stays open: for somebody to look at, or the guest runs on
    CLOSED = "closed"


def notice_of(before: Incident | None, entry: AnyEntry) -> Notice | None:
    """Return an entry's notice, None if it has none; ``before``: its incident without the entry."""
    match entry:
        case Decided() if before is not None and not before.decisions:
            return Notice.PANICKED
        case Settled(state=State.RUNNING_ON) if before is not None and before.ran_on:
            return None  # ignored once more: told at the first time
        case Settled():
            return Notice.SETTLED
        case Closed():
            return Notice.CLOSED
        case _:
            return None
