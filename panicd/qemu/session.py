"""One connected VM: its monitor, its process, and its run state from events and answers.

A session follows events in order, as they are read, and hands each on at once to its ``listener``.
``observe`` waits for something to happen to the guest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from panicd.qemu.event_outlet import Heard
from panicd.qemu.exchange import Exchange
from panicd.qemu.monitor import Monitor
from panicd.qemu.probe import Probe
from panicd.qemu.process import Peer
from panicd.rules.capability import Capability
from panicd.rules.identity import Claim, Vouched
from panicd.rules.machine.answers import run_state_of
from panicd.rules.machine.vm import Vm, follow
from panicd.rules.qapi import DumpCompletedEvent, RunState

ANSWER_TIMEOUT: Final = 5.0  # seconds; under a flood of panics QEMU was seen to take 1.2

Listener = Callable[[Heard], None]


@dataclass(slots=True)
class Session:
    """A connection to one QEMU, from its greeting to its end.

    Attributes:
        monitor: the way to QEMU: a QMP monitor of panicd's own, or libvirt.
        peer: the process at the other end.
        claim: the name and the UUID that the VM says it has.
        vm: the known facts about the VM, kept up to date by its events.
        process_known: the peer is a QEMU, so its end is this QEMU's end; not so behind a proxy.
        beyond_signals: why a signal could not end QEMU if it hung; empty where it could.
        silent_since: since when QEMU has not answered, in seconds since the epoch; None: it does.
        dump: how the last dump ended, since ``forget_dump``.
    """

    monitor: Exchange
    peer: Peer
    claim: Claim
    vm: Vm
    process_known: bool
    beyond_signals: str
    silent_since: float | None = None
    dump: DumpCompletedEvent | None = None
    _listener: Listener | None = field(default=None, init=False)
    _told: list[trio.Event] = field(default_factory=list, init=False)

    @classmethod
    def from_probe(
        cls, monitor: Monitor, peer: Peer, answers: Probe, *, is_qemu: bool | None = None
    ) -> "Session":
        """Return the session of a VM that was just probed.

        Args:
            monitor: the way to it.
            peer: the process at the other end.
            answers: to the first questions.
            is_qemu: what ``Peer.is_qemu`` returned just now, where it was called.
        """
        known = peer.is_qemu() if is_qemu is None else is_qemu
        process = str(peer.identity) if known else ""
        vm = Vm(answers.run_state, answers.capability, process)
        claim = Claim(answers.name, answers.uuid)
        return cls(monitor, peer, claim, vm, known, peer.beyond_signals(is_qemu=known))

    def listen(self, listener: Listener | None, tell_end: Callable[[], None]) -> None:
        """Follow the events, and hand each on; earlier events go first.

        Args:
            listener: receives each event; None: nobody does.
            tell_end: called when the session has ended.
        """
        self._listener = listener

        def ended() -> None:
            tell_end()
            self._tell()

        self.monitor.events.hand_over(self._hear, ended)

    def leave(self) -> None:
        """Stop following events."""
        self._listener = None
        self.monitor.events.let_go()

    @property
    def qmp(self) -> Monitor:
        """Its QMP monitor, where it has one for panicd: see ``Capability.by_api``."""
        assert isinstance(self.monitor, Monitor)
        return self.monitor

    @property
    def run_state(self) -> RunState:
        """QEMU's run state, as last answered and kept up with the events since."""
        return self.vm.run_state

    @property
    def capability(self) -> Capability:
        """What this QEMU can do."""
        return self.vm.capability

    @property
    def process(self) -> str:
        """The identity of this QEMU process; empty where it is not known."""
        return self.vm.process

    def vouched(self, address: str, *, dials_in: bool) -> Vouched:
        """Return the facts about the connection that the host vouches for.

        Args:
            address: panicd's name for the connection; if panicd dialled it, the socket's path.
            dials_in: QEMU has connected to a socket of panicd's.
        """
        return Vouched(self.peer.uid, address, dials_in, self.peer.pid, self.process)

    @property
    def by_libvirt(self) -> bool:
        """True if libvirt runs this VM, or if the process's arguments can't be read."""
        arguments = self.peer.command_line() if self.process_known else ()
        return arguments is None or any("/libvirt/" in argument for argument in arguments)

    @property
    def ended(self) -> bool:
        """True once the connection is gone."""
        return self.monitor.events.ended

    def forget_dump(self) -> None:
        """Forget the last dump's end, to wait for a new dump's."""
        self.dump = None

    def nudge(self) -> None:
        """Make every ``observe`` check its condition again."""
        self._tell()

    async def observe(self, until: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition holds, the time is over, or the session ends.

        Args:
            until: the condition; checked after each event and each nudge.
            timeout: seconds.

        Returns:
            True if the condition holds.
        """
        with trio.move_on_after(timeout):
            while not until() and not self.ended:
                told = trio.Event()
                self._told.append(told)
                await told.wait()
        return until()

    async def query_status(self, timeout: float = ANSWER_TIMEOUT) -> RunState:
        """Ask QEMU for its run state.

        Raises:
            MonitorError: it did not answer.
        """
        answer = await self.execute("query-status", timeout=timeout)
        self.vm = replace(self.vm, run_state=run_state_of(answer))
        return self.run_state

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float = ANSWER_TIMEOUT,
    ) -> object:
        """Have QEMU carry out a command; see ``Monitor.execute``."""
        return await self.monitor.execute(command, arguments, timeout=timeout)

    def _hear(self, heard: Heard) -> None:
        if isinstance(heard.event, DumpCompletedEvent):
            self.dump = heard.event
        self.vm = follow(self.vm, heard.event)
        if self._listener is not None:
            self._listener(heard)
        if self._told:
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, []
        for each in told:
            each.set()
