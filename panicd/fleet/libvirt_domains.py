"""Keeps a session by libvirt's API with each domain that has no monitor for panicd."""

from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import Final

import trio

from panicd.config.config import Dial, Found
from panicd.fleet.backoff import Backoff
from panicd.fleet.supervision import SpareError, note_absence, supervise
from panicd.host.logs import get_logger
from panicd.incident.domains import Domain
from panicd.incident.driver import Driver
from panicd.incident.services import Services
from panicd.journal.journal import JournalError
from panicd.libvirt import requests
from panicd.libvirt.domain_process import DomainProcess
from panicd.libvirt.errors import LibvirtError
from panicd.libvirt.known_domains import Start
from panicd.qemu.monitor import MonitorError
from panicd.qemu.session import Session
from panicd.rules.capability import UNKNOWN_VERSION, Capability, run_by_libvirt
from panicd.rules.identity import Claim
from panicd.rules.libvirt import LibvirtDomain, address_of
from panicd.rules.libvirt_state import run_state
from panicd.rules.machine.vm import Vm
from panicd.rules.qapi import RunState
from panicd.rules.settings import DumpFormat

ANSWERS_WITHIN: Final = 5.0  # seconds; it takes a few milliseconds
AT_ONCE: Final = 8  # domains that libvirt is asked about at a time
LASTING: Final = 10.0  # seconds of a session, after which its loss counts as a first failure
SETTLED_WITHIN: Final = 0.5
"""Seconds within which libvirt does what it does about a panic by itself; 4 ms were seen."""


