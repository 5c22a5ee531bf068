"""A plan, step by step: what is durable before each command, and how each step is judged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from panicd.executor import Course, DumpMaker, Executor
from panicd.host.journal import JournalError
from panicd.libvirt import Libvirt
from panicd.qemu.coredump import DumpError, DumpFailure, FinishedDump
from panicd.qemu.session import Session
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.last_words import SILENCE, LastWords
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import (
    AnyStep,
    AwaitQuiet,
    AwaitReturn,
    Collect,
    Cont,
    Dump,
    EnsureStopped,
    Kill,
    OnFailure,
    Plan,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)
from panicd.rules.policy import Decision, Reason
from tests.parts.background import background
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_1_6, RunState
from tests.parts.sessions import open_session
from tests.parts.wire import Message

LONG = 5.0
SHORT = 0.05

STOP = EnsureStopped(LONG)
RESET = SystemReset(LONG)
CONT = Cont(LONG)
DUMP = Dump(LONG, OnFailure.CONTINUE)
END = (Quit(LONG, OnFailure.CONTINUE), Terminate(LONG, OnFailure.CONTINUE), Kill(LONG))

DECISION = Decision(OnCrash.RESTART, Action.RESTART, coredump=False, reason=Reason.ON_CRASH)


class Notes:
    """The executor's record: what it was told, and what of that is not yet durable."""

    def __init__(self) -> None:
        self.results: dict[int, StepResult] = {}
        self.begun: list[int] = []
        self.not_durable = 0

    def begin(self, index: int) -> None:
        self.begun.append(index)
        self.not_durable += 1

    def end(self, index: int, result: StepResult) -> None:
        self.results[index] = result
        self.not_durable += 1

    async def commit(self) -> None:
        self.not_durable = 0

    @property
    def outcomes(self) -> list[Outcome]:
        return [result.outcome for _, result in sorted(self.results.items())]


class WatchedQemu(FakeQemu):
    """Sees, at each command that changes something, whether what led to it is durable."""

    notes: Notes | None = None

    def record(self, call: Message) -> object:  # type: ignore[override]  # a fault, to its caller
        fault = super().record(call)
        if self.notes and call["execute"] in {"stop", "cont", "system_reset", "quit"}:
            assert not self.notes.not_durable, f"{call['execute']} came before the journal"
        return fault


async def dumped(_session: Session, _step: Dump) -> FinishedDump:
    return FinishedDump(Path("/dump"), 1)


async def not_dumped(_session: Session, _step: Dump) -> FinishedDump:
    raise DumpError(DumpFailure.NO_SPACE, "full")


async def nothing_taken(_session: Session, _step: Collect) -> LastWords:
    return SILENCE


async def run(
    session: Session, notes: Notes, *steps: AnyStep, make_dump: DumpMaker = dumped, first: int = 0
) -> Course:
    executor = Executor(
        session,
        notes,
        make_dump=make_dump,
        take_evidence=nothing_taken,
        environment={"PANICD_DOMAIN": "vm"},
        libvirt=Libvirt(lambda: None, dry_run=False),
        on_command=lambda: None,
    )
    return await executor.run(Plan(DECISION, steps), first)


@pytest.fixture
def vm(socket_dir: Path) -> WatchedQemu:
    return WatchedQemu(socket_dir / "vm.qmp", state=RunState.GUEST_PANICKED)


@pytest.fixture
def notes(vm: WatchedQemu) -> Notes:
    vm.notes = Notes()
    return vm.notes


@pytest.mark.parametrize(
    ("steps", "commands"),
    [
        ((STOP, RESET, CONT), ["system_reset", "cont"]),
        ((STOP, AwaitQuiet(LONG), DUMP, RESET, CONT), ["system_reset", "cont"]),
        ((STOP, *END), ["quit"]),
        ((STOP, CONT), ["cont"]),
        ((STOP,), []),
    ],
)
async def test_each_step_is_durable_before_it_changes_the_guest(
    vm: WatchedQemu, notes: Notes, steps: Sequence[AnyStep], commands: list[str]
) -> None:
    async with open_session(vm) as session:
        assert await run(session, notes, *steps) is Course.COMPLETED
        assert vm.changing_commands == ["set-action", *commands]
        assert notes.begun == list(range(len(steps)))
        assert set(notes.outcomes) <= {Outcome.DONE, Outcome.SKIPPED}


