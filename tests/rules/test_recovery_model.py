"""Recovery against a model of a guest: the connection is cut anywhere, and others act meanwhile.

What others do not do here is to pause a guest that they have let run: a ``paused`` one is not told
from one that panicd itself stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import Final, Literal, assert_never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.rules.capability import Capability, Version
from panicd.rules.incident import (
    Closed,
    Decided,
    Ending,
    Incident,
    Opened,
    Outcome,
    Settled,
    Source,
    State,
    StepBegun,
    StepEnded,
    apply,
    own_time_over,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.plan import (
    AnyStep,
    AwaitGuestReset,
    AwaitQuiet,
    AwaitReturn,
    Collect,
    Cont,
    Dump,
    EnsureStopped,
    Kill,
    OnFailure,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
    make_plan,
)
from panicd.rules.policy import Situation, decide
from panicd.rules.qapi import RunState
from panicd.rules.recovery import End, Found, GiveUp, GoOn, Redecide, Stay, recover
from panicd.rules.settings import Evidence, Policy
from tests.rules.strategies import COREDUMP, NOW, RELAUNCH

ERAS: Final[tuple[Version, ...]] = ((1, 6, 2), (2, 5, 1), (7, 2, 0))
"""One version of each way in which a reset leaves a panicked guest."""

Cut = Literal["no", "before", "after"]
"""Whether the connection is lost, and so the step's outcome: before or after it took effect."""


class Meanwhile(Enum):
    """What others, or the guest, do while panicd is away."""

    PANIC = "panic"
    RESET = "reset"
    CONT = "cont"
    EXIT = "exit"
    START = "start"


@dataclass
class Guest:
    """A guest and its QEMU, as measured of each version.

    Attributes:
        version: of the QEMU.
        run_state: what it says; None where it is gone.
        panicked: its kernel panicked, and it was not reset since.
        ran: it ran since it was last reset.
    """

    version: Version
    run_state: RunState | None = RunState.RUNNING
    panicked: bool = False
    ran: bool = True

    def panic(self, *, stops: bool) -> None:
        self.panicked = True
        if stops:
            self.run_state = RunState.GUEST_PANICKED

    def stop(self) -> None:
        if self.run_state is RunState.RUNNING:
            self.run_state = RunState.PAUSED

    def reset(self) -> None:
        self.panicked = False
        if self.run_state is RunState.RUNNING:
            return
        self.ran = False
        if self.version >= (2, 6, 0):
            self.run_state = RunState.PRELAUNCH
        elif self.version < (1, 7, 0):
            self.run_state = RunState.PAUSED

    def cont(self) -> None:
        refused = self.run_state is RunState.GUEST_PANICKED and self.version < (1, 7, 0)
        if not refused:
            self.run_state, self.ran = RunState.RUNNING, True


