"""One connected VM: its monitor, its process, and its run state as events and answers tell.

A session has one reader. Whoever waits for something to happen to the guest calls ``observe``,
which takes the events in their order, keeps the run state, and passes each on to the session's
``listener`` before it looks whether the awaited thing has come.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from panicd.qemu.event_buffer import Heard, Overflow
from panicd.qemu.monitor import Command, Monitor, NoReplyError, UncertainError
from panicd.qemu.probe import Probe, set_panic_action, work_in_progress
from panicd.qemu.process import Peer
from panicd.rules.capability import DETACHED_DUMP_SINCE, Capability, PanicSetting
from panicd.rules.identity import Claim, Vouched
from panicd.rules.qapi import (
    DumpCompletedEvent,
    Event,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)

ANSWER_TIMEOUT: Final = 5.0  # seconds; under a flood of panics QEMU was seen to take 1.2
BUSY_TIMEOUT: Final = 2.0  # seconds: an action waits for this answer, though not for ever

Listener = Callable[[Heard], Awaitable[None]]


async def confirm_peer(peer: Peer, monitor: Monitor) -> None:
    """See that the process that is taken for a monitor's peer is it; see ``Peer.confirm``.

    Raises:
        UncertainError: QEMU said nothing.
    """
    if not peer.is_certain:
        await monitor.execute("query-status", timeout=ANSWER_TIMEOUT)
    peer.confirm(monitor.answered_by)


@dataclass(slots=True)
class Seen:
    """How often each thing was seen in this session: what a step compares before and after."""

    resets: int = 0
    resumes: int = 0
    panics: int = 0
    overflows: int = 0  # of events: what happened to the guest may have gone unseen
    shutdown: ShutdownEvent | None = None
    dump: DumpCompletedEvent | None = None
    reset_by_guest: bool = False  # the last of them
    reset_since_panic: bool = False  # then it is no panicked guest, though 1.7 to 2.5 call it one

    def forget_dump(self) -> None:
        """Make ready to wait for the end of a new dump."""
        self.dump = None


@dataclass(slots=True)
class Session:
    """A connection to one QEMU, from its greeting to its end.

    Attributes:
        monitor: its QMP session.
        peer: the process at the other end.
        claim: the name and the UUID that the VM says it has.
        run_state: as last answered, kept up with the events since.
        capability: what this QEMU can do.
        process_known: the peer is a QEMU, so its end is this QEMU's end; not so behind a proxy.
        beyond_signals: why QEMU could not be ended by a signal if it hung; empty where it could.
        listener: told of every event, in order.
        seen: what was seen so far.
        silent_since: since when it has not answered, in seconds since the epoch; None: it does.
    """

    monitor: Monitor
    peer: Peer
    claim: Claim
    run_state: RunState
    capability: Capability
    process_known: bool
    beyond_signals: str
    listener: Listener
    seen: Seen = field(default_factory=Seen)
    silent_since: float | None = None
    _stop_means: RunState = field(default=RunState.PAUSED, init=False)

    @classmethod
    def from_probe(
        cls, monitor: Monitor, peer: Peer, answers: Probe, listener: Listener
    ) -> "Session":
        """Return the session of a VM that has just been asked what it is."""
        return cls(
            monitor,
            peer,
            Claim(answers.name, answers.uuid),
            answers.run_state,
            answers.capability,
            peer.is_qemu(),
            peer.beyond_signals(),
            listener,
        )

    @property
    def stops_by_panic(self) -> bool:
        """Whether a panic has stopped the guest, or is about to."""
        return RunState.GUEST_PANICKED in {self.run_state, self._stop_means}

    @property
    def process(self) -> str:
        """What tells this QEMU process from every other; empty where it is not known."""
        return str(self.peer.identity) if self.process_known else ""

    def vouched(self, address: str, *, dials_in: bool) -> Vouched:
        """Return what the host vouches for of the connection.

        Args:
            address: what panicd calls it; of a dialled one, the socket's path.
            dials_in: QEMU has connected to a socket of panicd's.
        """
        return Vouched(self.peer.uid, address, dials_in, self.peer.pid, self.process)

    @property
    def by_libvirt(self) -> bool:
        """Whether libvirt runs this VM; so too where the process's arguments can't be read."""
        arguments = self.peer.command_line() if self.process_known else ()
        return arguments is None or any("/libvirt/" in argument for argument in arguments)

    @property
    def ended(self) -> bool:
        """Whether the connection is gone and every event was taken."""
        return self.monitor.events.ended

    def has_gone(self) -> bool:
        """Tell whether QEMU is gone: its process, or where that is not known, what it said last."""
        if self.process_known:
            return self.peer.gone()
        return self.ended and self.seen.shutdown is not None

    async def observe(self, until: Callable[[], bool], timeout: float) -> bool:
        """Take events until something holds, the time is over, or the session ends.

        Returns:
            Whether ``until`` holds.
        """
        while not until() and await self.take_event():
            pass  # mostly so: what is waited for came with the answer, or before
        if until():
            return True
        with trio.move_on_after(timeout):
            while not until() and not self.ended:
                await self.next_event()
        return until()

    async def wait_event(self, timeout: float) -> bool:
        """Wait until there is an event to take, or a nudge; return whether there was, in time."""
        if timeout == math.inf:
            await self.monitor.events.wait()
            return True
        with trio.move_on_after(timeout) as limit:
            await self.monitor.events.wait()
        return not limit.cancelled_caught

    async def next_event(self) -> None:
        """Wait for one event, if need be, and take it; return at the session's end or a nudge too.

        Raises:
            MonitorError: events were lost, and QEMU did not say how it stands.
        """
        await self.monitor.events.wait()
        await self.take_event()

    def skip_event(self) -> None:
        """Take the next event, if there is one, without telling the listener."""
        entry = self.monitor.events.pop()
        if isinstance(entry, Heard):
            self._follow(entry.event)

    async def drain(self) -> None:
        """Take every event that is there already.

        Raises:
            MonitorError: as in ``next_event``.
        """
        while await self.take_event():
            pass

    async def take_event(self) -> bool:
        """Take the next event, if there is one; return whether there was.

        Raises:
            MonitorError: as in ``next_event``.
        """
        entry = self.monitor.events.pop()
        if isinstance(entry, Overflow):
            self.seen.overflows += 1
            self.seen.reset_since_panic = False  # for all that is known
            state = await self.query_status()
            if entry.panics:
                stopped = state is RunState.GUEST_PANICKED
                event = GuestPanickedEvent(0.0, PanicAction.PAUSE if stopped else PanicAction.RUN)
                self.seen.panics += entry.panics
                await self.listener(Heard(event, trio.current_time(), entry.panics))
        elif entry is not None:
            self._follow(entry.event)
            self.seen.panics += entry.count * isinstance(entry.event, GuestPanickedEvent)
            await self.listener(entry)
        return entry is not None

    async def query_status(self, timeout: float = ANSWER_TIMEOUT) -> RunState:
        """Ask QEMU for its run state.

        Raises:
            MonitorError: it did not answer.
        """
        self._learn_status(await self.execute("query-status", timeout=timeout))
        return self.run_state

    def _learn_status(self, answer: object) -> None:
        status = answer.get("status") if isinstance(answer, dict) else None
        self.run_state = RunState.parse(status)

    async def status_or_last(self) -> RunState:
        """Ask QEMU for its run state; return the last that is known where it does not answer.

        Raises:
            SessionLostError: the session has ended.
        """
        try:
            return await self.query_status(BUSY_TIMEOUT)
        except NoReplyError:
            return self.run_state

    async def busy_with(self) -> str:
        """Ask QEMU for what an action on the guest would cut off; empty where there is nothing.

        Its run state is asked after that, so it is that of a guest without such work, or with it.

        Raises:
            UncertainError: it did not answer.
        """
        questions: list[Command] = [("query-migrate", {}), ("query-block-jobs", {})]
        if self.capability.version >= DETACHED_DUMP_SINCE:
            questions.append(("query-dump", {}))
        questions.append(("query-status", {}))
        *answers, status = await self.monitor.execute_all(questions, timeout=BUSY_TIMEOUT)
        for answer in (*answers, status):
            if isinstance(answer, UncertainError):
                raise answer
        self._learn_status(status)
        return work_in_progress(*answers)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float = ANSWER_TIMEOUT,
    ) -> object:
        """Have QEMU carry out a command; see ``Monitor.execute``."""
        return await self.monitor.execute(command, arguments, timeout=timeout)

    async def set_panic_action(self, setting: PanicSetting) -> None:
        """Change what a panic does to the guest, where this QEMU lets it be changed.

        Raises:
            UncertainError: no answer came.
        """
        self.capability = await set_panic_action(
            self.monitor, self.capability, setting, timeout=ANSWER_TIMEOUT
        )

    @property
    def runs_on_panic(self) -> bool:
        """Whether panicd has told QEMU not to stop the guest on a panic."""
        return self.capability.panic_setting is PanicSetting.NONE

    def learn_reset_is_impossible(self) -> None:
        """Note that QEMU ends, or stays as it is, when it is told to reset."""
        self.capability = replace(self.capability, reboot_is_shutdown=True)

    def _follow(self, event: Event) -> None:
        match event:
            case GuestPanickedEvent(action=PanicAction.PAUSE):
                # The STOP that follows does not tell why; this does.
                self._stop_means = RunState.GUEST_PANICKED
                self.seen.reset_since_panic = False
            case StopEvent():
                self.run_state = self._stop_means
                self._stop_means = RunState.PAUSED
            case ResumeEvent():
                self.seen.resumes += 1
                self.run_state = RunState.RUNNING
            case ResetEvent(guest=guest):
                self.seen.resets += 1
                self.seen.reset_by_guest = guest
                self.seen.reset_since_panic = True
            case ShutdownEvent():
                self.seen.shutdown = event
            case DumpCompletedEvent():
                self.seen.dump = event
            case _:
                pass