async def test_plan_goes_on_where_it_stopped(vm: WatchedQemu, notes: Notes) -> None:
    vm.machine.state = RunState.PRELAUNCH
    async with open_session(vm) as session:
        assert await run(session, notes, STOP, RESET, CONT, first=2) is Course.COMPLETED
        assert vm.changing_commands == ["set-action", "cont"]


async def test_guest_that_runs_is_stopped_first(vm: WatchedQemu, notes: Notes) -> None:
    vm.machine.state = RunState.RUNNING
    async with open_session(vm) as session:
        assert await run(session, notes, STOP, RESET) is Course.COMPLETED
        assert vm.changing_commands == ["set-action", "stop", "system_reset"]


@pytest.mark.parametrize(
    ("on_failure", "course"),
    [
        (OnFailure.CONTINUE, Course.COMPLETED),
        (OnFailure.FALL_BACK, Course.FALL_BACK),
        (OnFailure.PRESERVE, Course.PRESERVE),
    ],
)
async def test_failed_step_leads_where_the_plan_says(
    vm: WatchedQemu, notes: Notes, on_failure: OnFailure, course: Course
) -> None:
    async with open_session(vm) as session:
        steps = (STOP, Dump(LONG, on_failure), RESET, CONT)
        assert await run(session, notes, *steps, make_dump=not_dumped) is course
        assert notes.results[1] == StepResult(Outcome.FAILED, "no-space: full")
        went_on = on_failure is OnFailure.CONTINUE
        assert ("cont" in vm.changing_commands) == went_on


async def test_refused_command_is_a_failed_step(vm: WatchedQemu, notes: Notes) -> None:
    vm.refuse("system_reset", "not today")
    async with open_session(vm) as session:
        assert await run(session, notes, RESET, CONT) is Course.FALL_BACK
        assert notes.results[0] == StepResult(Outcome.FAILED, "GenericError: not today")
        assert "cont" not in vm.changing_commands


