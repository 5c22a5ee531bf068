"""The machine as a whole: what comes to it at an awkward moment, and what it has done then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from panicd.rules.capability import Capability
from panicd.rules.ending import Cause
from panicd.rules.incident import Incident, Opened, Outcome, Repeated, Source, StepResult
from panicd.rules.incident import State as IncidentState
from panicd.rules.machine import State, effects, step
from panicd.rules.machine.inputs import (
    Adopted,
    Answered,
    Asked,
    Attached,
    Departed,
    Durable,
    Elapsed,
    Finished,
    Gone,
    Heard,
    Input,
    LookAgain,
    Lost,
    Moment,
    NoAnswer,
    Plight,
    Reconsider,
    Refused,
    Stopping,
)
from panicd.rules.machine.state import (
    AskingState,
    Collecting,
    Departing,
    Dumping,
    Interrupted,
    Quieting,
    Readying,
    SettingPanic,
    Stage,
)
from panicd.rules.machine.vm import Vm
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.operation import Operation, OperationKind
from panicd.rules.plan import Quit, SystemReset
from panicd.rules.policy import Reason
from panicd.rules.qapi import (
    Event,
    GuestPanickedEvent,
    GuestPvshutdownEvent,
    PanicAction,
    PanicInformation,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)
from panicd.rules.settings import CoredumpSettings, Evidence, Policy, Relaunch

E = TypeVar("E", bound=effects.Effect)

PANIC = GuestPanickedEvent(0.0, PanicAction.PAUSE)
STOP = StopEvent(0.0)
RESUME = ResumeEvent(0.0)
RESET = ResetEvent(0.0, guest=False, reason="host-qmp-system-reset")
IDLE: tuple[object, ...] = ({}, [], {"status": "none"}, {"status": "guest-panicked"})
"""QEMU's answers where it is busy with nothing."""


class Machine:
    """A machine, and the effects that nobody has looked at yet."""

    def __init__(self, on_crash: OnCrash, *, enforce: bool = False, dry_run: bool = False) -> None:
        policy = Policy(CoredumpSettings(Path("/dumps")), on_crash, enforce=enforce)
        self.moment = Moment(1000.0, 0.0, policy, name="vm", token="t", dry_run=dry_run)  # noqa: S106 - a part of an id
        self.state = State()
        self.made: list[effects.Effect] = []

    def attach(
        self,
        run_state: RunState = RunState.RUNNING,
        *events: Event,
        incident: Incident | None = None,
    ) -> None:
        vm = Vm(run_state, Capability(version=(7, 2, 0)), process="qemu")
        self.tell(Attached(vm, incident, tuple(map(Heard, events))))
        if isinstance(self.state.phase, SettingPanic):
            self.answer({})

    def tell(self, *inputs: Input) -> None:
        for came in inputs:
            self.state, made = step(self.state, came, self.moment)
            self.made.extend(made)

    def hear(self, *events: Event) -> None:
        self.tell(*map(Heard, events))

    def answer(self, *answers: object) -> None:
        self.tell(Answered(self.state.serial, answers))

    def durable(self) -> None:
        self.tell(Durable(self.state.serial))

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.made if isinstance(effect, kind)]

    @property
    def opened(self) -> list[Opened]:
        """The incidents that were begun."""
        return [n.entry for n in self.all(effects.Note) if isinstance(n.entry, Opened)]

    @property
    def sent(self) -> list[str]:
        """The commands that change something."""
        return [name for send in self.all(effects.Send) if send.acts for name, _ in send.commands]

    @property
    def incident(self) -> IncidentState | None:
        return self.state.incident.state if self.state.incident is not None else None

    def preserve(self) -> None:
        """Have a panicked guest preserved."""
        self.attach()
        self.hear(PANIC, STOP)
        if isinstance(self.state.phase, AskingState):
            self.answer({"status": "guest-panicked"})
        assert self.incident is IncidentState.PRESERVED
        self.made.clear()


def test_a_change_of_policy_before_the_vm_is_known_changes_nothing() -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.tell(Reconsider())
    machine.preserve()


def test_a_panic_while_the_session_is_made_is_told_with_its_payload_and_once() -> None:
    machine = Machine(OnCrash.PRESERVE)
    information = PanicInformation("hyper-v", (("arg1", 1),))
    machine.attach(RunState.GUEST_PANICKED, replace(PANIC, information=information), STOP)
    (opened,) = machine.opened
    assert opened.information == information
    assert machine.state.incident is not None
    assert (machine.state.incident.repeats, machine.state.repeats) == (0, 0)