class LibvirtDomains:
    """Keeps a session with each of libvirt's domains whose monitor panicd does not dial.

    Args:
        services: what drivers use.
        drivers: by the domain's address.
    """

    def __init__(self, services: Services, drivers: dict[str, Driver]) -> None:
        self._services = services
        self._drivers = drivers
        self._kept: set[str] = set()
        self._turns = trio.CapacityLimiter(AT_ONCE)

    async def look_after(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep those that exist and those that appear, until cancelled."""
        libvirt = self._services.libvirt

        def appeared(start: Start) -> None:
            if start.ref.uuid not in self._kept:
                self._kept.add(start.ref.uuid)
                nursery.start_soon(self._keep, start)

        try:
            async with trio.open_nursery() as nursery:
                libvirt.on_appeared = appeared
                for start in libvirt.running:
                    appeared(start)
                task_status.started()
                await trio.sleep_forever()
        finally:
            libvirt.on_appeared = lambda _start: None

    async def _keep(self, first: Start) -> None:
        """Keep one domain, again and again, for as long as it runs.

        At least once: it may have panicked, and libvirt may have ended it, before this begins.
        """
        libvirt, fleet, backoff = self._services.libvirt, self._services.fleet, Backoff()
        domain: Domain | None = None
        uuid = first.ref.uuid
        start: Start | None = first
        try:
            while start is not None:
                moved, began = start.moved, trio.current_time()
                if domain is None and not self._is_dialled(start.domain):
                    address, now = address_of(libvirt.uri, uuid), self._services.keeping.clock()
                    domain = fleet.add(address, start.ref.name, now)
                if domain is not None:
                    await self._try(domain, start)
                if self._is_dialled(start.domain):
                    if domain is not None:
                        fleet.remove(domain.address)
                        domain = None
                    await moved.wait()
                    start = libvirt.start_of(uuid)
                    continue
                if trio.current_time() - began > LASTING:
                    backoff.reset()
                with trio.move_on_after(backoff.next()):
                    await moved.wait()
                start = libvirt.start_of(uuid)
        finally:
            self._kept.discard(uuid)
            if domain is not None:
                fleet.remove(domain.address)

    def _is_dialled(self, domain: LibvirtDomain | None) -> bool:
        """Whether panicd dials a monitor of a domain, as far as is known."""
        if domain is None or not domain.monitors:
            return False
        ways = self._services.config().monitors
        patterns = [way.glob for way in ways if isinstance(way, Dial)]
        dialled = (PurePath(path).match(glob) for path in domain.monitors for glob in patterns)
        return (Found() in ways and bool(domain.monitor_to_dial)) or any(dialled)

    async def _try(self, domain: Domain, start: Start) -> None:
        """Keep a domain for one session; log why there is none, or why it ended."""
        spare_of = ""
        try:
            problem = await self._look_after(domain, start)
        except SpareError as error:
            problem, spare_of = str(error), error.name
        except (MonitorError, LibvirtError, OSError) as error:
            problem = str(error)
        except JournalError as error:
            problem = f"the journal can't be written: {error}"
        domain.spare_of = spare_of
        if problem and note_absence(domain, problem, self._services.keeping.clock()):
            log = get_logger(monitor=domain.address, domain=domain.name)
            log.warning("domain is not connected", reason=problem)

    async def _look_after(self, domain: Domain, start: Start) -> str:
        libvirt = self._services.libvirt
        libvirt.renew(start)
        monitor = start.monitor
        with await libvirt.process_of(start) as process:
            async with self._turns:
                described, state = await self._ask(start, process)
            if self._is_dialled(described):
                return ""
            libvirt.look_after(domain.address, described)
            start.process = process
            if libvirt.start_of(start.ref.uuid) is not start:
                process.note_stopped()
            vm = Vm(state, capability_of(described), process.token)
            claim = Claim(start.ref.name, start.ref.uuid)
            session = Session(monitor, process, claim, vm, True, process.beyond_signals())
            monitor.known = lambda: session.vm
            # Only this one panic was libvirt's to act on.
            end = partial(monitor.end, "libvirt leaves this domain's panics to panicd from now on")
            is_for_one = start.domain is not None and described.handling != start.domain.handling
            again = self._services.timers.after(LASTING, end) if is_for_one else None
            try:
                ended = await supervise(self._services, self._drivers, domain, session)
            finally:
                start.process = None
                if again is not None:
                    again.cancel()
        return monitor.problem or ended

    async def _ask(self, start: Start, process: DomainProcess) -> tuple[LibvirtDomain, RunState]:
        """Return what a domain is, and how its guest stands.

        Raises:
            LibvirtError: libvirt does not say.
        """
        libvirt, monitor = self._services.libvirt, start.monitor
        try:
            described = await libvirt.describe(start)
            if monitor.has_panicked:  # libvirt may have acted on that, or may be about to
                await trio.sleep(SETTLED_WITHIN)
            question = requests.state_of(start.ref)
            state = await libvirt.client.call(question, timeout=ANSWERS_WITHIN)
        except LibvirtError:
            with trio.move_on_after(SETTLED_WITHIN if monitor.has_panicked else 0.0):
                await start.ended.wait()
            if not (monitor.has_panicked and start.ended.is_set()):
                raise
            # It panicked before panicd could learn anything about it, and libvirt has ended it.
            ref = start.ref
            return start.domain or LibvirtDomain(ref.id, ref.name, ref.uuid), RunState.RUNNING
        # A guest that was reset without libvirt's knowledge is crashed for libvirt ever after.
        if state.panicked and not monitor.has_panicked and await process.guest_runs():
            get_logger(domain=start.ref.name).warning(
                "libvirt says 'crashed' of a guest that runs: 'virsh resume' corrects that"
            )
            monitor.is_called_crashed = True
            return described, RunState.RUNNING
        just_now = start.was_taken_over and bool(described.taken_from)
        if monitor.has_panicked and just_now and not state.panicked:
            # Too late: libvirt has acted on the panic.
            described = replace(described, handling=described.taken_from)
        return described, run_state(state.state, state.reason)


def capability_of(domain: LibvirtDomain) -> Capability:
    """Return what panicd can do with a domain by libvirt's API.

    libvirt starts every QEMU with ``-no-shutdown``, and decides itself what follows a panic. It
    does not tell the version of the running QEMU.
    """
    capability = Capability(
        UNKNOWN_VERSION,
        no_shutdown=True,
        reboot_is_shutdown=domain.ends_on_reset,
        dump_formats=(DumpFormat.ELF, DumpFormat.KDUMP_ZLIB),
        by_api=True,
    )
    return run_by_libvirt(capability, domain)
