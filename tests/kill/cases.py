"""One case of the matrix: a scenario, a point in it, and what strikes there."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import trio

from panicd.dumps.directory import PARTIAL
from panicd.rules.incident import Incident, Source
from panicd.rules.on_crash import Action
from panicd.rules.plan import Terminate
from panicd.service.control_client import DaemonUnreachableError, RefusedError
from tests.kill.gate import Gate
from tests.kill.libvirt_subjects import FakeDomainSubject, RealDomainSubject
from tests.kill.scenarios import DUMP, Kind, Scenario
from tests.kill.subjects import FakeSubject, RealSubject, Spoil, Subject, relaunch_arguments
from tests.kill.verdict import (
    Counters,
    Evidence,
    became,
    has_begun,
    judge,
    judge_dead_qemu,
    wanted,
)
from tests.parts.background import background
from tests.parts.daemon import DaemonEndedError, Process, RunningDaemon, stable
from tests.parts.libvirt import Libvirtd
from tests.parts.patience import patience, patiently

TIME_LIMIT = 60.0
"""Seconds for one case, on a busy machine."""

POINT_WITHIN = 5.0
"""Seconds in which a daemon comes to the point where it is to be struck."""

END_FOLLOWS = 0.5
"""Seconds in which the last points follow the journal's last entry."""

SHORT = ("stop", "reset", "resume")
"""Time limits of steps, so that an answer that was lost is not waited for long."""


FIRST = "before quit #1"
"""Where the guest was seen to have stopped, and nothing was done."""

_PID_FILE = "relaunched.pid"

_TOLD = "told"
"""Where the relaunch command writes a line each time."""

_JOURNAL_FOLLOWS = 0.02
"""Seconds after which the journal is looked at again."""


COMMANDS = frozenset({"stop", "getfd", DUMP, "system_reset", "cont", "quit"})
"""Commands that stand for a step of a plan."""


class Blow(StrEnum):
    """What strikes at a point."""

    KILL = "panicd is killed"
    KILL_LOST = "panicd is killed, its command is lost"
    KILL_LATE = "panicd is killed, its command takes effect after that"
    KILL_UNREAD = "panicd is killed before QEMU has read its command"
    CUT = "the connection is cut"
    SWALLOW = "the answer is lost"
    KILL_QEMU = "QEMU is killed"
    KILL_LIBVIRTD = "libvirtd is killed"


@dataclass(frozen=True)
class Case:
    """One case; ``point`` and ``blow`` are None where nothing strikes."""

    scenario: Scenario
    kind: Kind
    point: str | None = None
    blow: Blow | None = None

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.scenario.name}: {self.blow or 'nothing'} at {self.point or 'none'}"
        )


@dataclass
class Verdict:
    """How a case went.

    Attributes:
        case: Which.
        points: The points that the daemon passed.
        reached: The blow fell.
        violations: What is wrong.
    """

    case: Case
    points: list[str] = field(default_factory=list)
    reached: bool = False
    violations: list[str] = field(default_factory=list)


class GatedDaemon(RunningDaemon):
    """A daemon with gates; its directory holds the socket where it asks."""

    async def _open_process(self, arguments: list[str], environment: dict[str, str]) -> Process:
        return await stable.start(arguments, environment, "tests.kill.gated:run")

    async def wait_line(self, since: int) -> None:
        """Wait until it has logged more."""
        await self._wait_line(since)


_FAILURES = (AssertionError, trio.TooSlowError, DaemonEndedError, ExceptionGroup)
"""What a daemon can make of a case, beside a wrong end."""


async def try_case(case: Case, libvirtd: Libvirtd | None) -> Verdict:
    """Carry a case out; what goes wrong on the way is a violation too.

    Args:
        case: Which.
        libvirtd: The real one, for those that take one.
    """
    verdict = Verdict(case)
    with tempfile.TemporaryDirectory(prefix="panicd-", ignore_cleanup_errors=True) as directory:
        trial = _Trial(case, Path(directory), verdict, libvirtd)
        try:
            await trial.run()
        except _FAILURES as error:
            verdict.violations.append(_words(error))
        finally:
            trial.end_relaunched()
    return verdict