class Domain:
    """One domain, its guest, and panicd on and off."""

    def __init__(
        self, version: Version, on_crash: OnCrash, *, relaunch: bool, grace: bool = False
    ) -> None:
        self.guest = Guest(version)
        self.policy = Policy(
            COREDUMP,
            on_crash,
            relaunch=RELAUNCH if relaunch else None,
            evidence=Evidence(),
            grace=900.0 if grace else 0.0,
        )
        self.saw_it_all = True
        self.capability = Capability(version, PanicDevice.REQUESTED, reboot_is_shutdown=relaunch)
        self.incident: Incident | None = None
        self.next = 0
        self.connected = True
        self.same_process = True

    def runs(self) -> bool:
        return self.guest.run_state is RunState.RUNNING

    def panic(self, *, stops: bool) -> None:
        self.guest.panic(stops=stops)
        self.saw_it_all = True
        self.open()

    def carry_on(self, steps: int, cut: Cut) -> None:
        """Carry out so many steps; the last one may be cut off."""
        for remaining in reversed(range(steps)):
            if self.connected and self.acting():
                self.step("no" if remaining else cut)

    def step(self, cut: Cut) -> None:
        incident = self.incident
        assert incident is not None
        assert incident.plan is not None
        if self.next == len(incident.plan.steps):
            self.conclude()
            return
        step = incident.plan.steps[self.next]
        if incident.watched_until is not None:
            self.end_watch()
            return
        self.add(StepBegun(NOW, self.next))
        if isinstance(step, AwaitReturn):
            self.connected = False
            return
        if isinstance(step, AwaitGuestReset):
            return
        if cut != "before":
            self.take_effect(step)
        if cut == "no":
            self.add(StepEnded(NOW, self.next, Outcome.DONE))
            self.next += 1
            refused = isinstance(step, Cont) and not self.runs()
            if refused:
                self.add(Settled(NOW, State.PRESERVED))
        else:
            self.connected = False

    def end_watch(self) -> None:
        """The guest's own time is over: do as the responder does."""
        self.add(StepEnded(NOW, self.next, Outcome.FAILED))
        if self.saw_it_all or self.guest.run_state is RunState.GUEST_PANICKED:
            self.decide()
        else:
            self.add(Settled(NOW, State.FAILED))

    def be_away(self, events: Sequence[Meanwhile]) -> None:
        self.connected = False
        for event in events:
            self.happen(event)
        self.reconnect()

    def happen(self, event: Meanwhile) -> None:
        if self.guest.run_state is None:
            if event is Meanwhile.START:
                self.guest, self.same_process = Guest(self.guest.version), False
            return
        match event:
            case Meanwhile.PANIC if self.runs():
                self.guest.panic(stops=True)
            case Meanwhile.RESET:
                self.guest.reset()
            case Meanwhile.CONT:
                self.guest.cont()
            case Meanwhile.EXIT:
                self.guest.run_state = None
            case _:
                pass

    def reconnect(self) -> None:
        """Go on as the supervisor does, when it finds the domain, or sees that it is gone."""
        run_state = self.guest.run_state
        found = Found(run_state, self.same_process, self.guest.version)
        self.saw_it_all = found.proves_panic
        if self.incident is not None:
            match recover(self.incident, found):
                case GoOn(index=index):
                    self.next = index
                case GiveUp(index=index):
                    self.give_up(index)
                case Redecide():
                    self.decide()
                case Stay():
                    pass
                case End(ending=ending):
                    self.close(ending)
        self.same_process = True
        self.connected = run_state is not None or self.acting()
        if self.incident is None and run_state is RunState.GUEST_PANICKED:
            self.open()

    def give_up(self, index: int) -> None:
        """Take a step for failed, as the responder does."""
        assert self.incident is not None
        assert self.incident.plan is not None
        step = self.incident.plan.steps[index]
        assert self.incident.begun[index] > 1
        self.add(StepBegun(NOW, index))
        self.add(StepEnded(NOW, index, Outcome.FAILED))
        if step.on_failure is OnFailure.CONTINUE:
            self.next = index + 1
        else:
            self.add(Settled(NOW, State.PRESERVED))

    def open(self) -> None:
        self.incident = Incident("i", Opened(NOW, "vm", "", "", "b/1/2", Source.EVENT))
        self.decide()

    def decide(self) -> None:
        assert self.incident is not None
        situation = Situation(self.guest.run_state, own_time=own_time_over(self.incident))
        capability = replace(self.capability, version=self.guest.version)
        decision = decide(self.policy, capability, situation, now=NOW)
        self.add(Decided(NOW, make_plan(decision, self.policy, capability, situation)))
        self.next = 0

    def acting(self) -> bool:
        return self.incident is not None and self.incident.state in {State.DECIDED, State.ACTING}

    def add(self, entry: Decided | StepBegun | StepEnded | Settled | Closed) -> None:
        assert self.incident is not None
        self.incident = apply(self.incident, entry)

    def close(self, ending: Ending) -> None:
        self.add(Closed(NOW, ending))
        self.incident = None

    def conclude(self) -> None:
        assert self.incident is not None
        match self.incident.action:
            case Action.IGNORE:
                self.add(Settled(NOW, State.RUNNING_ON))
            case Action.PRESERVE:
                self.add(Settled(NOW, State.PRESERVED))
            case Action.NONE:
                self.close(Ending.QEMU_EXITED)
            case Action.DESTROY:
                assert self.guest.run_state is None
                self.close(Ending.DESTROYED)
            case _:
                assert not self.guest.panicked
                self.close(Ending.RESTARTED)

    def take_effect(self, step: AnyStep) -> None:
        """Do what a step does, and see that it is done to no guest that may be healthy."""
        assert self.incident is not None
        guest = self.guest
        match step:
            case EnsureStopped():
                assert guest.panicked or not self.runs(), "a healthy guest is stopped"
                guest.stop()
            case Cont():
                ignored = self.incident.action in {Action.IGNORE, Action.GRACE}
                assert ignored or not guest.panicked, "a panicked guest is let run"
                assert not self.runs(), "a guest that runs is let run"
                guest.cont()
            case SystemReset():
                self.check_guest()
                guest.reset()
            case Quit() | Terminate() | Kill():
                if guest.run_state is not None:
                    self.check_guest()
                    tells_of_reset = not (1, 7, 0) <= guest.version < (2, 6, 0)
                    assert guest.panicked or not tells_of_reset, "a guest that was reset is ended"
                    guest.run_state = None
            case RunRelaunch():
                assert guest.run_state is None, "a second QEMU is started"
                self.guest, self.same_process = Guest(guest.version), False
            case Dump() | AwaitQuiet() | Collect():
                assert guest.run_state is not None
                assert not self.runs()
            case AwaitReturn() | AwaitGuestReset():
                raise AssertionError("nothing is done in it")
            case _:
                assert_never(step)

    def check_guest(self) -> None:
        """Assert that the guest is the panicked one, or has not run since somebody reset it."""
        assert not self.runs(), "a guest that runs is reset or ended"
        assert self.guest.panicked or not self.guest.ran, "a healthy guest is reset or ended"


