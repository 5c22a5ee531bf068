"""Histories of one VM with everything that can go wrong in them, tried on the supervisor.

Hypothesis makes them up: panics, what others do to the guest meanwhile, operators, a daemon that is
killed, connections that are cut, answers that are lost, a journal that is full. The world
(``tests.model.world``) objects to whatever is done to a guest that it must not be done to; what is
to hold in the end is checked here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.rules.incident import Incident, State
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.operation import Operation, OperationKind
from panicd.rules.settings import Budget, CoredumpSettings, Policy, Relaunch
from panicd.supervisor import Wish
from tests.model.clock import now
from tests.model.life import Life
from tests.model.world import Fault, World
from tests.parts.profile import QEMU_1_6, QEMU_2_5, QEMU_2_6, QEMU_7_2, Profile, RunState

SETTLED = 1000.0
"""Seconds after which nothing is under way any more: the longest time limit is 300."""

BUDGET = 3
"""Restarts that the policy allows, in all."""

MOMENTS = (0.0, 0.0005, 0.0015, 0.0025, 0.004, 0.006, 0.03, 0.2, 3.0, 90.0)
"""Seconds between two happenings: within a command, a commit, a step, a plan, and after all."""

HISTORIES = "PANICD_TEST_HISTORIES"
"""The environment variable that says how many new histories each test tries."""

HAPPENINGS = (
    *(
        "panic",
        "panic and stop later",
        "guest resets itself",
        "foreign cont",
        "foreign system_reset",
        "foreign stop",
        "foreign quit",
    ),
    *("kill panicd", "cut", "lose the next answer", "cut before the next command"),
    *(
        "cut after the next cont",
        "cut after the next command",
        "kill QEMU",
        "start QEMU",
        "panic at the next boot",
    ),
    *("journal full", "journal writable", "hold", "unhold", "release", "act restart"),
    *("act destroy", "act ignore"),
)
OURS = frozenset(
    {
        "panic",
        "panic and stop later",
        "kill panicd",
        "cut",
        "lose the next answer",
        "cut before the next command",
    }
    | {
        "cut after the next cont",
        "cut after the next command",
        "journal full",
        "journal writable",
        "panic at the next boot",
    }
)
"""Those after which the policy is carried out all the same."""


@dataclass(frozen=True)
class History:
    """What happens, and when: each after so many seconds."""

    on_crash: OnCrash
    profile: Profile
    happenings: tuple[tuple[float, str], ...]
    relaunch: bool = False
    enforce: bool = False
    resets: bool = True

    @property
    def policy(self) -> Policy:
        return Policy(
            CoredumpSettings(Path("/dumps")),
            self.on_crash,
            restart=Budget(max=BUDGET, window=1e9),
            relaunch=Relaunch(("/bin/true",), timeout=30.0) if self.relaunch else None,
            enforce=self.enforce,
        )


profiles = st.sampled_from([QEMU_7_2, QEMU_7_2, QEMU_2_6, QEMU_2_5, QEMU_1_6])
happenings = st.tuples(
    # Most of it is nothing much without a panic, or without panicd's death.
    st.sampled_from(MOMENTS),
    st.sampled_from([*HAPPENINGS, *["panic"] * 3, "kill panicd"]),
)
episodes = st.tuples(
    st.sampled_from(["panic", "panic", "panic and stop later"]), st.lists(happenings, max_size=4)
).map(lambda drawn: ((3.0, "others bring it back"), (0.2, drawn[0]), *drawn[1]))
histories = st.builds(
    History,
    st.sampled_from(OnCrash),
    profiles,
    st.lists(happenings, max_size=12).map(tuple)
    | st.lists(episodes, min_size=1, max_size=4).map(lambda drawn: sum(drawn, ())),
    relaunch=st.booleans(),
    enforce=st.booleans(),
    resets=st.sampled_from([True, True, False]),
)
undisturbed = st.builds(
    History,
    st.sampled_from(OnCrash),
    st.sampled_from([QEMU_7_2, QEMU_2_6, QEMU_2_5]),
    st.lists(st.tuples(st.sampled_from(MOMENTS), st.sampled_from(sorted(OURS))), max_size=8).map(
        lambda following: ((3.0, "panic"), *following)
    ),
)


@pytest.fixture(autouse=True, scope="module")
def _no_log() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


def _drop(_logger: object, _method: str, _event: object) -> NoReturn:
    raise structlog.DropEvent


class Trial:
    """One history, on a world of its own."""

    def __init__(self, history: History, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self._history = history
        self._nursery = nursery
        self._alive = trio.CancelScope()
        self._begin()

    def _begin(self) -> None:
        self.life = Life(self.world, self._history.policy)
        self._alive = trio.CancelScope()
        self._nursery.start_soon(self._live, self.life, self._alive)

    async def _live(self, life: Life, scope: trio.CancelScope) -> None:
        with scope:
            await life.run()

    async def let(self, happening: str) -> None:
        """Have something happen."""
        world, machine = self.world, self.world.machine
        kind, _, rest = happening.partition(" ")
        match kind, rest:
            case "panic", "":
                world.panic()
            case "panic", "and stop later":
                world.panic(stops_later=True)
            case "panic", _:
                world.panics_at_boot += 1
            case "guest", _:
                world.reset_itself()
            case "foreign", command:
                world.foreign(command)
            case "kill", "panicd":
                self._kill()
            case "kill", _:
                world.kill_qemu()
            case "others", _:
                world.bring_back()
            case "start", _:
                world.start_qemu()
            case "cut", "":
                world.disconnect()
            case "lose", _:
                world.fault = Fault(reply_lost=True)
            case "cut", "before the next command":
                world.fault = Fault(cut_before=True)
            case "cut", "after the next cont":
                world.fault = Fault(cut_after=True, command="cont")
            case "cut", _:
                world.fault = Fault(cut_after=True)
            case "journal", state:
                world.journal.full = state == "full"
            case "hold" | "unhold", _:
                self._hold(OperationKind(kind))
            case "release" | "act", _:
                if machine is not None:
                    self._ask(OperationKind(kind), rest)

    def _kill(self) -> None:
        """Kill the daemon and start it again: what it had in memory is gone."""
        self.world.journal.bury()
        self.world.disconnect()
        self._alive.cancel()
        self._begin()

    def _hold(self, kind: OperationKind) -> None:
        operation = Operation(now(), 0, kind, "vm", "model")
        self.world.journal.operations.append(operation)
        self.life.holds.add(operation)
        if self.life.supervisor is not None:
            self.life.supervisor.reload()

    def _ask(self, kind: OperationKind, action: str) -> None:
        if self.life.supervisor is None:
            return
        wanted = OnCrash(action) if action else None
        if wanted in {None, OnCrash.IGNORE}:
            self.world.released = True
        self.world.requests += 1
        wish = Wish(Operation(now(), 0, kind, "vm", "model", detail=action), wanted)
        self.life.supervisor.ask(wish)

    async def settle(self) -> None:
        """Take the faults away, and let all come to its end."""
        self.world.fault, self.world.journal.full = None, False
        await trio.sleep(SETTLED)

    @property
    def is_held(self) -> bool:
        return self.life.holds.on(["vm"], now()) is not None

    @property
    def incidents(self) -> list[Incident]:
        return self.world.journal.incidents()


def try_history(history: History) -> None:
    trio.run(_try, history, clock=trio.testing.MockClock(autojump_threshold=0))


async def _try(history: History) -> None:
    async with trio.open_nursery() as nursery:
        world = World(history.profile, history.on_crash, nursery, resets=history.resets)
        with world.in_place():
            trial = Trial(history, world, nursery)
            await trio.sleep(1.0)
            for moment, happening in history.happenings:
                await trio.sleep(moment)
                await trial.let(happening)
            await trial.settle()
            check(history, trial)
            nursery.cancel_scope.cancel()


def check(history: History, trial: Trial) -> None:
    world, incidents = trial.world, trial.incidents
    still_open = [incident for incident in incidents if incident.is_open]
    # Nothing tells a guest that was reset from a panicked one where QEMU calls both panicked.
    assert len(incidents) <= world.panics + world.misread, "more incidents than panics"
    assert sum(1 + incident.repeats for incident in incidents) <= world.panics + len(incidents)
    assert len(still_open) <= 1, "two incidents at once"
    in_memory = {c.incident.id: c.incident for c in trial.life.chronicles}
    told_apart = history.profile.panicked_after_reset is RunState.PRELAUNCH
    assert in_memory == {incident.id: incident for incident in still_open}, "the journal differs"
    if world.machine is None:
        assert all(incident.state is State.FAILED for incident in still_open)
    elif not world.panicked and told_apart and not world.misread:
        runs = world.machine.state is RunState.RUNNING
        left = [] if runs else [i for i in still_open if i.state is State.RESET]
        assert still_open == left, "an incident of a guest that was reset"
    elif world.machine.state is RunState.GUEST_PANICKED and world.panicked:
        assert still_open, "a panicked guest that nobody knows of"
    elif world.machine.state is RunState.RUNNING and not trial.is_held:
        assert not still_open, "an incident of a guest that runs"
    ours = all(what in OURS for _, what in history.happenings)
    if ours and history.resets:
        check_restarts(history, world, incidents)
        check_ignored(history, world)
        check_policy(history, world, incidents)


def check_restarts(history: History, world: World, incidents: list[Incident]) -> None:
    """Check that each restart is on record, for the budget is made of that."""
    restarts = sum(incident.restarted_at is not None for incident in incidents)
    assert world.boots <= BUDGET, "more restarts than the budget allows"
    if history.profile is not QEMU_2_5:  # whose guests read alike before and after a restart
        assert restarts == world.boots, "restarts are counted wrong"


def check_ignored(history: History, world: World) -> None:
    """Check that a guest whose panics are ignored runs on after each of them."""
    if history.on_crash.action is Action.IGNORE and history.profile is not QEMU_1_6:
        assert world.machine is not None
        assert world.machine.state is RunState.RUNNING, "an ignored guest is left stopped"


def check_policy(history: History, world: World, incidents: list[Incident]) -> None:
    """Check that a single panic has come to what the policy says, and to that once."""
    irreversible = history.on_crash.action is Action.IGNORE and history.profile is QEMU_1_6
    if world.panics != 1 or irreversible:
        return
    if history.on_crash is OnCrash.IGNORE and not incidents:
        return  # panicd died before it was on record, and nothing of the guest tells
    (incident,) = incidents
    assert sum(decision.action is not Action.PRESERVE for decision in incident.decisions) <= 1
    match history.on_crash.action:
        case Action.DESTROY:
            assert world.machine is None
            assert world.done.count("quit") <= 1
        case Action.RESTART:
            assert world.machine is not None
            assert (world.machine.state, world.panicked) == (RunState.RUNNING, False)
            assert world.done.count("cont") == 1
        case Action.PRESERVE:
            assert world.machine is not None
            assert world.machine.state is RunState.GUEST_PANICKED
            assert "cont" not in world.done
        case _:
            assert world.machine is not None
            assert world.machine.state is RunState.RUNNING


def tries(examples: int) -> settings:
    """Return how much is tried: the same each time, or as much that is new as was asked for."""
    wanted = int(os.environ.get(HISTORIES, "0"))
    return settings(
        max_examples=wanted or examples,
        derandomize=not wanted,
        print_blob=False,  # the history itself goes to FOUND
    )


@tries(500)
@given(histories)
def test_whatever_happens_no_healthy_guest_is_harmed_and_no_panic_lost(history: History) -> None:
    try_history(history)


@tries(250)
@given(undisturbed)
def test_policy_is_carried_out_once_whatever_breaks(history: History) -> None:
    try_history(history)


FOUND = {
    "a guest that was reset while an incident waited for the journal is panicked": History(
        OnCrash.RESTART,
        QEMU_7_2,
        ((0.0, "panic"), (0.0015, "journal full"), (3.0, "foreign system_reset")),
    ),
    "what was asked before a panic is done to the panicked guest": History(
        OnCrash.PRESERVE, QEMU_7_2, ((90.0, "release"), (0.0, "panic"))
    ),
    "a quit that was lost is followed by SIGTERM, and somebody has reset the guest": History(
        OnCrash.DESTROY,
        QEMU_7_2,
        (
            (0.0015, "cut before the next command"),
            (0.0025, "panic"),
            (0.03, "foreign system_reset"),
        ),
    ),
    "a guest that was reset while it was dumped is preserved, and stopped again": History(
        OnCrash.COREDUMP_PRESERVE,
        QEMU_7_2,
        ((3.0, "panic"), (0.004, "foreign system_reset"), (90.0, "foreign cont")),
        enforce=True,
    ),
    "an ignored guest panics again and QEMU is gone": History(
        OnCrash.IGNORE, QEMU_2_5, ((3.0, "panic"), (0.03, "panic"), (0.0, "kill QEMU"))
    ),
    "a wait that ended while the journal was full is never written": History(
        OnCrash.RESTART,
        QEMU_7_2,
        ((0.2, "panic"), (0.0085, "journal full"), (0.0025, "kill QEMU"), (90.0, "cut")),
        relaunch=True,
        resets=False,
    ),
    "a panic during a plan is acted on, though others have reset the guest since": History(
        OnCrash.COREDUMP_PRESERVE,
        QEMU_7_2,
        (
            (90.0015, "lose the next answer"),
            (0.2, "panic"),
            (3.0, "others bring it back"),
            (0.2, "panic and stop later"),
            (0.006, "foreign system_reset"),
        ),
    ),
    "a guest that reset itself is stopped, for it had been resumed": History(
        OnCrash.PRESERVE,
        QEMU_7_2,
        ((3.0, "panic"), (0.2, "foreign cont"), (0.0005, "guest resets itself")),
        enforce=True,
    ),
    "a reset that was heard is forgotten, as QEMU calls the guest panicked still": History(
        OnCrash.DESTROY,
        QEMU_2_5,
        (
            (0.0, "panic"),
            (3.0025, "start QEMU"),
            (0.0015, "panic"),
            (0.0005, "foreign system_reset"),
        ),
    ),
    "an operator's cont is given again, though it was answered by a panic that nobody noted": (
        History(
            OnCrash.PRESERVE,
            QEMU_7_2,
            (
                (0.0, "panic"),
                (0.0, "lose the next answer"),
                (0.0, "act ignore"),
                (0.03, "panic"),
                (0.0, "kill panicd"),
            ),
        )
    ),
    "QEMU's word alone is not acted on, though nothing else tells of a reset before the stop": (
        History(
            OnCrash.IGNORE,
            QEMU_7_2,
            (
                (0.2, "panic"),
                (0.0, "journal full"),
                (3.0, "others bring it back"),
                (0.2, "panic and stop later"),
                (0.0, "foreign system_reset"),
            ),
        )
    ),
}
"""Histories that went wrong once, by what was wrong."""


SAFEGUARDS = {
    "an ignored guest is let run each time": History(
        OnCrash.IGNORE, QEMU_2_5, ((3.0, "panic"), (0.2, "panic"), (0.004, "panic"), (3.0, "panic"))
    ),
    "the guest is looked at again after a commit": History(
        OnCrash.DESTROY, QEMU_7_2, ((3.0, "panic"), (0.0025, "foreign system_reset"))
    ),
    "what was heard since the plan began goes before its end": History(
        OnCrash.COREDUMP_PRESERVE, QEMU_7_2, ((3.0, "panic"), (0.05, "foreign system_reset"))
    ),
    "others' reset ends an incident": History(
        OnCrash.PRESERVE, QEMU_7_2, ((3.0, "panic"), (3.0, "foreign system_reset"))
    ),
    "a restart that panicd did not see the end of is counted": History(
        OnCrash.RESTART,
        QEMU_7_2,
        ((3.0, "panic at the next boot"), (0.0, "panic"), (0.0075, "kill panicd")),
    ),
    "a restart that panics at once is counted": History(
        OnCrash.RESTART, QEMU_7_2, (*[(0.0, "panic at the next boot")] * 5, (3.0, "panic"))
    ),
    "an open incident outlives panicd": History(
        OnCrash.COREDUMP_DESTROY, QEMU_7_2, ((3.0, "panic"), (0.05, "kill panicd"))
    ),
    "a panic while panicd is away is found": History(
        OnCrash.RESTART, QEMU_7_2, ((3.0, "cut"), (0.0, "panic"))
    ),
}
"""One history for each safeguard, in which its lack shows."""


@pytest.mark.parametrize("history", SAFEGUARDS.values(), ids=SAFEGUARDS)
def test_safeguard(history: History) -> None:
    try_history(history)


@pytest.mark.parametrize("history", FOUND.values(), ids=FOUND)
def test_what_went_wrong_once_does_not_again(history: History) -> None:
    try_history(history)
