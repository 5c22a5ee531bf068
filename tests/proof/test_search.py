"""The bounded part of the search, and the proof that it finds what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from panicd.rules import recovery
from panicd.rules.incident import Ending
from panicd.rules.machine import (
    arrival,
    commands,
    deciding,
    ignoring,
    resting,
    results,
    steps,
    vm,
    work,
)
from panicd.rules.machine import turn as turns
from panicd.rules.machine.state import RunningAgain, Stage
from panicd.rules.machine.turn import Turn
from panicd.rules.on_crash import OnCrash
from panicd.rules.recovery import Stay
from tests.proof.search import search, start
from tests.proof.world import Limits, World, _panic, moves

ALONE = [
    Limits(panics=1, foreign=0, crashes=0, cuts=0, deaths=0),
    Limits(panics=2, foreign=0, crashes=0, cuts=0, deaths=0),
    Limits(panics=1, foreign=1, crashes=0, cuts=0, deaths=0),
    Limits(panics=1, foreign=0, crashes=1, cuts=0, deaths=0),
    Limits(panics=1, foreign=0, crashes=0, cuts=1, deaths=0),
    Limits(panics=1, foreign=0, crashes=0, cuts=0, deaths=1),
]
"""Each thing from outside by itself: these searches come to their end."""

POLICIES = [OnCrash.PRESERVE, OnCrash.DESTROY, OnCrash.RESTART, OnCrash.IGNORE]
TOGETHER = Limits(panics=2, foreign=1, crashes=1, cuts=1, deaths=1)
WORLDS = 4000


def name_of(limits: Limits) -> str:
    return "-".join(map(str, (limits.panics, limits.foreign, limits.crashes, limits.cuts)))


@pytest.mark.parametrize("limits", ALONE, ids=name_of)
@pytest.mark.parametrize("on_crash", POLICIES)
def test_nothing_goes_wrong_in_any_order(on_crash: OnCrash, limits: Limits) -> None:
    assert search(start(on_crash, limits)).violation is None


@pytest.mark.parametrize("on_crash", list(OnCrash))
def test_nor_with_all_of_it_together_as_far_as_is_looked(on_crash: OnCrash) -> None:
    assert search(start(on_crash, TOGETHER), at_most=WORLDS).violation is None


@pytest.mark.parametrize("on_crash", [OnCrash.RESTART, OnCrash.DESTROY])
def test_nor_where_evidence_is_taken_and_lost(on_crash: OnCrash) -> None:
    alone = [start(on_crash, limits, collects=True) for limits in ALONE]
    assert not any(search(world).violation for world in alone)
    together = start(on_crash, TOGETHER, collects=True)
    assert search(together, at_most=WORLDS).violation is None


def test_nor_where_others_act_while_panicd_is_killed() -> None:
    """Down to the end: a guest may be reset while panicd's own stop is under way."""
    both = Limits(panics=1, foreign=1, crashes=1, cuts=0, deaths=0)
    assert search(start(OnCrash.PRESERVE, both)).violation is None


SILENT = Limits(panics=1, foreign=1, crashes=0, cuts=0, deaths=0, silences=2)
ENFORCED = Limits(panics=1, foreign=2, crashes=0, cuts=1, deaths=0, silences=1)
MORE_WORLDS = 7000


@pytest.mark.parametrize("on_crash", POLICIES)
def test_nor_where_answers_get_lost(on_crash: OnCrash) -> None:
    assert search(start(on_crash, SILENT), at_most=MORE_WORLDS).violation is None


