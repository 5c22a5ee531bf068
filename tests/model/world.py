"""A VM and its host in memory, in virtual time.

For tests that try thousands of histories: nothing waits for a socket, a disk or a process. The VM
is the fake QEMU's machine; what is put in place of a monitor, a process and a journal has the same
face as the real one, and each command and each commit takes a moment of virtual time, so that
anything can come between.

The world knows what panicd can't: whether the guest is a panicked one. It objects to every command
that is given to a guest that it must not be given to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

import trio

import panicd.incident.collecting
import panicd.incident.errands
import panicd.incident.waiting
from panicd.dumps.coredump import FinishedDump
from panicd.qemu.event_outlet import EventOutlet
from panicd.qemu.monitor import (
    Command,
    CommandError,
    MonitorError,
    NoReplyError,
    SessionLostError,
    UnreachableError,
)
from panicd.qemu.pace import Pace
from panicd.qemu.process_identity import ProcessIdentity
from panicd.qemu.session import Session
from panicd.rules.capability import Version
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import RunRelaunch
from panicd.rules.qapi import parse_event
from tests.model.clock import LATENCY
from tests.model.journal import MemoryJournal
from tests.parts.machine import CommandError as MachineError
from tests.parts.machine import Machine
from tests.parts.profile import Profile, RunState
from tests.parts.recorded import FOLLOWS

UUID: Final = "0c7d41c9-0e30-4f55-a7f1-a8ff3d5f2d31"

STOP_TAKES: Final = 0.0007
"""Seconds between a panic and its STOP: 60 to 500 µs were seen."""

ON_RECORD_WITHIN: Final = 10.1
"""Seconds from a cont to its result in the journal, if its answer is lost: ``timeouts.resume``."""

DUMP_TAKES: Final = 0.1
"""Seconds that QEMU writes a dump, whether somebody waits for it or not."""


@dataclass
class Fault:
    """What goes wrong with the next command that does more than ask."""

    reply_lost: bool = False
    cut_before: bool = False
    cut_after: bool = False
    command: str = ""  # empty: the next, whichever it is


class World:
    """A host with one VM.

    Attributes:
        machine: The VM; None: its QEMU has ended.
        panics: How many there were.
        panicked: The guest's kernel panicked and was not reset since.
        ran: The guest ran since it was reset, or started.
        done: What QEMU carried out that does more than ask.
        fault: What goes wrong next.
        in_flight: How many batches of commands QEMU has not dealt with.
        dealt_with: Woken up when there is one less.
        released: An operator asked to let the guest run, after its last panic.
        interruptions: How often panicd may have lost track, since the last panic.
        requests: How often an operator asked for something to be done, since the last panic.
        connected_anew: panicd has connected since the last panic, so it may not have heard a reset.
        boots: How often panicd let a guest run that had been reset.
        misread: How often QEMU called a guest that was reset a panicked one, as 1.7 to 2.5 do, and
            any where the panic's stop comes after the reset. Who was away can't tell them apart.
    """

    def __init__(
        self, profile: Profile, on_crash: OnCrash, nursery: trio.Nursery, *, resets: bool = True
    ) -> None:
        self.profile = profile
        self._resets = resets
        self.on_crash = on_crash
        self.journal = MemoryJournal(nursery)
        self.machine: Machine | None = None
        self.panics = 0
        self.panicked = False
        self.ran = True
        self.done: list[str] = []
        self.fault: Fault | None = None
        self.released = False
        self.interruptions = 0
        self.panics_at_boot = 0
        self.requests = 0
        self.boots = 0
        self.misread = 0
        self.connected_anew = False
        self.in_flight = 0
        self.dealt_with = trio.lowlevel.ParkingLot()
        self._conts: Counter[int] = Counter()
        self._let_run_at = -math.inf
        self._relaunched: Counter[int] = Counter()
        self._nursery = nursery
        self._processes = 0
        self._client: ModelMonitor | None = None
        self.ended = trio.Event()
        self.began = trio.Event()
        self.start_qemu()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put this world where panicd looks for processes, files and commands."""
        with (
            patch.object(panicd.incident.waiting, "ProcessIdentity", _identities(self)),
            patch.object(panicd.incident.collecting.EvidenceKeeper, "dump", self.dump),
            patch.object(panicd.incident.errands, "run_relaunch", self.relaunch),
        ):
            yield

    # -- what happens

    def start_qemu(self) -> None:
        """Start a QEMU whose guest runs, if there is none."""
        if self.machine is not None:
            return
        self._processes += 1
        self.panicked, self.ran = False, True
        self.ended, began, self.began = trio.Event(), self.began, trio.Event()
        self.machine = Machine(
            self.profile,
            self._emit,
            uuid=UUID,
            shutdown_action="pause" if self._is_old else "poweroff",
            reboot_action="reset" if self._resets else "shutdown",
        )
        began.set()

    def panic(self, *, stops_later: bool = False) -> None:
        """The guest panics, if it runs; QEMU may take a moment to stop it."""
        machine = self.machine
        if machine is None or not self._guest_runs:
            return
        self.panics += 1
        is_heard = self._client is not None and not self._client.closed
        # To panicd, a panic that it can't hear is the one that it knows of, and was asked about. To
        # the next panicd so is one that comes before it is on record what came of the cont.
        is_told_apart = is_heard and trio.current_time() > self._let_run_at + ON_RECORD_WITHIN
        self.panicked, self.released = True, self.released and not is_told_apart
        self.interruptions, self.requests = int(not is_heard), 0
        self.connected_anew = False
        machine.panic(hold_stop=stops_later)
        if stops_later:
            self._nursery.start_soon(self._finish_stop, machine)
        self._settle()

    def bring_back(self) -> None:
        """Somebody else sees to it that a healthy guest runs."""
        self.start_qemu()
        self.panics_at_boot = 0
        if self.panicked:
            self.foreign("system_reset")
        self.foreign("cont")

    def reset_itself(self) -> None:
        """The guest resets itself, if it runs."""
        machine = self.machine
        if machine is not None and self._guest_runs:
            machine.reset("guest-reset", guest=True)
            self._after()

    def foreign(self, command: str) -> None:
        """Somebody else has QEMU carry out a command."""
        if self.machine is not None:
            with suppress(MachineError):
                self.machine.execute(command, {})
            self._after()

    def kill_qemu(self) -> None:
        """QEMU dies without a word."""
        if self.machine is not None:
            self.machine = None
            self.ended.set()
            self.disconnect()

    def disconnect(self) -> None:
        """The monitor's connection is cut."""
        self.interruptions += 1
        if self._client is not None:
            self._client.close()
            self._client = None

    # -- what panicd does

    async def connect(self) -> ModelMonitor:
        """Connect panicd to the monitor, once QEMU is done with what came by the last connection.

        Raises:
            UnreachableError: There is no QEMU.
        """
        await trio.sleep(LATENCY)
        while self.in_flight:
            await self.dealt_with.park()
        if self.machine is None:
            raise UnreachableError("nobody listens on this socket")
        if self._client is not None:
            self._client.close()
        self._client = ModelMonitor(self, self.machine)
        self.connected_anew = True
        return self._client

    def identity(self) -> ProcessIdentity:
        """Which QEMU it is that runs, or ran last."""
        return ProcessIdentity("boot", self._processes, self._processes)

    def may(self, command: str) -> None:
        """Object to what panicd is about to do, if this guest must not be done it.

        Panicd has been told of everything that happened up to now, but for what it could not hear.
        """
        assert self.machine is not None
        state, panicked = self.machine.state, self.panicked
        # Who was not there when it was reset has QEMU's word only.
        said = state is RunState.GUEST_PANICKED and self.connected_anew
        match command:
            case "stop":
                assert panicked or self.misread, "a healthy guest is stopped"
            case "system_reset":
                assert panicked or said or not self.ran, f"a healthy guest is reset, {state}"
            case "quit" | "SIGTERM" | "SIGKILL":
                assert panicked or said, f"a healthy guest is ended by {command}, {state}"
            case "cont" if panicked:
                number = self._conts[self.panics]
                ignored = self.on_crash.action is Action.IGNORE
                assert ignored or self.released, "a panicked guest is let run"
                assert number <= self.interruptions + self.requests, f"cont number {number + 1}"
                self._conts[self.panics] += 1
            case "cont":
                assert said or not self.ran, "a guest that was not reset is let run"
            case "dump-guest-memory":
                assert state is not RunState.RUNNING, "a guest that runs is dumped"

    def carry_out(self, machine: Machine, command: str, arguments: Mapping[str, object]) -> object:
        """Have a QEMU carry out a command.

        Raises:
            MachineError: It refuses.
        """
        boots = command == "cont" and machine.must_boot
        answer = machine.execute(command, dict(arguments))
        self.boots += boots
        if command == "cont":
            self._let_run_at = trio.current_time()
        panicked = machine.state is RunState.GUEST_PANICKED
        self.misread += command == "query-status" and panicked and not self.panicked
        if machine.dump is not None and machine.dump.detached and command == "dump-guest-memory":
            self._nursery.start_soon(self.write_dump, machine)
        if not command.startswith(("query-", "qom-")):
            self.done.append(command)
        self._after()
        return answer

    async def relaunch(
        self, _step: RunRelaunch, _environment: Mapping[str, str], _process: str
    ) -> StepResult:
        """Run the relaunch command: as systemctl start it does nothing where the VM is there.

        It may be, for it is another one's that panicd has not connected to yet.
        """
        self._relaunched[self.panics] += 1
        assert self._relaunched[self.panics] <= 1 + self.requests, "relaunched twice"
        self._nursery.start_soon(self._start_later)
        await trio.sleep(LATENCY)
        return StepResult(Outcome.DONE)

    async def dump(self, session: Session, *_: object) -> FinishedDump:
        """Write a dump."""
        session.forget_dump()
        arguments = {"paging": False, "protocol": "file:/dev/null"}
        if self.profile.detached_dump:
            arguments["detach"] = True
        await session.execute("dump-guest-memory", arguments)
        if not self.profile.detached_dump:
            return FinishedDump(Path("/dev/null"), 0)
        if not await session.observe(lambda: session.dump is not None, 60.0):
            raise SessionLostError("dump-guest-memory: the session ended before the dump did")
        return FinishedDump(Path("/dev/null"), 0)

    # -- inside

    @property
    def _guest_runs(self) -> bool:
        machine = self.machine
        stopping = machine is not None and (machine._stop_pending or machine.vcpu_frozen)
        return machine is not None and machine.state is RunState.RUNNING and not stopping

    @property
    def _is_old(self) -> bool:
        return not self.profile.set_action

    async def _finish_stop(self, machine: Machine) -> None:
        await trio.sleep(STOP_TAKES)
        machine.finish_stop()

    async def write_dump(self, machine: Machine) -> None:
        """Write the dump that was begun."""
        await trio.sleep(DUMP_TAKES)
        machine.finish_dump(None)

    async def _start_later(self) -> None:
        await trio.sleep(LATENCY)
        self.start_qemu()

    def _emit(self, name: str, data: Mapping[str, object] | None) -> None:
        if name == "RESET":
            self.panicked, self.ran = False, False
        event = parse_event({"event": name, **({} if data is None else {"data": dict(data)})})
        if event is not None and self._client is not None:
            self._client.events.put(event)

    def _after(self) -> None:
        machine = self.machine
        if machine is None:
            return
        if machine.state is RunState.RUNNING:
            self.ran = True
            if machine.must_boot:
                machine.must_boot = False
                if self.panics_at_boot:
                    self.panics_at_boot -= 1
                    self.panic()
        self._settle()

    def _settle(self) -> None:
        if self.machine is not None and self.machine.exit_status is not None:
            self.machine = None
            self.ended.set()
            if self._client is not None:
                self._client.close()
                self._client = None


