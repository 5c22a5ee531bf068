"""Events that come while something is under way, and do not change it."""

from dataclasses import replace

from panicd.rules.machine.inputs import Heard
from panicd.rules.machine.turn import DEFERRED_AT_MOST, Turn
from panicd.rules.qapi import Event, GuestPanickedEvent, PanicAction, ResetEvent, ResumeEvent


def announced_twice(turn: Turn, event: Event) -> bool:
    """True if QEMU repeats a panic to say that it ends with it, as 2.8 does."""
    ends = isinstance(event, GuestPanickedEvent) and event.action is PanicAction.POWEROFF
    return ends and turn.known.stops_by_panic


def while_acting(turn: Turn, heard: Heard) -> None:
    """Take note of an event during a plan."""
    event = heard.event
    if isinstance(event, GuestPanickedEvent):
        if announced_twice(turn, event):
            return
        if turn.incident is not None and not turn.guest_was_let_go:
            turn.repeat(heard.count)
        else:  # the guest was let run since: its panic comes after the plan
            before = turn.put_off.count if turn.put_off is not None else 0
            turn.put_off = Heard((turn.put_off or heard).event, before + heard.count)
    elif isinstance(event, ResetEvent | ResumeEvent) and turn.put_off is not None:
        # Somebody has ended it before its turn came.
        turn.repeat(turn.put_off.count)
        turn.put_off = None


def defer(turn: Turn, heard: Heard) -> None:
    """Keep an event until QEMU has answered; equal events become one with a count."""
    last = turn.deferred[-1] if turn.deferred else None
    if last is not None and replace(last.event, at=heard.event.at) == heard.event:
        together = Heard(last.event, last.count + heard.count)
        turn.deferred = (*turn.deferred[:-1], together)
    elif len(turn.deferred) < DEFERRED_AT_MOST:
        turn.deferred = (*turn.deferred, heard)
    else:  # a flood of many kinds: ask for the outcome
        turn.unseen = True
        turn.unbroken = False


def panic_waits(turn: Turn) -> bool:
    """True if a panic's event came while an answer was due: it tells more than the answer.

    A QEMU that ends with the panic may say so a second time (``announced_twice``).
    """
    panics = (h.event for h in turn.deferred if isinstance(h.event, GuestPanickedEvent))
    return any(panic.action is not PanicAction.POWEROFF for panic in panics)


def begin_plan(turn: Turn) -> None:
    """Remember how many of the guest's resets and resumes were dealt with.

    Deferred events came later. The plan deals with them as with events during the plan.
    """
    resets = resets_taken(turn)
    resumes = turn.known.resumes - _deferred(turn, ResumeEvent)
    turn.base = (resets, resumes)
    turn.let_go = resets + resumes
    turn.resets_before = resets


def take_deferred(turn: Turn) -> None:
    """Take note of the deferred events: a plan is under way by now."""
    deferred, turn.deferred = turn.deferred, ()
    for heard in deferred:
        while_acting(turn, heard)


def resets_taken(turn: Turn) -> int:
    """Return how many of the guest's resets were dealt with."""
    return turn.known.resets - _deferred(turn, ResetEvent)


def _deferred(turn: Turn, kind: type[Event]) -> int:
    return sum(heard.count for heard in turn.deferred if isinstance(heard.event, kind))
