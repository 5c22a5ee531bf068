"""panicd on a world: its supervisor, and what a connector would do, in virtual time."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import trio
from prometheus_client import CollectorRegistry

from panicd.config.config import Config
from panicd.dumps.coredump import DumpFailure
from panicd.dumps.queue import DumpQueue
from panicd.evidence.bundle_writer import BundleWriter
from panicd.evidence.retention import BundleRetention
from panicd.fleet.backoff import FIRST_RETRY, LAST_RETRY
from panicd.fleet.connector import LASTING
from panicd.host.metrics import Metrics
from panicd.host.priority import Priority
from panicd.host.problems import Problems
from panicd.host.timers import Timers
from panicd.incident.adoption import take_up_orphans
from panicd.incident.domains import Domain, Fleet
from panicd.incident.driver import Driver
from panicd.incident.rush import Rush
from panicd.incident.services import Services
from panicd.incident.storm import StormWatch
from panicd.incident.waiting import WaitingRoom
from panicd.journal.chronicle import Chronicle, Keeping
from panicd.journal.counters import Counters
from panicd.journal.journal import Journal, JournalError
from panicd.journal.totals import ForeignAction, Totals
from panicd.libvirt.known_domains import Libvirt
from panicd.qemu.monitor import Monitor, MonitorError
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from panicd.rules.incident import Source
from panicd.rules.on_crash import Action
from panicd.rules.operation import Holds
from panicd.rules.policy import FALLBACK_REASONS
from panicd.rules.settings import JournalFailure, Policy
from tests.model.clock import LATENCY, now
from tests.model.world import World

ADDRESS: Final = "/vm.qmp"


class Life:
    """panicd, from a start to its death, on one world."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world = world
        self._policy = policy
        self.fleet = Fleet()
        self.holds = Holds(world.journal.operations)
        self.driver: Driver | None = None
        self.services: Services

    async def run(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self.services = self._services(nursery)
            nursery.start_soon(self.services.timers.run)
            nursery.start_soon(take_up_orphans, self.services)
            while True:
                domain, retry = self.fleet.add(ADDRESS, "vm", now()), FIRST_RETRY
                while self.world.machine is not None:
                    began = now()
                    with suppress(MonitorError, JournalError):
                        await self._look_after(domain)
                    domain.problem = "lost"
                    retry = FIRST_RETRY if now() - began > LASTING else min(2 * retry, LAST_RETRY)
                    await trio.sleep(retry)
                self.fleet.remove(ADDRESS)
                await self.world.began.wait()

    @property
    def chronicles(self) -> list[Chronicle]:
        """The open incidents that it has in memory."""
        there = [domain.chronicle for domain in self.fleet.domains.values()]
        return [*filter(None, there), *self.services.waiting.chronicles]

    async def _look_after(self, domain: Domain) -> None:
        monitor = await self.world.connect()
        peer = ModelPeer(self.world)
        try:
            answers = await probe(cast("Monitor", monitor), None, timeout=5.0)
            session = Session.from_probe(cast("Monitor", monitor), cast("Peer", peer), answers)
            self.fleet.identify(domain, session)
            domain.problem = ""
            self.driver = Driver(self.services, domain, cast("Peer", peer))
            await self.driver.look_after(session)
        finally:
            self.driver = None
            monitor.close()

    def _services(self, nursery: trio.Nursery) -> Services:
        world = self.world
        config = Config((), None, Path("/state"), Path("/control"), self._policy, storm=None)
        metrics = Metrics(
            CollectorRegistry(),
            version="",
            sources=Source,
            actions=Action,
            reasons=FALLBACK_REASONS,
            foreign_actions=ForeignAction,
            dump_failure_reasons=DumpFailure,
            domains=list,
            coredump_free_bytes=lambda: None,
        )
        journal = cast("Journal", world.journal.opened())
        counters = Counters(metrics, Totals({}, {}, {}, {}, {}, {}), world.journal.restarts())
        keeping = Keeping(journal, counters, now, lambda: JournalFailure.PRESERVE)
        waiting = WaitingRoom(nursery, now, self.fleet.has_returned)
        for incident in world.journal.incidents():
            if incident.is_open:
                waiting.park(Chronicle(incident.id, incident, keeping))
        timers = Timers()
        rush = Rush(timers)
        return Services(
            config=lambda: config,
            keeping=keeping,
            metrics=metrics,
            fleet=self.fleet,
            waiting=waiting,
            holds=self.holds,
            storm=StormWatch(lambda: None, dict),
            dumps=DumpQueue(1, now),
            bundles=BundleRetention(Path("/journal"), Path("/bundles"), lambda: False),
            bundle_writer=BundleWriter(timers, lambda: rush.goes_on),
            priority=Priority(),
            unrecorded=lambda: False,
            libvirt=Libvirt(lambda: None, dry_run=False),
            timers=timers,
            rush=rush,
            problems=Problems(),
            dry_run=False,
        )


class ModelPeer:
    """The QEMU at the other end, as ``panicd.qemu.process.Peer`` is one."""

    unknown_because = None
    uid = 0
    pid = 1

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended = world.ended
        self.identity = world.identity()

    def is_qemu(self) -> bool:
        return True

    def confirm(self) -> None:
        pass

    def beyond_signals(self, *, is_qemu: bool | None = None) -> str:  # noqa: ARG002 - as of a peer
        return ""

    def command_line(self) -> tuple[str, ...]:
        return ()

    def gone(self) -> bool:
        return self._ended.is_set()

    async def wait_gone(self) -> None:
        await self._ended.wait()

    async def exit_status(self, timeout: float) -> int | None:
        await trio.sleep(min(timeout, LATENCY))
        return None

    def send_signal(self, number: signal.Signals) -> bool:
        if self.gone():
            return False
        self._world.may(number.name)
        self._world.done.append(number.name)
        self._world.kill_qemu()
        return True