AT_WORK = [
    Limits(panics=1, foreign=0, crashes=0, cuts=0, deaths=0, works=1),
    Limits(panics=1, foreign=0, crashes=0, cuts=0, deaths=0, works=2),
    Limits(panics=1, foreign=1, crashes=0, cuts=0, deaths=0, works=1),
    Limits(panics=1, foreign=0, crashes=1, cuts=0, deaths=0, works=1),
    Limits(panics=1, foreign=0, crashes=0, cuts=1, deaths=0, works=1),
    Limits(panics=1, foreign=0, crashes=0, cuts=0, deaths=0, silences=1, works=1),
]
"""Jobs and migrations begin and end at any moment."""
FEWER_WORLDS = 1200


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("on_crash", [OnCrash.RESTART, OnCrash.DESTROY])
def test_nor_where_qemu_is_busy_with_something(on_crash: OnCrash, *, follows: bool) -> None:
    for limits in AT_WORK:
        for collects in (False, True):
            world = start(on_crash, limits, collects=collects, follows=follows)
            assert search(world, at_most=FEWER_WORLDS).violation is None


@pytest.mark.parametrize("limits", ALONE, ids=name_of)
@pytest.mark.parametrize("on_crash", [OnCrash.RESTART, OnCrash.DESTROY])
def test_nor_where_nothing_is_asked(on_crash: OnCrash, limits: Limits) -> None:
    assert search(start(on_crash, limits, follows=True)).violation is None


NOTHING = Limits(panics=0, foreign=0, crashes=0, cuts=0, deaths=0)
AGAIN = [
    replace(NOTHING, panics=2),
    replace(NOTHING, panics=1, foreign=1),
    replace(NOTHING, panics=1, crashes=1),
    replace(NOTHING, panics=1, cuts=1),
    replace(NOTHING, panics=1, deaths=1),
    replace(NOTHING, panics=1, silences=1),
]


def ignored_before() -> World:
    """A guest that was let run after two panics within a second: a third one is not written."""
    world = untroubled(start(OnCrash.IGNORE, NOTHING))
    for _ in range(2):
        world = untroubled(_panic(world))
    assert world.state is not None
    assert world.state.ignored_at
    return world


def untroubled(world: World) -> World:
    """Return the world when everything has happened but what time brings."""
    while following := [after for name, after in moves(world) if name != "the time is over"]:
        world = following[0]
    return world


@pytest.mark.parametrize("limits", AGAIN, ids=str)
def test_nor_where_an_ignored_guest_panics_again_at_once(limits: Limits) -> None:
    assert search(replace(ignored_before(), left=limits)).violation is None


def test_a_cont_before_the_ignored_guest_has_stopped_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_soon(turn: Turn) -> None:
        turn.enter(RunningAgain(Stage.GIVEN))
        turn.send([("cont", ())], 5.0, acts=True)

    world = replace(ignored_before(), left=AGAIN[0])
    monkeypatch.setattr(ignoring, "ignore_once_more", too_soon)
    assert search(world).violation is not None


@pytest.mark.parametrize("on_crash", [OnCrash.PRESERVE, OnCrash.RESTART])
def test_nor_where_a_guest_is_stopped_again(on_crash: OnCrash) -> None:
    world = start(on_crash, ENFORCED, enforce=True)
    assert search(world, at_most=MORE_WORLDS).violation is None


@pytest.mark.parametrize("on_crash", POLICIES)
def test_nor_where_the_process_is_not_known(on_crash: OnCrash) -> None:
    world = start(on_crash, replace(TOGETHER, silences=1), process="")
    assert search(world, at_most=WORLDS).violation is None


@dataclass(frozen=True)
class Mutant:
    """A way to break the machine, and where that shows."""

    owner: Any
    name: str
    broken: Callable[..., Any] | property
    on_crash: OnCrash
    limits: Limits
    collects: bool = False
    follows: bool = False


def unready(turn: Any, phase: Any) -> Any:
    """Give the command before it is on the disk."""
    if not phase.quiet_known:
        return None
    steps._end_stop(turn, phase)
    turn.done(phase.quiet)
    return steps._give_act(turn, phase.act)


def at_once(turn: Any, phase: Any) -> Any:
    """Take evidence without waiting for the guest's stop."""
    return READY_ON(turn, replace(phase, stop=None))


READY_ON = steps._ready_on


def close_instead(turn: Any, *_: object) -> None:
    turn.close(Ending.FOREIGN_RESUME)


