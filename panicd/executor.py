"""Carries out one plan on one VM, step by step, and says how each step ended.

Before a step touches the guest, everything said so far is made durable (``Record.commit``); what a
step's outcome is follows from what was seen, not from what was sent.
"""

import signal
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final, Protocol, assert_never

import trio

from panicd.host.journal import JournalError
from panicd.host.logs import get_logger
from panicd.host.virsh import LibvirtRefusedError, LibvirtSilentError
from panicd.libvirt import JOB_WAIT, Libvirt, LibvirtAwayError
from panicd.qemu.coredump import DumpError, DumpFailure, FinishedDump
from panicd.qemu.monitor import CommandError, NoReplyError, SessionLostError, UncertainError
from panicd.qemu.process import PeerError
from panicd.qemu.session import Session
from panicd.relaunch import NOT_BEGUN, run_relaunch
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.last_words import LastWords
from panicd.rules.libvirt import LibvirtDomain
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
    Plan,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)
from panicd.rules.qapi import RunState

STOP_FOLLOWS: Final = 0.05  # seconds; STOP was seen 60 to 500 µs after GUEST_PANICKED
MIGRATED_AWAY: Final = {RunState.FINISH_MIGRATE, RunState.POSTMIGRATE}
GONE_FOLLOWS: Final = 1.0  # seconds between a monitor's end of file and its process's end
QUIET_CHECK: Final = 1.0  # seconds between two looks at whether a migration or a job has ended


class Record(Protocol):
    """Where the executor tells what it does."""

    def begin(self, index: int) -> None:
        """Step ``index`` begins."""

    def end(self, index: int, result: StepResult) -> None:
        """Step ``index`` has ended."""

    async def commit(self) -> None:
        """Return when all that was told is durable."""


class _Unnoted:
    """A record of nothing, for steps that an entry of before stands for."""

    def begin(self, index: int) -> None:
        pass

    def end(self, index: int, result: StepResult) -> None:
        pass

    async def commit(self) -> None:
        pass


UNNOTED: Final[Record] = _Unnoted()


class Course(StrEnum):
    """How a plan's execution ended."""

    COMPLETED = "completed"
    AWAITING_RETURN = "awaiting-return"  # the last step is the relaunched domain's to end
    WATCHING = "watching"  # the last step is the guest's to end
    FALL_BACK = "fall-back"  # a step failed and the policy's fallback is to be decided
    PRESERVE = "preserve"  # a step failed and the guest is to be left as it is
    INTERRUPTED = "interrupted"  # it is not known how a step ended: ask the VM again
    RESET_BY_OTHERS = "reset-by-others"  # the guest is no longer the panicked one
    RESUMED_BY_OTHERS = "resumed-by-others"  # nor here


AFTER_FAILURE: Final = {
    OnFailure.FALL_BACK: Course.FALL_BACK,
    OnFailure.PRESERVE: Course.PRESERVE,
}


_TO_BE_AWAITED: Final = {
    AwaitReturn: Course.AWAITING_RETURN,
    AwaitGuestReset: Course.WATCHING,
}


class _OvertakenError(Exception):
    """Somebody else has changed what was to be acted on."""

    def __init__(self, course: Course, result: StepResult | None) -> None:
        super().__init__(course.value)
        self.course = course
        self.result = result or StepResult(Outcome.SKIPPED, course.value)


DumpMaker = Callable[[Session, Dump], Awaitable[FinishedDump]]
EvidenceTaker = Callable[[Session, Collect], Awaitable[LastWords]]


