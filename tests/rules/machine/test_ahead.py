"""What is foreseen of a panic is what the machine says when it comes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from panicd.rules.capability import Capability, PanicSetting
from panicd.rules.identity import Claim
from panicd.rules.incident import Incident, Opened, Outcome, Source, StepResult
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.machine import State, effects, step
from panicd.rules.machine.ahead import (
    DONE,
    PANIC,
    STOP,
    as_foreseen,
    counted,
    foresee,
    is_of_evidence,
    is_quiet,
    without_notes,
)
from panicd.rules.machine.inputs import (
    Answered,
    Asked,
    Durable,
    Finished,
    Heard,
    Input,
    Moment,
    NoAnswer,
    Refused,
)
from panicd.rules.machine.state import AskingState, Begun, Left, Readying, Resting, Then
from panicd.rules.machine.turn import new_id, opened_by
from panicd.rules.machine.vm import Vm
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation, OperationKind
from panicd.rules.qapi import (
    DumpCompletedEvent,
    GuestPanickedEvent,
    PanicAction,
    PanicInformation,
    RunState,
    ShutdownEvent,
)
from panicd.rules.settings import Budget, Evidence, JournalFailure, Policy
from tests.rules.strategies import COREDUMP, MODERN, NOW, VERSIONS, histories, policies

RESTART = Policy(COREDUMP, OnCrash.RESTART, evidence=None)
DESTROY = Policy(COREDUMP, OnCrash.DESTROY, evidence=None)

counts = st.integers(0, 9)
times = st.floats(NOW - 1e6, NOW + 1e6)
capabilities = st.builds(
    replace,
    st.just(MODERN),
    version=st.sampled_from(VERSIONS),
    panic_setting=st.sampled_from([*PanicSetting, None]),
    reboot_is_shutdown=st.sampled_from([True, False, None]),
)
flags = st.fixed_dictionaries(
    {
        name: st.booleans()
        for name in ("silent", "held", "storm", "limited", "unrecorded", "dry_run")
    }
)
acting = st.sampled_from([*[OnCrash.RESTART, OnCrash.DESTROY] * 8, *OnCrash])
moments = st.builds(
    Moment,
    times,
    st.floats(0, 1e6),
    st.builds(
        replace,
        policies,
        evidence=st.sampled_from([None, Evidence(budget=3.0)]),
        on_crash=acting,
        grace=st.just(0.0),
        restart=st.builds(Budget, max=st.integers(3, 9)),
    ),
    name=st.text(max_size=3),
    claim=st.builds(Claim, st.text(max_size=3), st.text(max_size=3)),
    key=st.text(max_size=3),
    monitor=st.text(max_size=3),
    token=st.text("0123456789abcdef", min_size=8, max_size=8),
    restarts=st.just(()) | histories,
    plugged=st.sampled_from([True, False, None]),
    journal_failure=st.sampled_from(JournalFailure),
)
vms = st.builds(
    Vm,
    st.just(RunState.RUNNING),
    capabilities,
    process=st.sampled_from(["", "1/2/3"]),
    resets=counts,
    resumes=counts,
    reset_by_guest=st.booleans(),
    reset_since_panic=st.booleans(),
)


def at_ease(**known: Any) -> State:
    """Return a state in which nothing is under way, whatever has happened before."""
    return State(phase=Resting(), **known)


states = st.builds(
    at_ease,
    vm=vms,
    serial=counts,
    unbroken=st.booleans(),
    repeats_noted_at=times,
    base=st.tuples(counts, counts),
    let_go=counts,
    resets_before=counts,
    crashloaded_in=st.text(max_size=1),
    shutting_in=st.text(max_size=1),
    flood=counts,
    flood_began=times,
    ignored_at=times,
    watched=st.tuples(times, times),
)
orders = st.permutations("sadf").map("".join)
"""Stop, answer, durable, finished; libvirt may answer first."""
results = st.builds(StepResult, st.just(Outcome.DONE), st.text(max_size=3))
quiet = st.sampled_from([{}, [], {"status": "none"}, {"status": "completed"}, Refused("no")])


@pytest.mark.parametrize("evidence", [None, Evidence(budget=3.0)])
def test_a_restart_and_a_destroy_are_foreseen_up_to_their_commands(
    evidence: Evidence | None,
) -> None:
    restart = foresee(replace(RESTART, evidence=evidence), MODERN)
    destroy = foresee(replace(DESTROY, evidence=evidence), MODERN)
    assert restart is not None
    assert destroy is not None
    assert bool(restart.collects) is bool(destroy.collects) is (evidence is not None)
    assert [each.commands for each in restart.acts if isinstance(each, effects.Send)] == [
        (("system_reset", ()),)
    ]
    assert [each.commands for each in destroy.acts if isinstance(each, effects.Send)] == [
        (("quit", ()),)
    ]


@pytest.mark.parametrize("on_crash", [each for each in OnCrash if each.coredump])
def test_a_dump_goes_before_the_command_so_nothing_is_foreseen(on_crash: OnCrash) -> None:
    assert foresee(replace(RESTART, on_crash=on_crash), MODERN) is None


def test_nothing_is_foreseen_of_a_command_that_libvirt_gives() -> None:
    capability = replace(MODERN, libvirt=LibvirtDomain(1, "vm", "", handling="preserve"))
    state, _ = step(AT_EASE._replace(vm=Vm(RunState.RUNNING, capability)), PANIC, MOMENT)
    assert isinstance(state.phase, Readying), "though nothing else precedes the command"
    assert foresee(RESTART, capability) is None


def chain(
    state: State,
    moments_of: list[Moment],
    order: str,
    answers: tuple[object, ...],
    serial: int,
    *,
    result: StepResult = DONE,
) -> tuple[State, list[tuple[effects.Effect, ...]]]:
    """Give the machine a panic and what is foreseen after it; return what it says of each."""
    inputs: dict[str, Input] = {
        "s": STOP,
        "a": Answered(serial, answers),
        "d": Durable(serial),
        "f": Finished(serial, result),
    }
    said = []
    for came, moment in zip([PANIC, *(inputs[each] for each in order)], moments_of, strict=False):
        state, made = step(state, came, moment)
        said.append(made)
    return state, said


@given(
    states, moments, st.lists(st.tuples(times, flags), min_size=4, max_size=4), orders, st.data()
)
def test_what_is_foreseen_is_what_the_machine_says(
    state: State,
    moment: Moment,
    later: list[tuple[float, dict[str, Any]]],
    order: str,
    data: st.DataObject,
) -> None:
    assert state.vm is not None
    assume(as_foreseen(state, PANIC, moment))
    foreseen = foresee(moment.policy, state.vm.capability)
    assume(foreseen is not None)
    assert foreseen is not None
    answers = (
        *(data.draw(quiet) for _ in foreseen.asks.commands[1:]),
        {"status": "guest-panicked"},
    )
    if not foreseen.collects:
        order = order.replace("f", "")
    assume(not foreseen.collects or order.index("s") < min(order.index("a"), order.index("f")))
    assert foreseen.asks.serial == foreseen.commit.serial
    serial = state.serial + foreseen.asks.serial
    # A hold comes with an input of its own, which ends what was foreseen.
    after = [moment._replace(now=now, ticks=now, **{**told, "held": False}) for now, told in later]

    ended, said = chain(state, [moment, *after], order, answers, serial, result=data.draw(results))

    first, *others = said
    noted = [each.entry for each in first if isinstance(each, effects.Note)]
    opened = opened_by(moment, state.vm.process, Source.EVENT, None)
    assert noted == [opened, *(replace(each, at=moment.now) for each in foreseen.entries)]
    assert ended.incident is not None
    assert ended.incident.id == new_id(moment.now, moment.token)
    from_here = counted(foreseen, state.serial)
    assert without_notes(first) == (from_here.commit, from_here.asks)
    acts = from_here.acts
    given = max(map(order.index, set(order) - {"s"}))
    at_stop = from_here.collects
    assert [without_notes(made) for made in others] == [
        acts if i == given else at_stop if each == "s" else () for i, each in enumerate(order)
    ]
    assert is_quiet(Answered(0, answers))


@pytest.mark.parametrize("events", [[PANIC], [PANIC, STOP]])
def test_the_machine_does_nothing_about_the_events_of_evidence(events: list[Heard]) -> None:
    moment = Moment(NOW, 0.0, replace(RESTART, evidence=Evidence(budget=3.0)))
    state = AT_EASE
    for each in events:
        state, _ = step(state, each, moment)
    written = Heard(DumpCompletedEvent(0.0, completed=True, written=4096, error=""))
    assert is_of_evidence(written)
    assert step(state, written, moment) == (state, ())


@given(
    st.lists(
        st.sampled_from(
            [
                *[{}, [], [{"ready": True}], [{"ready": False}], {"status": "active"}],
                *[NoAnswer(""), NoAnswer("", lost=True)],
            ]
        ),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from(["guest-panicked", "running", "paused", "postmigrate", "shutdown"]),
)
def test_an_answer_that_is_not_quiet_keeps_the_machine_from_the_command(
    busy: list[object], status: str
) -> None:
    state = State(vm=Vm(RunState.RUNNING, MODERN), phase=Resting())
    moment = Moment(NOW, 0.0, RESTART)
    answers = (*busy, {"status": status})
    _, said = chain(state, [moment] * 4, "sda", answers, 1)
    given = any(isinstance(each, effects.Send) and each.acts for each in said[-1])
    assert not is_quiet(Answered(0, answers)) or given


MOMENT = Moment(NOW, 0.0, RESTART)
AT_EASE = State(vm=Vm(RunState.RUNNING, MODERN), phase=Resting())
INCIDENT = Incident("id", Opened(NOW, "", "", "", "", Source.EVENT))
ASKED = Asked(1, Operation(NOW, 0, OperationKind.ACT, "vm", ""))


@pytest.mark.parametrize(
    "changed",
    [
        {"held": True},
        {"storm": True},
        {"limited": True},
        {"unrecorded": True},
        {"dry_run": True},
        {"silent": True},
        {"restarts": (NOW - 1, NOW - 2, NOW - 3)},
    ],
)
def test_what_holds_a_panic_up_makes_it_unforeseen(changed: dict[str, Any]) -> None:
    assert as_foreseen(AT_EASE, PANIC, MOMENT)
    assert not as_foreseen(AT_EASE, PANIC, MOMENT._replace(**changed))


@pytest.mark.parametrize(
    "panic",
    [
        Heard(PANIC.event, 2),
        Heard(GuestPanickedEvent(0.0, PanicAction.RUN)),
        Heard(GuestPanickedEvent(0.0, PanicAction.POWEROFF)),
        Heard(GuestPanickedEvent(0.0, PanicAction.PAUSE, PanicInformation("hyper-v", ()))),
        STOP,
    ],
)
def test_a_panic_with_more_to_it_is_unforeseen(panic: Heard) -> None:
    assert not as_foreseen(AT_EASE, panic, MOMENT)


@pytest.mark.parametrize(
    "changed",
    [
        *[{"phase": phase} for phase in (Begun(), AskingState(Then.LOOK), Left())],
        {"incident": INCIDENT},
        *[{name: True} for name in ("alone", "departed", "has_turn", "stale", "unseen")],
        {"deferred": (PANIC,)},
        {"put_off": PANIC},
        {"requests": (ASKED,)},
        {"granting": ASKED},
    ],
    ids=str,
)
def test_what_is_under_way_makes_it_unforeseen(changed: dict[str, Any]) -> None:
    assert not as_foreseen(AT_EASE._replace(**changed), PANIC, MOMENT)


@pytest.mark.parametrize(
    "changed",
    [
        {"ended": True},
        {"gone": True},
        {"shutdown": ShutdownEvent(0.0, guest=False, reason="")},
        {"stop_means": RunState.GUEST_PANICKED},
    ],
    ids=str,
)
def test_what_is_known_of_the_vm_makes_it_unforeseen(changed: dict[str, Any]) -> None:
    vm = replace(Vm(RunState.RUNNING, MODERN), **changed)
    assert not as_foreseen(AT_EASE._replace(vm=vm), PANIC, MOMENT)


@pytest.mark.parametrize("state", [s for s in RunState if s is not RunState.RUNNING])
def test_a_guest_that_does_not_run_is_unforeseen(state: RunState) -> None:
    assert not as_foreseen(AT_EASE._replace(vm=Vm(state, MODERN)), PANIC, MOMENT)


def test_every_attribute_of_a_capability_may_decide() -> None:
    """What is foreseen is remembered by policy and capability: both have to be comparable."""
    assert all(each.compare and each.hash is not False for each in fields(Capability))
    assert all(each.compare and each.hash is not False for each in fields(Policy))
    assert hash(RESTART) != hash(DESTROY)
    assert isinstance(Opened(0.0, "", "", "", "", Source.EVENT), Opened)
