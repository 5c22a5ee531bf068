"""Goes through every world that can be reached, and checks where each comes to if left alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Final

from panicd.rules.incident import Closed
from panicd.rules.incident import State as IncidentState
from panicd.rules.machine.inputs import Answered
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.qapi import RunState
from tests.proof.world import Limits, ViolationError, World, _outside_moves, incident_of, moves

SETTLES_WITHIN: Final = 400
"""Moves after which nothing is under way any more, if nothing comes from outside."""


@dataclass
class Figures:
    """What a search came to.

    Attributes:
        worlds: Different ones that were reached.
        moves: Ways from one to another.
        depth: Moves of the longest shortest way.
        seconds: How long it took.
        violation: What was wrong, and the way to it; None: nothing.
    """

    worlds: int = 0
    moves: int = 0
    depth: int = 0
    seconds: float = 0.0
    violation: str | None = None


_FIELDS: Final = [each.name for each in fields(World) if each.name != "state"]


def key(world: World) -> object:
    """Return what tells a world from others: without numbers that only count.

    What answers something that nobody waits for any more is all the same."""
    state = world.state
    serial = state.serial if state is not None else 0
    values = {name: getattr(world, name) for name in _FIELDS}
    values["commands"] = tuple((serial == each, names) for each, names in world.commands)
    values["commits"] = tuple((serial == each, count) for each, count in world.commits)
    values["timer"] = serial == world.timer
    values["work"] = None if world.work is None else (serial == world.work[0], world.work[1])
    values["channel"] = tuple(
        (replace(each.said, serial=serial == each.said.serial), each.guest)
        if isinstance(each.said, Answered)
        else each
        for each in world.channel
    )
    rest = None if state is None else state._replace(incident=None, serial=0)
    return tuple(values.values()), rest


def trimmed(world: World) -> World:
    """Return a world without incidents that are over: nothing asks for them any more."""
    last = max((i for i, e in enumerate(world.entries) if isinstance(e, Closed)), default=-1)
    return world if last < 0 else replace(world, entries=world.entries[last + 1 :])


def search(start: World, *, at_most: int | None = None) -> Figures:
    """Look at every world that can be reached from one.

    Args:
        start: where it begins.
        at_most: worlds after which it ends.
    """
    figures, began = Figures(), time.monotonic()
    seen: dict[object, int] = {key(start): 0}
    good: set[object] = set()
    ways: dict[object, tuple[object, str] | None] = {key(start): None}
    front = [start]
    while front and figures.violation is None:
        following: list[World] = []
        figures.depth += 1
        for world in front:
            here = key(world)
            try:
                settle(world, good)
                for name, after in moves(world):
                    there = trimmed(after)
                    figures.moves += 1
                    to = key(there)
                    if to not in seen:
                        seen[to] = figures.depth
                        ways[to] = (here, name)
                        following.append(there)
            except ViolationError as violation:
                figures.violation = f"{violation}\n  " + "\n  ".join(_way(ways, here))
                break
        front = following
        if at_most is not None and len(seen) >= at_most:
            break
    figures.worlds, figures.seconds = len(seen), time.monotonic() - began
    return figures


def _way(ways: dict[object, tuple[object, str] | None], here: object) -> list[str]:
    names: list[str] = []
    while (before := ways[here]) is not None:
        here, name = before
        names.append(name)
    return names[::-1]


def settle(world: World, good: set[object]) -> None:
    """Let everything that is under way come to its end, and see that this is a good one.

    Raises:
        ViolationError: It is not, or there is none.
    """
    calm = replace(world, left=Limits(0, 0, 0, 0, 0))
    passed: list[object] = []
    names: list[str] = []
    for _ in range(SETTLES_WITHIN):
        here = key(calm)
        if here in good:
            break
        if here in passed:
            check(calm, names)
            break
        passed.append(here)
        upcoming = next(_calm_moves(calm), None)
        if upcoming is None:
            check(calm, names)
            break
        names.append(upcoming[0])
        calm = trimmed(upcoming[1])
    else:
        raise ViolationError("it does not come to an end: " + ", ".join(names[-20:]))
    good.update(passed)


def _calm_moves(world: World) -> Iterator[tuple[str, World]]:
    """Yield what happens if nobody hurries: time passes when nothing else happens."""
    possible = list(moves(world))
    assert not list(_outside_moves(world))
    yield from (each for each in possible if each[0] != "the time is over")
    yield from (each for each in possible if each[0] == "the time is over")


def check(world: World, names: list[str]) -> None:
    """Check that a world in which nothing is under way is as it should be.

    Raises:
        ViolationError: It is not.
    """
    wrong = _what_is_wrong(world)
    if wrong:
        raise ViolationError(f"{wrong}, and then " + ", ".join(names))


def _what_is_wrong(world: World) -> str:
    guest, incident = world.guest, incident_of(world.entries)
    action = world.on_crash.action
    stopped = guest.state is RunState.GUEST_PANICKED
    if world.noted:
        return "something was never written"
    if not world.alive:
        return "an incident whose QEMU is gone stays open" if incident is not None else ""
    if not guest.panicked and guest.state is RunState.RUNNING and incident is not None:
        return "an incident of a healthy guest stays open"
    known = not world.misread  # else it is paused as the panicked one would be: crash-safety.md
    if known and not guest.panicked and incident and incident.state is not IncidentState.RESET:
        return f"a guest that others have reset counts as {incident.state}"
    if guest.panicked and stopped and incident is None:
        return "a panicked guest that nobody knows of"
    if stopped and incident is not None and incident.state is IncidentState.RUNNING_ON:
        return "a guest that its panic has stopped counts as one that runs on"
    if guest.panicked and stopped and action in {Action.DESTROY, Action.RESTART}:
        assert incident is not None
        if incident.state is not IncidentState.FAILED:
            return f"a panicked guest is left as it is: {incident.state}"
    return ""


def start(
    on_crash: OnCrash,
    limits: Limits,
    *,
    enforce: bool = False,
    process: str = "qemu",
    collects: bool = False,
    follows: bool = False,
) -> World:
    """Return a world in which a healthy guest runs, and panicd is about to connect."""
    return World(
        on_crash, limits, enforce=enforce, process=process, collects=collects, follows=follows
    )