class _Trial:
    def __init__(
        self, case: Case, directory: Path, verdict: Verdict, libvirtd: Libvirtd | None
    ) -> None:
        self._libvirtd = libvirtd
        self._case = case
        self._scenario = case.scenario
        self._directory = directory
        self._verdict = verdict
        self._evidence = Evidence()
        self._daemon: GatedDaemon
        self._gate: Gate
        self._subject: Subject
        self._answered = trio.Event()
        self._cut_at: int | None = None

    async def run(self) -> None:
        policy = {"evidence": {"budget": "0s"}, **self._scenario.policy}
        short = dict.fromkeys(SHORT, patiently(1))
        policy["timeouts"] = {**short, **policy.get("timeouts", {})}
        if self._scenario.relaunch:
            policy["relaunch"] = {"command": self._relaunch_command(), "timeout": patiently(3)}
        async with (
            Gate.open(self._directory) as self._gate,
            _subject(self._case, self._directory, self._libvirtd) as self._subject,
            GatedDaemon.start(
                self._directory,
                policy,
                time_limit=TIME_LIMIT,
                storm="off",
                **self._subject.config,
            ) as self._daemon,
            background() as nursery,
        ):
            await self._daemon.wait_armed("vm")
            if self._scenario.request is not None:
                await self._subject.panic()
                await self._wait_journal(lambda journal: [*map(became, journal)] == ["preserved"])
                await self._daemon.call("status")  # its answer comes once it has passed that point
            already = list(self._subject.carried_out)
            self._gate.watch(FIRST if self._scenario.hangs else self._first_stop())
            if self._scenario.request is None:
                await self._subject.panic()
                self._answered.set()
            else:
                nursery.start_soon(self._ask, *self._scenario.request)
            if self._scenario.hangs:
                await self._gate.wait_reached()
                await self._subject.freeze()
                self._gate.go_on(keep_at=self._first_stop())
            if self._case.blow is not None:
                await self._strike(self._case.blow, already)
            await self._see_the_end()
            self._verdict.points = self._gate.passed

    # -- the blow

    def _first_stop(self) -> str | None:
        point = self._case.point
        if self._case.blow is Blow.SWALLOW:
            return None
        if point is not None and self._case.blow is Blow.KILL_UNREAD:
            return point.replace("sent ", "before ")
        return point

    async def _strike(self, blow: Blow, already: list[str]) -> None:
        point, subject, gate = self._case.point, self._subject, self._gate
        assert point is not None
        moment, _, rest = point.partition(" ")
        command, _, number = rest.partition(" #")
        held = None
        if blow in {Blow.KILL_LOST, Blow.KILL_LATE}:
            held = subject.hold(command)
        elif blow is Blow.SWALLOW:
            lost = subject.swallow(command)
            await lost.reached.wait()
            self._verdict.reached = self._evidence.struck = True
            return
        if not await self._comes_to_its_point():
            gate.go_on()
            return
        if blow is Blow.KILL_UNREAD:
            await subject.freeze()
            gate.go_on(keep_at=point)
            await gate.wait_reached()
        elif held is not None:
            await held.reached.wait()
        elif moment == "sent" and command in COMMANDS and not self._scenario.hangs:
            await subject.wait_dealt_with(command, already.count(command) + int(number))
        self._verdict.reached = self._evidence.struck = True
        self._evidence.dumped_at_blow = any(map(_is_complete, self._dump_files()))
        match blow:
            case Blow.CUT:
                self._cut_at = self._daemon.mark()
                subject.cut()
                gate.go_on()
            case Blow.KILL_QEMU:
                await subject.kill()
                gate.go_on()
            case Blow.KILL_LIBVIRTD:
                self._cut_at = self._daemon.mark()
                self._evidence.libvirtd_died = True
                await subject.kill_libvirtd()
                gate.go_on()
            case _:
                await self._daemon.kill()
                self._evidence.at_blow = self._daemon.journal()
                await self._after_kill(blow, held)
                await self._daemon.start_again()
                if self._scenario.hangs and not any(map(_is_escalating, self._evidence.at_blow)):
                    subject.thaw()

    async def _comes_to_its_point(self) -> bool:
        """Wait for the daemon at its point; return False if it has come to the end without it.

        Which entries are written together is up to chance, and then it is tried again. The point is
        not waited for until an incident that has come to its end goes on: a guest that was let run
        is watched for a minute.
        """

        async def see_the_end() -> None:
            await self._wait_journal(lambda _: self._has_become())
            waiting.deadline = min(waiting.deadline, trio.current_time() + patience(END_FOLLOWS))

        with trio.move_on_after(patience(POINT_WITHIN)) as waiting:
            async with background() as nursery:
                nursery.start_soon(see_the_end)
                await self._gate.wait_reached()
        return self._gate.has_reached

    async def _after_kill(self, blow: Blow, held: Spoil | None) -> None:
        """Have done with the command that panicd had sent, and see what QEMU makes of it."""
        subject = self._subject
        if held is not None and blow is Blow.KILL_LOST:
            held.cut()
        elif held is not None:
            number = subject.carried_out.count(held.command) + 1
            held.release()
            await subject.wait_dealt_with(held.command, number)
        elif blow is Blow.KILL_UNREAD:
            subject.thaw()
        self._gate.ignore()
        self._evidence.unseen_end = subject.ended and not subject.identified

    async def _ask(self, command: str, arguments: Mapping[str, str]) -> None:
        with suppress(DaemonUnreachableError, RefusedError):
            await self._daemon.call(command, **arguments)
        self._answered.set()

    # -- what is seen

    async def _see_the_end(self) -> None:
        evidence, scenario = self._evidence, self._scenario
        struck_dead = self._case.blow is Blow.KILL_QEMU and evidence.struck
        if struck_dead:
            await self._wait_journal(lambda journal: bool(journal) and not journal[-1].is_open)
        else:
            await self._answered.wait()
            if self._evidence.at_blow is not None or self._cut_at is not None:
                await self._wait_journal(lambda _: self._is_taken_up())
            await self._wait_journal(lambda _: self._has_become())
        evidence.journal = self._daemon.journal()
        evidence.guest = await self._guest()
        evidence.relaunches = self._relaunches()
        evidence.commands = self._subject.changing
        evidence.files = self._dump_files()
        evidence.counters = await _counters(self._daemon)
        wrong = judge_dead_qemu(scenario, evidence) if struck_dead else judge(scenario, evidence)
        self._verdict.violations += [*wrong, *_details(evidence.journal)] if wrong else []

    def _is_taken_up(self) -> bool:
        """Whether the daemon has found the domain again, and gone on with its incident."""
        daemon, subject = self._daemon, self._subject
        since = daemon.began if self._cut_at is None else self._cut_at
        armed = daemon.logged("policy in force", since=since, domain="vm")
        return bool(armed) or (subject.ended and not self._relaunches())

    def _has_become(self) -> bool:
        self._evidence.journal = self._daemon.journal()
        self._evidence.relaunches = self._relaunches()
        result = wanted(self._scenario, self._evidence)
        if result is None:
            return True
        return [became(incident) for incident in self._evidence.journal] == [result.became]

    async def _wait_journal(self, holds: Callable[[list[Incident]], bool]) -> None:
        """Wait until something holds of the journal."""
        while not holds(self._daemon.journal()):
            # It comes a moment after the log, and nothing tells when.
            with trio.move_on_after(_JOURNAL_FOLLOWS):
                await self._daemon.wait_line(self._daemon.mark())

    def _relaunch_command(self) -> list[str]:
        """Write a line, and start the same VM again, in the background."""
        directory = self._directory
        machine = relaunch_arguments(directory, "$PANICD_UUID", directory / _PID_FILE)
        words = " ".join(word if word.startswith("$") else shlex.quote(word) for word in machine)
        return ["/bin/sh", "-c", f"echo relaunched >>{directory / _TOLD}; exec {words}"]

    def end_relaunched(self) -> None:
        """End a QEMU that was relaunched."""
        pid_file = self._directory / _PID_FILE
        if pid_file.exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)

    async def _guest(self) -> str:
        if self._relaunches():
            return str((await self._daemon.domain("vm"))["run_state"])
        return await self._subject.guest()

    def _relaunches(self) -> int:
        told = self._directory / _TOLD
        return len(told.read_text().splitlines()) if told.exists() else 0

    def _dump_files(self) -> list[Path]:
        directory = self._directory / "state" / "coredumps"
        return sorted(path for path in directory.rglob("*") if path.is_file())