MUTANTS = {
    "nobody looks whether the guest was reset meanwhile": Mutant(
        results, "overtaken", lambda _turn: None, OnCrash.DESTROY, ALONE[2]
    ),
    "the command is given before it is on record": Mutant(
        steps, "_ready_on", unready, OnCrash.RESTART, ALONE[3]
    ),
    "a panicked guest is not looked for on connecting": Mutant(
        resting, "see_panic", lambda _turn: None, OnCrash.DESTROY, ALONE[0]
    ),
    "a stop without its panic's event is not looked into": Mutant(
        resting, "_see_missed_panic", lambda _turn: None, OnCrash.RESTART, ALONE[0]
    ),
    "an open incident is forgotten when its domain is found": Mutant(
        arrival, "recover", lambda _incident, _found: Stay(), OnCrash.RESTART, ALONE[3]
    ),
    "a lost answer counts as done": Mutant(
        commands,
        "unknown",
        lambda index, _detail: results.done(index),
        OnCrash.RESTART,
        ALONE[4],
    ),
    "others' reset is not noticed": Mutant(
        resting, "_reset", lambda _turn, **_: None, OnCrash.PRESERVE, ALONE[2]
    ),
    "an incident is never closed": Mutant(
        turns.Turn, "close", lambda turn, *_: turn.rest(), OnCrash.RESTART, ALONE[0]
    ),
    "a guest that panicks while it is dumped is resumed": Mutant(
        deciding, "conclude", close_instead, OnCrash.PRESERVE, ALONE[0]
    ),
    "the guest is reset whatever it is": Mutant(
        steps,
        "_one_by_one",
        lambda turn, phase: steps._give_act(turn, phase.act),
        OnCrash.RESTART,
        ALONE[2],
    ),
    "evidence is taken of a guest that runs": Mutant(
        steps, "_ready_on", at_once, OnCrash.RESTART, ALONE[0], collects=True
    ),
    "nobody looks whether the guest was reset while evidence was taken": Mutant(
        results, "overtaken", lambda _turn: None, OnCrash.DESTROY, ALONE[2], collects=True
    ),
    "the command is given before it is on record, after evidence": Mutant(
        steps, "_ready_on", unready, OnCrash.RESTART, ALONE[3], collects=True
    ),
    "a step that takes long is not gone on from": Mutant(
        steps, "_one_by_one", lambda *_: None, OnCrash.RESTART, ALONE[4], collects=True
    ),
    "what was begun with evidence is forgotten by a crash": Mutant(
        recovery, "_ready_for", lambda *_: Stay(), OnCrash.RESTART, ALONE[3], collects=True
    ),
    "nobody hears that a job begins": Mutant(
        vm, "after", lambda work, _event: work, OnCrash.RESTART, AT_WORK[0], follows=True
    ),
    "QEMU is not asked though it has work": Mutant(
        work.Work, "is_nothing", property(lambda _: True), OnCrash.RESTART, AT_WORK[0], follows=True
    ),
    "work that begins after the panic does not matter": Mutant(
        steps, "_is_proven", lambda *_: True, OnCrash.DESTROY, AT_WORK[0], follows=True
    ),
    "nothing is asked though the STOP does not come": Mutant(
        steps, "_ask", lambda _turn, phase: phase, OnCrash.RESTART, ALONE[4], follows=True
    ),
    "panicd quits without asking after a crash, of a guest that it has stopped": Mutant(
        recovery,
        "_ready_for",
        lambda _incident, command: recovery.GoOn(command),
        OnCrash.DESTROY,
        AT_WORK[3],
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_broken_machine_is_found_out(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (arrival, commands, deciding, resting, results, steps):
        if getattr(module, mutant.name, None) is getattr(mutant.owner, mutant.name):
            monkeypatch.setattr(module, mutant.name, mutant.broken)
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.broken)
    try:
        world = start(
            mutant.on_crash, mutant.limits, collects=mutant.collects, follows=mutant.follows
        )
        found = search(world).violation
    except Exception as error:  # noqa: BLE001 - a machine that stops is found out too
        found = str(error)
    assert found is not None