def test_incidents_that_begin_with_one_answer_have_an_id_each() -> None:
    """While it is due the guest panics, is resumed, and panics again."""
    machine = Machine(OnCrash.PRESERVE)
    machine.attach()
    machine.tell(LookAgain())
    machine.hear(PANIC, RESUME, PANIC)
    machine.answer({"status": "running"})
    ids = {note.after.id for note in machine.all(effects.Note)}
    assert len(ids) == len(machine.opened) == 2


@pytest.mark.parametrize("earlier", [(), (STOP, RESUME)], ids=["looked", "stopped by others"])
def test_a_panic_that_an_answer_tells_of_is_the_one_whose_event_came_before_it(
    earlier: tuple[Event, ...],
) -> None:
    """It has its payload, and counts once; what others did before it is none of its incident."""
    machine = Machine(OnCrash.PRESERVE, enforce=True)
    machine.attach()
    machine.tell(*([] if earlier else [LookAgain()]))
    machine.hear(*earlier, replace(PANIC, information=PAYLOAD), STOP)
    assert not machine.opened, "QEMU has been asked"
    machine.answer({"status": "guest-panicked"})
    machine.durable()
    (opened,) = machine.opened
    assert (opened.source, opened.information) == (Source.EVENT, PAYLOAD)
    assert (machine.incident, machine.state.repeats) == (IncidentState.PRESERVED, 0)
    assert machine.sent == []


def test_a_panic_with_which_qemu_is_about_to_end_is_not_lost_for_an_answer() -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.attach()
    machine.tell(LookAgain(), ENDS)
    machine.answer({"status": "guest-panicked"})
    assert len(machine.opened) == 1


def test_so_it_is_of_a_guest_whose_panics_are_ignored() -> None:
    machine = Machine(OnCrash.IGNORE)
    machine.attach()
    machine.hear(replace(PANIC, action=PanicAction.RUN))
    machine.durable()
    assert machine.incident is IncidentState.RUNNING_ON
    machine.hear(STOP, RESUME, PANIC, STOP)
    machine.answer({"status": "guest-panicked"})
    assert machine.state.incident is not None
    assert machine.state.incident.repeats + machine.state.repeats == 1


def test_a_guest_that_was_reset_while_the_session_was_made_is_left_alone() -> None:
    machine = Machine(OnCrash.DESTROY)
    machine.attach(RunState.GUEST_PANICKED, RESET, RESUME)
    assert machine.incident is None
    assert not machine.all(effects.Note)


def test_a_guest_that_was_resumed_in_a_dry_run_is_not_stopped() -> None:
    machine = Machine(OnCrash.PRESERVE, enforce=True, dry_run=True)
    machine.preserve()
    machine.hear(RESUME)
    machine.durable()
    assert (machine.incident, machine.sent) == (None, [])


def test_a_guest_that_was_resumed_and_reset_while_qemu_was_asked_is_not_stopped() -> None:
    machine = Machine(OnCrash.PRESERVE, enforce=True)
    machine.preserve()
    machine.tell(Elapsed(machine.state.serial))
    machine.hear(RESUME, RESET)
    machine.answer({"status": "running"})
    machine.durable()
    machine.answer({"status": "running"})
    assert (machine.incident, machine.sent) == (None, [])


def test_a_guest_that_says_for_ever_that_it_shuts_down_fills_no_journal() -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.preserve()
    machine.hear(*[GuestPvshutdownEvent(0.0)] * 100)
    assert len(machine.all(effects.Note)) == 1


def ending_slowly() -> Machine:
    """A machine whose QEMU said that it ends with a panic, and does not answer."""
    machine = Machine(OnCrash.RESTART)
    machine.attach()
    machine.hear(GuestPanickedEvent(0.0, PanicAction.POWEROFF))
    machine.hear(ShutdownEvent(0.0, guest=False, reason=""))
    machine.tell(Elapsed(machine.state.serial))
    machine.answer(NoAnswer("no answer"))
    return machine


def test_a_panic_is_not_lost_where_qemu_takes_long_to_end_with_it() -> None:
    machine = ending_slowly()
    assert not machine.all(effects.Leave)
    machine.tell(Lost())
    assert machine.opened


def test_nor_where_qemu_ends_before_it_answers() -> None:
    machine = ending_slowly()
    machine.tell(Elapsed(machine.state.serial), Lost())
    machine.answer(NoAnswer("lost", lost=True))
    assert machine.opened


PAYLOAD = PanicInformation("hyper-v", (("arg1", 1),))
ENDS = Heard(GuestPanickedEvent(0.0, PanicAction.POWEROFF, PAYLOAD), 3)
STOPS = Heard(GuestPanickedEvent(0.0, PanicAction.PAUSE, PAYLOAD), 3)


