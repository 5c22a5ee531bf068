"""The errands of one domain's machine: slow work that ends in one input.

A driver starts an errand, goes on, and feeds the result to its machine. Errands decide nothing.
"""

import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from panicd.dumps.coredump import DumpError, DumpFailure
from panicd.evidence.bundle import read_manifest
from panicd.incident.collecting import EvidenceKeeper
from panicd.incident.domains import Domain
from panicd.incident.outcome import finish
from panicd.incident.relaunch import relaunch_environment, run_relaunch
from panicd.incident.services import Services, bundle_directory
from panicd.libvirt import beside
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtRefusedError,
    LibvirtSilentError,
)
from panicd.qemu.process import Peer, PeerError
from panicd.qemu.session import Session
from panicd.qemu.threads import NoThreadError, in_thread
from panicd.rules.ending import Cause, cause_of_end
from panicd.rules.identity import owner_of
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.last_words import LastWords
from panicd.rules.machine import effects
from panicd.rules.machine.ending import GONE_FOLLOWS
from panicd.rules.machine.inputs import Departed, Finished, Gone, Heard, Told
from panicd.rules.machine.vm import Stand
from panicd.rules.qapi import GuestPanickedEvent, PanicAction, RunState
from panicd.rules.recovery import took_evidence

DISK_ANSWERS: Final = 2.0  # seconds
REAPED_FOLLOWS: Final = 0.2  # seconds from a process's end until its parent knows


class Errands:
    """Runs the errands of one domain.

    Args:
        services: shared by all domains.
        domain: the domain.
        peer: the process whose end is awaited, if there is one.

    Attributes:
        session: the domain's, if it has one.
        cause: why the session ended, as far as known.
    """

    def __init__(self, services: Services, domain: Domain, peer: Peer | None) -> None:
        self.session: Session | None = None
        self.cause = Cause.DISCONNECTED
        self._services = services
        self._domain = domain
        self._peer = peer
        self._evidence = EvidenceKeeper(services, domain)

    @property
    def _of_qemu(self) -> Session:
        assert self.session is not None
        return self.session

    async def claim_incident(self) -> None:
        """Take the incident that waits for this domain, and write its unwritten entries.

        Raises:
            JournalError: they can't be written.
        """
        domain, waiting = self._domain, self._services.waiting
        while chronicle := waiting.claim(self._of_qemu.process, domain):
            domain.chronicle = chronicle
            await chronicle.commit()
            if chronicle.incident.is_open:
                return
            domain.chronicle = None
            if not chronicle.is_written:
                waiting.hand_over(chronicle)

    async def what_was_lost(self) -> list[Heard]:
        """Ask for the run state if events were lost, and return the lost panics."""
        session = self._of_qemu
        events = session.monitor.events
        if not events.lost:
            return []
        state = await session.query_status()
        if not events.lost_panics:
            return []
        stopped = state is RunState.GUEST_PANICKED
        action = PanicAction.PAUSE if stopped else PanicAction.RUN
        return [Heard(GuestPanickedEvent(0.0, action), events.lost_panics)]

    async def evidence_is_lost(self) -> bool:
        """True if evidence of the open incident was taken, and is known not to be on the disk."""
        chronicle = self._domain.chronicle
        if chronicle is None or not took_evidence(chronicle.incident):
            return False
        directory = bundle_directory(self._services.config(), chronicle.incident.id)
        with trio.move_on_after(DISK_ANSWERS), suppress(NoThreadError):
            await self._services.bundle_writer.written(directory)
            return await in_thread(partial(read_manifest, directory)) is None
        return False

    def collect(
        self, effect: effects.Collect, tell: Callable[[Finished], None]
    ) -> Awaitable[None] | None:
        """Take the panicked guest's evidence; ``tell`` gets the result when the plan may go on.

        Returns:
            The rest of it, for a task; None: it needs none.
        """

        def go_on(words: LastWords) -> None:
            result = StepResult(Outcome.DONE, words.line, words.signature)
            tell(Finished(effect.serial, result))

        return self._evidence.take(self._of_qemu, effect, go_on)

    async def dump(self, effect: effects.MakeDump) -> Finished:
        """Make a dump of the guest's memory."""
        session = self._of_qemu

        async def dump() -> StepResult:
            finished = await self._evidence.dump(session, effect.step)
            return StepResult(Outcome.DONE, str(finished.path))

        try:
            return await finish(effect.serial, dump)
        except DumpError as error:
            result = StepResult(Outcome.FAILED, str(error))
            return Finished(effect.serial, result, error.failure is DumpFailure.OVERTAKEN)

    async def relaunch(self, effect: effects.Relaunch) -> Finished:
        """Start the domain again as configured."""
        chronicle = self._domain.chronicle
        assert chronicle is not None
        incident = chronicle.incident
        environment, process = relaunch_environment(incident), incident.opened.process
        return Finished(effect.serial, await run_relaunch(effect.step, environment, process))

    def signal(self, effect: effects.SendSignal) -> Finished:
        """Send QEMU's process a signal."""
        assert self._peer is not None
        result = StepResult(Outcome.DONE)
        try:
            self._peer.send_signal(signal.Signals[effect.name])
        except PeerError as error:
            result = StepResult(Outcome.FAILED, str(error))
        return Finished(effect.serial, result)

    async def await_gone(self) -> Gone:
        """Wait until QEMU's process is gone."""
        assert self._peer is not None
        await self._peer.wait_gone()
        return Gone()

    async def tell_libvirt(self, effect: effects.TellLibvirt) -> Told:
        """Have libvirt act on its domain."""
        session = self._of_qemu
        domain = session.capability.libvirt
        assert domain is not None

        def known() -> Stand:
            return session.vm.stand

        try:
            client, verb = self._services.libvirt.client, effect.verb
            wanted, timeout = effect.wanted, effect.timeout
            await beside.act(client, domain, verb, wanted, known=known, timeout=timeout)
        except LibvirtAwayError as error:
            told = Told(effect.serial, "away", str(error))
        except LibvirtSilentError as error:
            told = Told(effect.serial, "silent", str(error))
        except LibvirtRefusedError as error:
            told = Told(effect.serial, "refused", str(error))
        else:
            told = Told(effect.serial, "done")
        return told

    async def take_turn(self, came: Callable[[], None], scope: trio.CancelScope) -> None:
        """Wait for a turn to act, call ``came``, and keep the turn until cancelled."""
        with scope:
            async with self._services.storm.turn(owner_of(self._domain.key)):
                came()
                await trio.sleep_forever()

    async def find_cause(self) -> Departed:
        """Find out why the session ended."""
        session = self._of_qemu
        vm, peer = session.vm, session.peer
        gone = await self._process_has_ended(session)
        known = gone and session.process_known
        status = await peer.exit_status(REAPED_FOLLOWS) if known else None
        self.cause = cause_of_end(vm.shutdown, gone, status)
        return Departed(gone, self.cause)

    async def _process_has_ended(self, session: Session) -> bool:
        if not session.process_known:  # only QEMU's own word is left
            return session.vm.shutdown is not None and not session.capability.no_shutdown
        with trio.move_on_after(GONE_FOLLOWS):
            await session.peer.wait_gone()
        return session.peer.gone()