async def test_cont_that_an_old_qemu_refuses_is_a_failed_step(
    socket_dir: Path,
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", profile=QEMU_1_6, state=RunState.GUEST_PANICKED)
    notes = Notes()
    async with open_session(vm) as session:
        assert await run(session, notes, CONT) is Course.FALL_BACK
        assert "Resetting the Virtual Machine is required" in notes.results[0].detail


async def test_qemu_that_ends_instead_of_resetting_is_learnt(vm: WatchedQemu, notes: Notes) -> None:
    vm.machine.reboot_action, vm.machine.shutdown_action = "shutdown", "pause"
    async with open_session(vm) as session:
        before = session.capability
        assert await run(session, notes, RESET, CONT) is Course.FALL_BACK
        assert (before.can_reset, session.capability.can_reset) == (True, False)
        assert "cont" not in vm.changing_commands  # it would resume the panicked guest


async def test_reset_without_a_sign_of_it_is_not_taken_for_one(
    vm: WatchedQemu, notes: Notes
) -> None:
    vm.swallow("system_reset")
    vm.machine.reset = lambda *_args, **_keywords: None  # type: ignore[method-assign]  # a QEMU that hangs
    async with open_session(vm) as session:
        assert await run(session, notes, SystemReset(SHORT), CONT) is Course.INTERRUPTED
        assert notes.outcomes == [Outcome.UNKNOWN]
        assert "cont" not in vm.changing_commands


@pytest.mark.parametrize(
    ("command", "course"),
    [("system_reset", Course.RESET_BY_OTHERS), ("cont", Course.RESUMED_BY_OTHERS)],
)
async def test_plan_ends_where_others_take_over(
    vm: WatchedQemu, notes: Notes, command: str, course: Course
) -> None:
    async with open_session(vm) as session, background() as nursery:
        held = vm.hold_reply("query-block-jobs")
        courses: list[Course] = []

        async def carry_out() -> None:
            courses.append(await run(session, notes, STOP, AwaitQuiet(LONG), *END))
            nursery.cancel_scope.cancel()

        nursery.start_soon(carry_out)
        await held.reached.wait()
        await vm.foreign(command)
        held.release()
        await vm.exited.wait()  # or the end of carry_out, which is to come instead
    assert courses == [course]
    assert "quit" not in vm.changing_commands


async def test_session_that_ends_leaves_the_step_unknown(vm: WatchedQemu, notes: Notes) -> None:
    vm.cut_before("system_reset")
    async with open_session(vm) as session:
        assert await run(session, notes, RESET, CONT) is Course.INTERRUPTED
        assert notes.outcomes == [Outcome.UNKNOWN]


async def test_process_that_is_no_qemu_gets_no_signal(vm: WatchedQemu, notes: Notes) -> None:
    vm.hold("quit")
    async with open_session(vm) as session:
        steps = (Quit(SHORT, OnFailure.CONTINUE), Terminate(LONG, OnFailure.CONTINUE), Kill(LONG))
        assert await run(session, notes, *steps) is Course.FALL_BACK
        assert notes.outcomes == [Outcome.FAILED] * 3
        assert notes.results[2].detail.endswith("is not a QEMU: no SIGKILL was sent")


# -- relaunching


def script(code: str, timeout: float = LONG) -> RunRelaunch:
    return RunRelaunch(timeout, command=(sys.executable, "-c", code))


async def test_relaunch_is_told_which_domain_and_is_waited_for(
    vm: WatchedQemu, notes: Notes, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    relaunch = script(f"import os; open({str(told)!r}, 'w').write(os.environ['PANICD_DOMAIN'])")
    async with open_session(vm) as session:
        course = await run(session, notes, relaunch, AwaitReturn(LONG))
    assert course is Course.AWAITING_RETURN
    assert told.read_text() == "vm"
    assert notes.not_durable == 0


@pytest.mark.parametrize("fault", ["stopped", "journal"])
async def test_relaunch_that_was_forestalled_is_told_from_one_that_ran(
    vm: WatchedQemu, tmp_path: Path, fault: str
) -> None:
    class Tarrying(Notes):
        async def commit(self) -> None:
            if fault == "journal":
                raise JournalError("no space left on device")
            scope.cancel()

    told, scope = tmp_path / "told", trio.CancelScope()
    never, tarrying = script(f"open({str(told)!r}, 'w')"), Tarrying()
    async with open_session(vm) as session:
        with suppress(JournalError), scope:
            await run(session, tarrying, never, AwaitReturn(LONG))
    assert tarrying.outcomes == [Outcome.SKIPPED]
    assert not told.exists()


@pytest.mark.parametrize(
    ("relaunch", "says"),
    [
        (script("import sys; print('no such VM'); sys.exit(3)"), "exit status 3: no such VM"),
        (script("print('x' * 100_000); raise SystemExit(1)"), "exit status 1: xxx"),
        (script("import signal; signal.pause()", SHORT), "ran 0.05 s"),
        (RunRelaunch(LONG, command=("/nowhere/relaunch",)), "No such file or directory"),
    ],
    ids=["status", "output", "time", "missing"],
)
async def test_relaunch_that_fails_says_why(
    vm: WatchedQemu, notes: Notes, relaunch: RunRelaunch, says: str
) -> None:
    async with open_session(vm) as session:
        assert await run(session, notes, relaunch, AwaitReturn(LONG)) is Course.FALL_BACK
    assert says in notes.results[0].detail
    assert len(notes.results[0].detail) < 2000