@pytest.mark.parametrize(
    "inputs",
    [(ENDS,), (ENDS, Elapsed(0)), (LookAgain(), ENDS), (LookAgain(), STOPS, Heard(STOP))],
    ids=["QEMU's end", "what became of that", "an answer", "an answer, and stopped"],
)
def test_a_panic_that_was_only_heard_is_on_record_when_panicd_stops(
    inputs: tuple[Input, ...],
) -> None:
    """While it waits for something else; ``Elapsed`` is that of what it waits for."""
    machine = Machine(OnCrash.DESTROY)
    machine.attach()
    for came in inputs:
        machine.tell(Elapsed(machine.state.serial) if isinstance(came, Elapsed) else came)
    assert not machine.opened
    machine.tell(Stopping())
    (opened,) = machine.opened
    assert (opened.source, opened.information) == (Source.EVENT, PAYLOAD)
    repeats = [n.entry for n in machine.all(effects.Note) if isinstance(n.entry, Repeated)]
    assert [repeated.count for repeated in repeats] == [2]
    assert machine.sent == []


@pytest.mark.parametrize(
    ("run_state", "then"),
    [
        (RunState.GUEST_PANICKED, IncidentState.ACTING),
        (RunState.RUNNING, None),
        (RunState.PAUSED, IncidentState.DETECTED),
    ],
)
def test_one_that_was_only_heard_is_dealt_with_by_the_next_start(
    run_state: RunState, then: IncidentState | None
) -> None:
    before = Machine(OnCrash.RESTART)
    before.attach()
    before.tell(LookAgain(), STOPS, Stopping())
    machine = Machine(OnCrash.RESTART)
    vm = Vm(run_state, Capability(version=(7, 2, 0)), process="qemu")
    machine.tell(Attached(vm, before.state.incident))
    assert (machine.incident, machine.opened) == (then, [])
    if then is IncidentState.DETECTED:  # what became of it is for people to say
        machine.answer({})
        act = Operation(0.0, 0, OperationKind.ACT, "vm", "")
        machine.tell(Asked(1, act, OnCrash.RESTART))
        machine.answer({"status": str(run_state)})
        assert machine.incident is IncidentState.ACTING


@pytest.mark.parametrize("heard", [RESET, STOP, replace(PANIC, action=PanicAction.RUN)], ids=str)
def test_no_incident_is_opened_for_anything_else(heard: Event) -> None:
    machine = Machine(OnCrash.DESTROY)
    machine.attach()
    machine.tell(LookAgain(), Heard(heard), Stopping())
    assert not machine.opened


@pytest.mark.parametrize("lost", [False, True])
def test_an_operator_is_not_told_that_it_was_done_where_that_is_not_known(lost: bool) -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.preserve()
    machine.tell(Asked(1, Operation(0.0, 0, OperationKind.RELEASE, "vm", "")))
    machine.answer({"status": "guest-panicked"})
    while "cont" not in machine.sent:
        waits_for_answer = isinstance(machine.made[-1], effects.Send)
        machine.answer(*IDLE) if waits_for_answer else machine.durable()
    machine.answer(NoAnswer("cont: no answer", lost=lost))
    machine.tell(*([Lost()] if lost else []), Elapsed(machine.state.serial))
    (answer,) = machine.all(effects.Answer)
    assert answer.refused


def test_a_hung_qemu_is_waited_for_once_before_it_is_ended() -> None:
    machine = Machine(OnCrash.DESTROY)
    machine.attach()
    machine.hear(PANIC, STOP)
    machine.made.clear()
    machine.answer(*[NoAnswer("no answer")] * 4)
    machine.durable()
    assert machine.sent == ["quit"]
    assert len(machine.all(effects.Send)) == 1


def test_each_signal_is_sent_once_and_is_on_record_before() -> None:
    machine = Machine(OnCrash.DESTROY)
    machine.attach()
    machine.hear(PANIC, STOP)
    machine.answer(*[NoAnswer("no answer")] * 4)
    machine.durable()
    signals: list[str] = []
    for name in ("SIGTERM", "SIGKILL"):
        machine.tell(Elapsed(machine.state.serial))
        assert [sent.name for sent in machine.all(effects.SendSignal)] == signals
        signals.append(name)
        machine.durable()
        machine.durable()  # of something else, that was noted meanwhile
        machine.tell(Finished(machine.state.serial, StepResult(Outcome.DONE)))
        machine.durable()
        assert [sent.name for sent in machine.all(effects.SendSignal)] == signals