class Executor:
    """Runs plans on one session.

    Args:
        session: the VM.
        record: told of every step.
        make_dump: writes the guest's memory to a file.
        take_evidence: keeps what the guest still shows, and returns its last words.
        environment: what a relaunch command is told, beside panicd's own environment.
        libvirt: of this host.
        on_command: called before each command that changes the guest.

    A guest that somebody else resets or resumes meanwhile is no longer the panicked one that was
    decided about: the plan ends before its next step.
    """

    def __init__(
        self,
        session: Session,
        record: Record,
        *,
        make_dump: DumpMaker,
        take_evidence: EvidenceTaker,
        environment: dict[str, str],
        libvirt: Libvirt,
        on_command: Callable[[], None],
    ) -> None:
        self._session = session
        self._record = record
        self._make_dump = make_dump
        self._take_evidence = take_evidence
        self._environment = environment
        self._libvirt = libvirt
        self._on_command = on_command
        self._resets = session.seen.resets
        self._resumes = session.seen.resumes
        self._relaunching = False
        self._lost = False  # known before the session's last events are taken, which is its end
        self._log = get_logger(domain=environment["PANICD_DOMAIN"])

    async def run(self, plan: Plan, first: int = 0) -> Course:
        """Carry out a plan from step ``first`` on."""
        for index, step in enumerate(plan.steps[first:], first):
            self._record.begin(index)
            if isinstance(step, AwaitReturn | AwaitGuestReset):
                await self._record.commit()
                return _TO_BE_AWAITED[type(step)]
            try:
                await self._look()
                result = await self._carry_out(step)
            except _OvertakenError as overtaken:
                self._record.end(index, overtaken.result)
                return overtaken.course
            except (trio.Cancelled, JournalError):
                if isinstance(step, RunRelaunch) and not self._relaunching:
                    self._record.end(index, NOT_BEGUN)
                raise
            self._record.end(index, result)
            if result.outcome in {Outcome.DONE, Outcome.SKIPPED}:
                continue
            cut_off = self._cut_off(step, result)
            if step.on_failure is OnFailure.CONTINUE and not cut_off:
                continue
            if result.outcome is Outcome.UNKNOWN or cut_off:
                return Course.INTERRUPTED
            return AFTER_FAILURE[step.on_failure]
        if plan.steps and isinstance(plan.steps[-1], EnsureStopped | Collect | AwaitQuiet | Dump):
            try:  # it took its time, and the guest is to be as it was
                await self._look()
            except _OvertakenError as overtaken:
                return overtaken.course
        return Course.COMPLETED

    async def _look(self, result: StepResult | None = None) -> None:
        """See that the guest still is the panicked one that was decided about.

        Args:
            result: of the step in progress; None: it is not taken, if the guest is another.

        Raises:
            _OvertakenError: it is not.
        """
        await self._session.drain()
        if (course := self._overtaken()) is not None:
            raise _OvertakenError(course, result)

    def _overtaken(self) -> Course | None:
        """Return how the plan ends if the guest is known to be another by now."""
        if self._session.seen.resets > self._resets:
            return Course.RESET_BY_OTHERS
        if self._session.seen.resumes > self._resumes:
            return Course.RESUMED_BY_OTHERS
        return None

    async def _commit_and_look(self) -> None:
        """Make durable what was told so far; that takes a moment, so look at the guest again."""
        await self._record.commit()
        await self._look()

    def _cut_off(self, step: AnyStep, result: StepResult) -> bool:
        """Whether the session is gone that the steps after this one need.

        Signals need none: they end a QEMU that was told to end. One that may not have been told is
        asked again how it stands, for its guest may be a healthy one by now.
        """
        told_to_end = (
            isinstance(step, Quit | Terminate | Kill) and result.outcome is not Outcome.UNKNOWN
        )
        can_go_on = isinstance(step, RunRelaunch) or (told_to_end and self._session.process_known)
        return (self._lost or self._session.ended) and not can_go_on

    async def _carry_out(self, step: AnyStep) -> StepResult:
        try:
            match step:
                case EnsureStopped():
                    return await self._ensure_stopped(step)
                case Collect():
                    await self._record.commit()
                    words = await self._take_evidence(self._session, step)
                    return StepResult(Outcome.DONE, words.line, words.signature)
                case AwaitQuiet():
                    return await self._await_quiet(step)
                case Dump():
                    return await self._dump(step)
                case SystemReset():
                    return await self._system_reset(step)
                case Cont():
                    return await self._cont(step)
                case Quit():
                    return await self._quit(step)
                case Terminate():
                    return await self._signal(signal.SIGTERM, step)
                case Kill():
                    return await self._signal(signal.SIGKILL, step)
                case RunRelaunch():
                    return await self._relaunch(step)
                case AwaitReturn() | AwaitGuestReset():
                    raise AssertionError("run() ends before this step")
                case _:
                    assert_never(step)
        except UncertainError as error:
            self._lost = isinstance(error, SessionLostError)
            return StepResult(Outcome.UNKNOWN, str(error))
        except (CommandError, LibvirtRefusedError) as error:
            return StepResult(Outcome.FAILED, str(error))

    async def _ensure_stopped(self, step: EnsureStopped) -> StepResult:
        session = self._session
        if await session.observe(lambda: not session.run_state.executes, STOP_FOLLOWS):
            return StepResult(Outcome.DONE)
        if (await session.query_status(step.timeout)).executes:
            await self._command("stop", step.timeout)
            await session.query_status(step.timeout)
        if session.run_state.executes:
            return StepResult(Outcome.FAILED, f"run state {session.run_state} after stop")
        return StepResult(Outcome.DONE, str(session.run_state))

    async def _await_quiet(self, step: AwaitQuiet) -> StepResult:
        session = self._session
        try:
            busy = await session.busy_with()
        except NoReplyError:
            return StepResult(Outcome.SKIPPED, "QEMU does not say what it is busy with")
        waited_for = busy
        deadline = trio.current_time() + step.timeout
        while busy:
            if trio.current_time() >= deadline:
                return StepResult(Outcome.FAILED, f"{busy} did not end in {step.timeout:g} s")
            self._log.info("waiting", until_the_end_of=busy)
            await session.observe(lambda: session.ended or bool(self._overtaken()), QUIET_CHECK)
            await self._look()
            busy = await session.busy_with()
        # A panic lets a migration end at once: it may be over already. To let the guest run here
        # too would be a second copy of it.
        if session.run_state in MIGRATED_AWAY:
            return StepResult(Outcome.FAILED, "the guest was migrated away")
        return StepResult(Outcome.DONE, waited_for and f"waited for {waited_for}")

    async def _dump(self, step: Dump) -> StepResult:
        await self._commit_and_look()
        self._on_command()
        try:
            dump = await self._make_dump(self._session, step)
        except DumpError as error:
            failed = StepResult(Outcome.FAILED, str(error))
            await self._look(failed if error.failure is not DumpFailure.OVERTAKEN else None)
            return failed
        return StepResult(Outcome.DONE, str(dump.path))

    async def _system_reset(self, step: SystemReset) -> StepResult:
        session = self._session
        before = session.seen.resets
        doubt = await self._give("system_reset", "reset", step)
        # RESET comes before the reply; QEMU that was told not to reboot sends SHUTDOWN instead.
        await session.observe(
            lambda: session.seen.resets > before or session.seen.shutdown is not None, step.timeout
        )
        if session.seen.resets > before:
            self._resets = session.seen.resets
            return StepResult(Outcome.DONE)
        if session.seen.shutdown is not None:
            session.learn_reset_is_impossible()
            return StepResult(Outcome.FAILED, "QEMU ends instead of resetting")
        if doubt or session.ended:
            return StepResult(Outcome.UNKNOWN, doubt or "the session ended before RESET was seen")
        return StepResult(Outcome.FAILED, "no RESET was seen")

    async def _cont(self, step: Cont) -> StepResult:
        session = self._session
        before = session.seen.resumes
        doubt = await self._give("cont", "resume", step)
        # RESUME comes before the reply. A guest that panics at once is past it already, so a run
        # state of guest-panicked after it is a new panic and not a cont that failed.
        if await session.observe(lambda: session.seen.resumes > before, STOP_FOLLOWS):
            return StepResult(Outcome.DONE)
        if doubt:
            return StepResult(Outcome.UNKNOWN, doubt)
        if await session.query_status() is RunState.RUNNING:
            return StepResult(Outcome.DONE)
        return StepResult(Outcome.FAILED, f"run state {session.run_state} after cont")

    async def _quit(self, step: Quit) -> StepResult:
        session, cut = self._session, False
        with trio.move_on_after(step.timeout) as limit:
            try:
                if not await self._destroyed_by_libvirt(step):
                    await self._command("quit", step.timeout)
            except NoReplyError:
                pass
            except SessionLostError:  # QEMU's end may come before its answer
                await session.drain()
                cut = session.seen.shutdown is None
                if cut:
                    limit.deadline = min(limit.deadline, trio.current_time() + GONE_FOLLOWS)
            await self._until_gone()
        if session.has_gone():
            return StepResult(Outcome.DONE)
        if cut or (session.ended and not session.process_known):
            return StepResult(Outcome.UNKNOWN, "the session ended without a word of QEMU's end")
        return StepResult(Outcome.FAILED, f"still there {step.timeout:g} s after quit")

    async def _signal(self, number: signal.Signals, step: Terminate | Kill) -> StepResult:
        if self._session.has_gone():
            return StepResult(Outcome.SKIPPED, "the process is gone")
        await self._commit_and_look()
        self._on_command()
        try:
            self._session.peer.send_signal(number)
        except PeerError as error:
            return StepResult(Outcome.FAILED, str(error))
        with trio.move_on_after(step.timeout):
            await self._until_gone()
        if self._session.has_gone():
            return StepResult(Outcome.DONE)
        return StepResult(Outcome.FAILED, f"still there {step.timeout:g} s after {number.name}")

    async def _relaunch(self, step: RunRelaunch) -> StepResult:
        await self._record.commit()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._relaunching = True
        self._on_command()
        return await run_relaunch(step, self._environment)

    async def _command(self, name: str, timeout: float) -> None:
        await self._commit_and_look()
        self._on_command()
        await self._session.execute(name, timeout=timeout)

    async def _give(self, name: str, verb: str, step: SystemReset | Cont) -> str:
        """Give a command, through libvirt where it is to be; return as ``_command_or_doubt``.

        Args:
            name: the monitor's command.
            verb: what virsh(1) calls it.
            step: says which way.

        Raises:
            LibvirtRefusedError: libvirt said no; it may be at work on the domain.
        """
        domain = self._session.capability.libvirt
        if domain is None or not step.by_libvirt:
            return await self._command_or_doubt(name, step.timeout)
        try:
            await self._tell_libvirt(domain, verb, JOB_WAIT)
        except LibvirtAwayError as away:
            self._log.warning("done without libvirt", what=verb, why=str(away))
        except LibvirtSilentError as error:
            return str(error)
        else:
            return ""
        return await self._command_or_doubt(name, step.timeout)

    async def _destroyed_by_libvirt(self, step: Quit) -> bool:
        """Have libvirt end QEMU, where it is to; return whether it did."""
        domain = self._session.capability.libvirt
        if domain is None or not step.by_libvirt:
            return False
        try:
            await self._tell_libvirt(domain, "destroy", step.timeout)
        except (LibvirtAwayError, LibvirtSilentError, LibvirtRefusedError) as error:
            self._log.warning("done without libvirt", what="destroy", why=str(error))
            return False
        return True

    async def _tell_libvirt(self, domain: LibvirtDomain, verb: str, timeout: float) -> None:
        await self._commit_and_look()
        self._on_command()
        await self._libvirt.act(domain, verb, timeout)

    async def _command_or_doubt(self, name: str, timeout: float) -> str:
        """Give a command; return why it is not known whether QEMU carried it out, or nothing.

        What is not answered may still be proven by the events that were received.
        """
        try:
            await self._command(name, timeout)
        except UncertainError as error:
            return str(error)
        return ""

    async def _until_gone(self) -> None:
        if self._session.process_known:
            await self._session.peer.wait_gone()
        else:
            while not self._session.ended:
                await self._session.next_event()