class ModelMonitor:
    """A monitor's session, as ``panicd.qemu.monitor.Monitor`` is one."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine
        self._closed = trio.Event()
        self.events = EventOutlet()
        self.pace = Pace()
        self.version: Version = world.profile.version
        self.package: str = world.profile.package

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float
    ) -> object:
        (answer,) = await self.execute_all([(command, arguments or {})], timeout=timeout)
        if isinstance(answer, MonitorError):
            raise answer
        return answer

    async def execute_all(self, commands: Sequence[Command], *, timeout: float) -> list[object]:
        if self._closed.is_set():
            await trio.lowlevel.checkpoint()
            return [SessionLostError("not sent, the session has ended") for _ in commands]
        fault = None
        for name, _ in commands:
            if not name.startswith(("query-", "qom-", "set-action", FOLLOWS)):
                self._world.may(name)
                if self._world.fault is not None and self._world.fault.command in {"", name}:
                    fault, self._world.fault = self._world.fault, None
        exchange = _Exchange()
        self._world._nursery.start_soon(self._serve, commands, exchange, fault or Fault())
        with trio.move_on_after(timeout):
            await exchange.over.wait()
        if exchange.answers is not None:
            return exchange.answers
        error = SessionLostError if self._closed.is_set() else NoReplyError
        return [error("no answer") for _ in commands]

    def ask(
        self, commands: Sequence[Command], done: Callable[[list[object]], None], *, timeout: float
    ) -> ModelQuestion:
        question = ModelQuestion(done)

        async def ask() -> None:
            answers = await self.execute_all(commands, timeout=timeout)
            question.finish(answers)

        self._world._nursery.start_soon(ask)
        return question

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return self._closed.is_set()

    def abort(self) -> None:
        """End the session at once."""
        self.close()

    def close(self) -> None:
        """The connection ends, at either end."""
        self.events.close()
        self._closed.set()

    async def _serve(self, commands: Sequence[Command], exchange: _Exchange, fault: Fault) -> None:
        self._world.in_flight += 1
        await trio.sleep(LATENCY)
        if fault.cut_before:
            self._world.disconnect()
        answers: list[object] = []
        for name, arguments in commands:
            # What has been sent is carried out, though its sender be gone, unless it is lost.
            if fault.cut_before or self._world.machine is not self._machine:
                break
            try:
                answers.append(self._world.carry_out(self._machine, name, arguments))
                if self._machine.dump is not None and not self._machine.dump.detached:
                    await self._world.write_dump(self._machine)
            except MachineError as error:
                answers.append(CommandError(error.error_class, error.desc))
        self._world.in_flight -= 1
        self._world.dealt_with.unpark_all()
        if fault.cut_after:
            self._world.disconnect()
        if fault.reply_lost:
            self._world.interruptions += 1
        with trio.move_on_after(math.inf if fault.reply_lost else LATENCY):
            await self._closed.wait()
        if not self._closed.is_set() and len(answers) == len(commands):
            exchange.answers = answers
        exchange.over.set()


class ModelQuestion:
    """Commands that are to be answered, as ``panicd.qemu.monitor.Question`` is one."""

    def __init__(self, done: Callable[[list[object]], None]) -> None:
        self._done: Callable[[list[object]], None] | None = done

    @property
    def is_over(self) -> bool:
        return self._done is None

    def finish(self, answers: list[object]) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answers)

    def give_up(self) -> None:
        self.finish([NoReplyError("no answer")])


class _Exchange:
    def __init__(self) -> None:
        self.answers: list[object] | None = None
        self.over = trio.Event()


def _identities(world: World) -> type[ProcessIdentity]:
    class Identity(ProcessIdentity):
        """A QEMU of this world, which tells whether it has ended."""

        async def wait_ended(self) -> None:
            await trio.lowlevel.checkpoint()
            if str(self) == str(world.identity()):
                await world.ended.wait()

    return Identity