@pytest.mark.parametrize(
    ("status", "stands"),
    [
        ("prelaunch", IncidentState.RESET),
        ("paused", IncidentState.RESET),
        ("running", None),
    ],
)
def test_a_preserved_guest_that_others_reset_is_asked_about(
    status: str, stands: IncidentState | None
) -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.preserve()
    machine.hear(RESET)
    assert (machine.incident, machine.sent) == (IncidentState.PRESERVED, [])  # it may not run yet
    (asks,) = machine.all(effects.Send)
    assert asks.commands == (("query-status", ()),)
    machine.answer({"status": status})
    assert (machine.incident, machine.sent) == (stands, [])
    if stands is not None:
        machine.hear(RESUME)
        assert (machine.incident, machine.sent) == (None, [])


def test_a_shutdown_that_qemu_outlived_is_no_sign_of_its_end() -> None:
    machine = Machine(OnCrash.RESTART)
    machine.attach()
    machine.hear(ShutdownEvent(0.0, guest=True, reason="guest-shutdown"), STOP)
    machine.answer({"status": "shutdown"})
    machine.hear(RESET, RESUME)
    machine.hear(PANIC, STOP)
    machine.answer(*IDLE)
    machine.durable()
    machine.answer({})  # before 4.0 the answer comes before RESET
    machine.hear(RESET)
    machine.durable()
    assert machine.sent == ["system_reset", "cont"]


def until_it_waits_for_the_journal(machine: Machine) -> None:
    """Go on up to the note of the next command, or to the plan's end."""
    for _ in range(9):
        match machine.state.phase:
            case Collecting() | Dumping(stage=Stage.GIVEN):
                machine.tell(Finished(machine.state.serial, StepResult(Outcome.DONE)))
            case Readying(quiet_known=False) | Quieting():
                machine.answer(*IDLE)
            case Dumping():
                machine.durable()


@pytest.mark.parametrize(
    "on_crash",
    [OnCrash.RESTART, OnCrash.DESTROY, OnCrash.COREDUMP_DESTROY, OnCrash.COREDUMP_RESTART],
)
def test_a_hold_that_begins_during_a_plan_comes_before_its_command(on_crash: OnCrash) -> None:
    machine = Machine(on_crash)
    machine.attach()
    machine.hear(PANIC, STOP)
    until_it_waits_for_the_journal(machine)
    before = machine.sent
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider())
    machine.durable()
    machine.durable()
    assert (machine.incident, machine.sent) == (IncidentState.PRESERVED, before)
    assert machine.state.incident is not None
    assert machine.state.incident.decision is not None
    assert machine.state.incident.decision.reason is Reason.HELD
    machine.moment = machine.moment._replace(held=False)
    machine.tell(Reconsider())
    machine.answer({"status": "guest-panicked"})
    until_it_waits_for_the_journal(machine)
    machine.durable()
    assert machine.sent[len(before) :] == [COMMANDS[on_crash.action]]


COMMANDS = {Action.RESTART: "system_reset", Action.DESTROY: "quit"}


def test_an_operator_may_act_during_a_hold() -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.preserve()
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider())
    act = Operation(0.0, 0, OperationKind.ACT, "vm", "")
    machine.tell(Asked(1, act, OnCrash.RESTART))
    machine.answer({"status": "guest-panicked"})
    machine.answer(*IDLE)
    machine.durable()
    assert machine.sent == ["system_reset"]


def test_a_qemu_that_ends_by_itself_during_a_hold_has_ended() -> None:
    machine = Machine(OnCrash.DESTROY)
    machine.attach()
    machine.hear(PANIC, STOP)
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider(), Gone(), Lost())
    while not isinstance(machine.state.phase, Departing):
        machine.answer(*[NoAnswer("lost", lost=True)] * 4)
    machine.tell(Departed(gone=True, cause=Cause.HOST_KILLED))
    machine.durable()
    assert (machine.incident, machine.sent) == (None, [])


def test_a_relaunch_that_was_decided_goes_on_during_a_hold() -> None:
    """There is no guest to keep; before and after panicd's own restart."""
    machine = Machine(OnCrash.RESTART)
    policy = replace(machine.moment.policy, relaunch=Relaunch(command=("/bin/true",)))
    machine.moment = machine.moment._replace(policy=policy)
    machine.attach()
    machine.hear(replace(PANIC, action=PanicAction.POWEROFF))
    machine.tell(Gone(), Lost())
    left, _ = step(machine.state, Stopping(), machine.moment)
    assert left.incident is not None
    again = Machine(OnCrash.RESTART)
    again.moment = machine.moment._replace(held=True)
    again.tell(Adopted(left.incident, Plight.ENDED))
    machine.moment = again.moment
    machine.tell(Reconsider())
    for each in (machine, again):
        each.durable()
        assert len(each.all(effects.Relaunch)) == 1