def _words(error: BaseException) -> str:
    """What went wrong on the way, all of a group."""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    notes = getattr(error, "__notes__", ())
    return "\n".join([f"{type(error).__name__}: {error}", *notes, *map(_words, inner)])


def _details(incidents: list[Incident]) -> list[str]:
    """What the journal says of steps: why one has failed."""
    records = [record for incident in incidents for record in incident.steps.values()]
    return [f"a step is {r.outcome}: {r.detail}" for r in records if r.detail]


def _is_complete(dump: Path) -> bool:
    return dump.suffix != PARTIAL


def _is_escalating(incident: Incident) -> bool:
    return has_begun(incident, Terminate)


def _subject(
    case: Case, directory: Path, libvirtd: Libvirtd | None
) -> AbstractAsyncContextManager[Subject]:
    match case.kind:
        case Kind.FAKE:
            return FakeSubject.start(directory, case.scenario)
        case Kind.REAL:
            return RealSubject.start(directory, case.scenario)
        case Kind.FAKE_LIBVIRT:
            return FakeDomainSubject.start(directory, case.scenario)
        case Kind.REAL_LIBVIRT:
            assert libvirtd is not None, "it was started for all of them"
            return RealDomainSubject.start(libvirtd, directory, case.scenario)


async def _counters(daemon: GatedDaemon) -> Counters:
    async def read(name: str, **labels: str) -> int | None:
        value = await daemon.metric(name, **labels)
        return None if value is None else int(value)

    actions = {str(action): await read("panicd_actions_total", action=action) for action in Action}
    return Counters(
        panics=sum([await read("panicd_panics_total", source=source) or 0 for source in Source]),
        domain_panics=await read("panicd_domain_panics_total", domain="vm"),
        restarts=await read("panicd_domain_restarts_total", domain="vm"),
        failures=await read("panicd_domain_action_failures_total", domain="vm"),
        actions={action: count for action, count in actions.items() if count},
    )