MOST_STEPS: Final = 14
CUTS: Final[tuple[Cut, ...]] = ("no", "before", "after")


@pytest.mark.parametrize(
    "on_crash", ["destroy", "restart", "preserve", "ignore", "coredump-ignore"]
)
@pytest.mark.parametrize("version", ERAS)
def test_cut_off_once_anywhere(version: Version, on_crash: str) -> None:
    meanwhile = [(), *product(Meanwhile), *product(Meanwhile, repeat=2)]
    for relaunch, stops, grace in product((False, True), repeat=3):
        for steps, cut, events in product(range(MOST_STEPS), CUTS, meanwhile):
            domain = Domain(version, OnCrash(on_crash), relaunch=relaunch, grace=grace)
            domain.panic(stops=stops)
            domain.carry_on(steps, cut)
            domain.be_away(events)
            domain.carry_on(MOST_STEPS, "no")


@settings(max_examples=300)
@given(
    domain=st.builds(
        Domain,
        st.sampled_from(ERAS),
        st.sampled_from(OnCrash),
        relaunch=st.booleans(),
        grace=st.booleans(),
    ),
    stops=st.booleans(),
    rounds=st.lists(
        st.tuples(
            st.integers(0, MOST_STEPS),
            st.sampled_from(CUTS),
            st.lists(st.sampled_from(Meanwhile), max_size=4),
        ),
        min_size=2,
        max_size=4,
    ),
)
def test_cut_off_again_and_again(
    domain: Domain, stops: bool, rounds: list[tuple[int, Cut, list[Meanwhile]]]
) -> None:
    domain.panic(stops=stops)
    for steps, cut, events in rounds:
        domain.carry_on(steps, cut)
        domain.be_away(events)
    domain.carry_on(MOST_STEPS, "no")