def test_a_guest_that_others_reset_during_a_hold_is_one_that_was_reset() -> None:
    machine = Machine(OnCrash.RESTART)
    machine.attach()
    machine.hear(PANIC, STOP)
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider())
    machine.hear(RESET)
    for _ in range(3):
        machine.answer(*IDLE[:-1], {"status": "prelaunch"})
        machine.durable()
        machine.answer({"status": "prelaunch"})
    assert (machine.incident, machine.sent) == (IncidentState.RESET, [])


def test_an_action_that_failed_is_not_tried_again_when_a_hold_ends() -> None:
    machine = Machine(OnCrash.RESTART)
    machine.attach()
    machine.hear(PANIC, STOP)
    machine.answer(*IDLE)
    machine.durable()
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider())
    machine.answer(Refused("not now"))
    machine.durable()
    for held in (True, False):
        machine.moment = machine.moment._replace(held=held)
        machine.tell(Reconsider())
        assert machine.state.incident is not None
        assert machine.state.incident.decision is not None
        assert machine.state.incident.decision.reason is Reason.ACTION_FAILED
        assert (machine.incident, machine.sent) == (IncidentState.PRESERVED, ["system_reset"])


def test_a_hold_that_begins_after_the_reset_leaves_no_guest_stopped() -> None:
    machine = Machine(OnCrash.RESTART)
    machine.attach()
    machine.hear(PANIC, STOP)
    machine.answer(*IDLE)
    machine.durable()
    machine.moment = machine.moment._replace(held=True)
    machine.tell(Reconsider())
    machine.answer({})
    machine.hear(RESET)
    machine.durable()
    assert machine.sent == ["system_reset", "cont"]


def test_what_was_asked_for_a_panicked_guest_is_not_done_to_one_that_was_reset_since() -> None:
    machine = Machine(OnCrash.PRESERVE)
    machine.preserve()
    act = Operation(0.0, 0, OperationKind.ACT, "vm", "")
    machine.tell(Asked(1, act, OnCrash.DESTROY))
    machine.hear(RESET)
    machine.answer({"status": "paused"})
    (answer,) = machine.all(effects.Answer)
    assert "reset after this was asked for" in answer.refused
    assert machine.sent == []


@pytest.mark.parametrize(
    ("on_crash", "follows"),
    [
        (OnCrash.RESTART, SystemReset),
        (OnCrash.DESTROY, Quit),
        (OnCrash.PRESERVE, None),
        (OnCrash.IGNORE, None),
        (OnCrash.COREDUMP_RESTART, None),
        (OnCrash.COREDUMP_DESTROY, None),
    ],
)
def test_evidence_need_not_be_written_before_a_command_that_comes_next(
    on_crash: OnCrash, follows: type | None
) -> None:
    machine = Machine(on_crash)
    policy = replace(machine.moment.policy, evidence=Evidence(budget=3.0))
    machine.moment = machine.moment._replace(policy=policy)
    machine.attach()
    machine.hear(PANIC, STOP)
    (collect,) = machine.all(effects.Collect)
    assert type(collect.follows) is (follows or type(None))


@pytest.mark.parametrize("cut_off", [effects.Collect, effects.MakeDump])
def test_what_a_lost_session_has_cut_off_is_not_gone_on_from(
    cut_off: type[effects.Collect | effects.MakeDump],
) -> None:
    machine = Machine(OnCrash.COREDUMP_DESTROY)
    policy = replace(machine.moment.policy, evidence=Evidence(budget=3.0))
    machine.moment = machine.moment._replace(policy=policy)
    machine.attach()
    machine.hear(PANIC, STOP)
    for _ in range(9):
        if machine.all(cut_off):
            break
        match machine.state.phase:
            case Collecting():
                machine.tell(Finished(machine.state.serial, StepResult(Outcome.DONE)))
            case Quieting():
                machine.answer(*IDLE)
            case _:
                machine.durable()
    lost = StepResult(Outcome.UNKNOWN, "getfd: broken pipe")
    machine.tell(Finished(machine.state.serial, lost, lost=True))  # its end is heard later
    assert machine.sent == []
    assert isinstance(machine.state.phase, Interrupted)
    assert isinstance(machine.made[-1], effects.Abort)
