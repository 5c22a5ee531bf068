"""The libvirt of this host: its domains as they start and end, and what it says of each, in memory.

Nothing here stands between a panic and its decision. panicd lists the domains when it connects, and
after that libvirt's events tell of them. panicd asks for a domain's description at its start, and
again by a slow timer. While libvirtd is away or silent, the last description holds.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from panicd.host.logs import get_logger
from panicd.host.timers import Timers
from panicd.libvirt import requests
from panicd.libvirt.beside import names_monitor
from panicd.libvirt.client import Client, Standing
from panicd.libvirt.domain_monitor import ENDED, DomainMonitor
from panicd.libvirt.domain_process import DomainProcess
from panicd.libvirt.errors import ErrorCode, LibvirtAwayError, LibvirtError, LibvirtRefusedError
from panicd.libvirt.protocol import (
    DomainRef,
    Event,
    EventKind,
    Lifecycle,
    MetadataChanged,
    QemuEvent,
    Rebooted,
)
from panicd.libvirt.qmp_words import QEMU_EVENTS
from panicd.libvirt.takeover import give_back, give_back_all, take_over
from panicd.qemu.process_identity import ProcessIdentity
from panicd.rules.identity import parse_uuid
from panicd.rules.libvirt import (
    METADATA_URI,
    LibvirtDomain,
    UnreadableXMLError,
    parse_domain,
)
from panicd.rules.libvirt_place import UnusableUriError
from panicd.rules.settings import LibvirtSettings, OnStop

KNOWN_WITHIN: Final = 2.0  # seconds that a newly connected domain waits for its policy
ANSWERS_WITHIN: Final = 5.0  # seconds; what libvirtd answers by itself takes milliseconds
LISTED_WITHIN: Final = 30.0  # seconds
REFRESH_EVERY: Final = 300.0  # seconds; no event tells that somebody has set ``<on_crash>``
RETRY_EVERY: Final = 5.0  # seconds
GIVEN_BACK_WITHIN: Final = 5.0  # seconds, for all domains, when panicd stops

_OF_STATE: Final = frozenset({"GUEST_PANICKED", "RESUME", "RESET"})


@dataclass(eq=False, slots=True)
class Start:
    """One start of a domain.

    Attributes:
        ref: which.
        monitor: the present or future session's way to it.
        domain: libvirt's description of it; None before that is known.
        was_taken_over: panicd has had libvirt preserve it in this start.
        process: the present session's.
        stays_panicked: its guest has panicked, and no event told of a reset or resume since.
        described: ``domain`` is known.
        moved: set when it ends, or panicd connects to libvirt anew; a new event then replaces this.
        ended: this start is over.
        is_current: an event or a list has named it since panicd connected. If not, its number may
            be an earlier libvirtd's; the present one numbers anew.
    """

    ref: DomainRef
    monitor: DomainMonitor
    domain: LibvirtDomain | None = None
    was_taken_over: bool = False
    process: DomainProcess | None = None
    stays_panicked: bool = False
    described: trio.Event = field(default_factory=trio.Event)
    moved: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    is_current: bool = True

    def move(self) -> None:
        """Wake all that wait for a change of this start."""
        self.moved.set()
        self.moved = trio.Event()


class Libvirt:
    """The libvirt of this host, if one is configured.

    Args:
        settings: returns libvirt's settings; None: no libvirt.
        dry_run: panicd changes nothing.

    Attributes:
        problem: why libvirt does not answer; empty if it does, or was not asked.
        on_change: called when a domain has changed.
        on_problem: called with ``problem`` when it has changed.
        on_appeared: called with each start of a domain, as it happens or when panicd finds it.
    """

    def __init__(self, settings: Callable[[], LibvirtSettings | None], *, dry_run: bool) -> None:
        self._settings = settings
        self._dry_run = dry_run
        self._uri = ""
        self._other_uri = trio.Event()
        self._client: Client | None = None
        self._timers = Timers()
        self._starts: dict[str, Start] = {}  # by UUID
        self._domains: dict[str, LibvirtDomain] = {}  # by monitor
        self._looked_after: set[str] = set()  # monitors
        self._dialled: dict[str, tuple[str, str]] = {}  # by monitor: UUID and process, as they say
        self._generation = 0
        self._wake = trio.Event()
        self._is_to_list = False
        self._stale: set[str] = set()
        self._told_of: set[str] = set()  # since they were listed last; UUIDs
        self._listed = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()
        self.problem = ""
        self.on_change: Callable[[], None] = lambda: None
        self.on_problem: Callable[[str], None] = lambda _problem: None
        self.on_appeared: Callable[[Start], None] = lambda _start: None

    # What is known.

    def known(self, monitor: str) -> LibvirtDomain | None:
        """Return the domain whose monitor this is; None if no domain is known to have it.

        Args:
            monitor: the path that panicd dialled, or ``address_of`` the domain.
        """
        return self._domains.get(monitor) if self._settings() is not None else None

    def start_of(self, uuid: str) -> Start | None:
        """Return a domain's present start, as far as panicd knows."""
        return self._starts.get(uuid)

    @property
    def uri(self) -> str:
        """The libvirt's URI."""
        return self._uri

    @property
    def client(self) -> Client:
        """The connections to libvirt.

        Raises:
            LibvirtAwayError: there are no connections.
        """
        if self._client is None:
            raise LibvirtAwayError(self.problem or "libvirt was not yet connected to")
        return self._client

    @property
    def running(self) -> list[Start]:
        """The starts of the domains that run."""
        return list(self._starts.values())

    @property
    def monitors(self) -> set[str]:
        """The monitors that domains have for panicd, one of each domain."""
        described = (start.domain for start in self._starts.values())
        return {domain.monitor_to_dial for domain in described if domain and domain.monitor_to_dial}

    async def changes(self) -> None:
        """Wait until a domain starts, is described or ends, or panicd connects anew."""
        await self._changed.park()

    async def describe(self, start: Start) -> LibvirtDomain:
        """Ask for a domain's description, and have libvirt preserve the domain, if configured.

        Raises:
            LibvirtError: libvirt does not say.
        """
        text = await self.client.call(requests.describe(start.ref), timeout=ANSWERS_WITHIN)
        try:
            domain = parse_domain(text)
        except UnreadableXMLError as error:  # of this domain alone: libvirt has answered
            raise LibvirtRefusedError(ErrorCode.XML_ERROR, str(error)) from error
        if domain.id != start.ref.id:
            raise LibvirtAwayError("it was started anew meanwhile")
        domain = await self._arrange(start, domain)
        before, start.domain = start.domain, domain
        if not start.described.is_set():
            start.described.set()
            await self._recognise(start)
            self._changed.unpark_all()
        if before not in {None, domain}:
            for monitor, known in self._domains.items():
                if known.uuid == domain.uuid:
                    self._domains[monitor] = domain
            self.on_change()
        return domain

    def look_after(self, monitor: str, domain: LibvirtDomain) -> None:
        """Note which domain a monitor belongs to."""
        self._domains[monitor] = domain
        self._looked_after.add(monitor)

    async def learn(self, uuid: str, monitor: str, process: str) -> None:
        """Find out about a domain to whose own monitor panicd just connected; wait, but briefly.

        The UUID only says which domain to ask about: any QEMU can claim another one's. The monitor
        is the domain's only if the domain's XML names it, and if the process there is the one that
        libvirt started, as far as both are known.

        Args:
            uuid: as its QEMU says; empty if nothing tells that libvirt runs it.
            monitor: the path that panicd dialled.
            process: at the other end (``ProcessIdentity``); empty if unknown.
        """
        self._domains.pop(monitor, None)
        if self._settings() is None or not parse_uuid(uuid):
            return
        self._dialled[monitor] = parse_uuid(uuid), process
        with trio.move_on_after(0.0 if self.problem else KNOWN_WITHIN):
            await self._listed.wait()
            while (start := self._starts.get(parse_uuid(uuid))) is None:
                await self._changed.park()
            with suppress(LibvirtError):
                await self.describe(start)
        start = self._starts.get(parse_uuid(uuid))
        if start is not None and start.domain is not None and monitor not in self._looked_after:
            await self._recognise(start)

    async def _recognise(self, start: Start) -> None:
        """Find a start's monitors among the dialled ones: a dial may precede the description."""
        for monitor, dialled in list(self._dialled.items()):
            uuid, process = dialled
            is_its = uuid == start.ref.uuid and await self._is_its(start, monitor, process)
            if is_its and start.domain and self._dialled.get(monitor) == dialled:
                self.look_after(monitor, start.domain)
                self.on_change()

    def forget(self, monitor: str) -> None:
        """Look after a domain no more; its description holds until the timer's turn."""
        self._dialled.pop(monitor, None)
        self._looked_after.discard(monitor)

    def refresh_soon(self) -> None:
        """Ask about every domain now, without waiting for the timer."""
        settings = self._settings()
        if (settings.uri if settings is not None else "") != self._uri:
            self._other_uri.set()
        self._is_to_list = True
        self._wake.set()
        for start in self._starts.values():
            start.move()  # panicd may look after it in another way now

    async def _is_its(self, start: Start, monitor: str, process: str) -> bool:
        assert start.domain is not None
        if not names_monitor(start.domain.monitors, monitor):
            return False
        its, known = await self.process_of(start), ProcessIdentity.parse(process)
        with its:
            alike = known is None or its.identity is None or its.identity == known
        if not alike:
            log = get_logger(monitor=monitor, domain=start.ref.name)
            log.warning("not treated as libvirt's", reason="another process answers there")
        return alike

    async def process_of(self, start: Start) -> DomainProcess:
        """Return the process of a domain's QEMU."""
        peer = self._client.peer if self._client is not None else None
        owner, libvirtd = (peer.uid, peer.pid) if peer is not None else (0, 0)
        return await DomainProcess.find(self._uri, start.ref, owner, libvirtd, os.environ)

    # Taking over, and giving back.

    async def _arrange(self, start: Start, domain: LibvirtDomain) -> LibvirtDomain:
        """Have libvirt preserve a panicked domain, or give the domain back, as configured."""
        settings = self._settings()
        if settings is None or self._dry_run:
            return domain
        try:
            if settings.take_over and domain.takeover:
                start.was_taken_over = True
                return await take_over(self.client, start.ref, domain)
            if not settings.take_over and domain.gives_back:
                return await give_back(self.client, start.ref, domain)
        except LibvirtError as error:
            get_logger(domain=domain.name).warning(
                "libvirt goes on as it does on this domain's panics", problem=str(error)
            )
        return domain

    # Being connected.

    async def run(self) -> None:
        """Stay connected, and keep the descriptions up to date, until cancelled."""
        while True:
            settings, self._other_uri = self._settings(), trio.Event()
            async with trio.open_nursery() as nursery:
                if settings is not None:
                    nursery.start_soon(self._be_connected, settings)
                await self._other_uri.wait()
                nursery.cancel_scope.cancel()

    async def _be_connected(self, settings: LibvirtSettings) -> None:
        self._uri, self._timers = settings.uri, Timers()
        try:
            client = Client(
                self._uri, heard=self._hear, changed=self._stand, qemu_events=QEMU_EVENTS
            )
        except UnusableUriError as error:
            self._note_problem(str(error))
            return
        self._client, self._generation = client, client.generation
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                nursery.start_soon(self._timers.run)
                await self._keep_listed()
        finally:
            self._client = None
            starts = self.running
            for start in starts:
                self._ended(start.ref.uuid, "panicd has left libvirt")
            if settings.on_stop is OnStop.RESTORE and not self._dry_run:
                with trio.move_on_after(GIVEN_BACK_WITHIN, shield=True):
                    taken = [(start.ref, start.domain) for start in starts if start.domain]
                    await give_back_all(settings.uri, taken)

    def _stand(self, standing: Standing) -> None:
        """Note libvirt's standing."""
        assert self._client is not None
        if standing is Standing.UP and self._client.generation != self._generation:
            self._generation = self._client.generation
            for start in self._starts.values():
                start.stays_panicked = start.is_current = False  # events may have been missed
                self.renew(start)  # so that events from here on are kept
                start.move()
            self._is_to_list = True
            self._wake.set()
        elif standing is Standing.AWAY:
            for start in self._starts.values():
                start.monitor.end(f"libvirt is away: {self._client.problem}")
        if trio.current_effective_deadline() > -math.inf:  # else panicd itself leaves
            self._note_problem(self._client.problem)
        self._changed.unpark_all()

    async def _keep_listed(self) -> None:
        """List the domains when libvirt is connected, and describe them anew now and then."""
        due = trio.current_time()
        while True:
            with trio.move_on_at(due):
                await self._wake.wait()
            self._wake = trio.Event()
            if self.client.standing is not Standing.UP:
                due = trio.current_time() + RETRY_EVERY
                continue
            try:
                if self._is_to_list or trio.current_time() >= due:
                    self._is_to_list = False
                    await self._list()
                    due = trio.current_time() + REFRESH_EVERY
                await self._describe_stale()
            except LibvirtError as error:
                self._note_problem(str(error))
                self._is_to_list, due = True, trio.current_time() + RETRY_EVERY
            else:
                self._note_problem("")

    async def _list(self) -> None:
        """Learn which domains run: those that have panicked first.

        Raises:
            LibvirtError: libvirt does not say.
        """
        self._told_of.clear()  # events from here on may be newer than the list
        listed = await self.client.call(requests.states(), timeout=LISTED_WITHIN)
        running = [(ref, state) for ref, state in listed if ref.id >= 0]
        for ref, _ in sorted(running, key=lambda each: not each[1].panicked):
            if ref.uuid not in self._told_of:
                self._started(ref)
        for uuid in set(self._starts) - {ref.uuid for ref, _ in running} - self._told_of:
            self._ended(uuid, ENDED)
        self._listed.set()
        for monitor in set(self._domains) - self._looked_after:
            del self._domains[monitor]
        self._stale |= {uuid for uuid, start in self._starts.items() if start.described.is_set()}

    async def _describe_stale(self) -> None:
        """Describe anew the domains that may have changed.

        Raises:
            LibvirtError: libvirt does not say.
        """
        while self._stale:
            start = self._starts.get(self._stale.pop())
            try:
                if start is not None:
                    await self.describe(start)
            except LibvirtRefusedError as error:  # it ends, most likely
                get_logger().debug("not described", problem=str(error))

    # What is heard.

    def _hear(self, event: Event) -> None:
        if isinstance(event, Lifecycle | Rebooted) and not self.client.tells_qemu_events:
            start = self._starts.get(event.domain.uuid)
            if start is not None and start.ref.id == event.domain.id:
                start.monitor.hear_libvirt(event)
        if event.domain.id >= 0 and self._is_over(event.domain):
            return
        self._told_of.add(event.domain.uuid)
        match event:
            case QemuEvent(domain=ref) if ref.id >= 0:  # a domain that is being ended has none
                start = self._started(ref)
                if event.name in _OF_STATE:
                    start.stays_panicked = event.name == "GUEST_PANICKED"
                start.monitor.hear(event)
            case Lifecycle(domain=ref, event=EventKind.STARTED):
                self._started(ref)
            case Lifecycle(domain=ref, event=EventKind.STOPPED):
                self._ended(ref.uuid, ENDED)
            case Lifecycle(domain=ref, event=EventKind.CRASHED) if ref.uuid in self._starts:
                start = self._starts[ref.uuid]
                start.monitor.taken_in(is_still=start.stays_panicked)
            case MetadataChanged(domain=ref, uri=uri) if uri == METADATA_URI:
                start = self._starts.get(ref.uuid)
                if start is not None and start.described.is_set():  # else panicd does it itself
                    self._stale.add(ref.uuid)
                    self._wake.set()
            case _:
                pass

    def _is_over(self, ref: DomainRef) -> bool:
        """Whether this start is earlier than the known one: numbers grow."""
        start = self._starts.get(ref.uuid)
        return start is not None and start.is_current and ref.id < start.ref.id

    def _started(self, ref: DomainRef) -> Start:
        """Take in a start of a domain, if it is a new one."""
        start = self._starts.get(ref.uuid)
        if start is not None and start.ref.id != ref.id:
            self._ended(ref.uuid, ENDED)
            start = None
        if start is None:
            start = Start(ref, self._new_monitor(ref))
            self._starts[ref.uuid] = start
            self.on_appeared(start)
            self._changed.unpark_all()
        start.is_current = True
        return start

    def _ended(self, uuid: str, why: str) -> None:
        start = self._starts.pop(uuid, None)
        if start is not None:
            if start.process is not None and why is ENDED:
                start.process.note_stopped()
            start.monitor.end(why)
            start.ended.set()
            start.move()
            self._changed.unpark_all()

    def renew(self, start: Start) -> None:
        """Make a new way to a start that runs, though its session has ended."""
        is_there = self._starts.get(start.ref.uuid) is start
        if is_there and start.monitor.events.ended and self.client.standing is Standing.UP:
            start.monitor = self._new_monitor(start.ref)

    def _new_monitor(self, ref: DomainRef) -> DomainMonitor:
        return DomainMonitor(self.client, ref, self._timers)

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.on_problem(problem)
