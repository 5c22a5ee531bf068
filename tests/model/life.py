"""panicd on a world: its supervisor, and what a connector would do, in virtual time."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import trio
from prometheus_client import CollectorRegistry

from panicd.bundle_keeper import BundleKeeper
from panicd.chronicle import Chronicle, Keeping
from panicd.connector import FIRST_RETRY, LAST_RETRY, LASTING
from panicd.dump_queue import DumpQueue
from panicd.fleet import Domain, Fleet
from panicd.host.config import Config
from panicd.host.journal import Journal, JournalError
from panicd.host.journal_totals import ForeignAction, Totals
from panicd.host.metrics import Metrics
from panicd.libvirt import Libvirt
from panicd.orphans import take_up_orphans
from panicd.problems import Problems
from panicd.qemu.coredump import DumpFailure
from panicd.qemu.monitor import Monitor, MonitorError
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from panicd.right_of_way import RightOfWay
from panicd.rules.incident import Source
from panicd.rules.on_crash import Action
from panicd.rules.operation import Holds
from panicd.rules.policy import FALLBACK_REASONS
from panicd.rules.settings import JournalFailure, Policy
from panicd.services import Services
from panicd.storm_breaker import StormBreaker
from panicd.supervisor import Supervisor
from panicd.tally import Tally
from panicd.waiting import WaitingRoom
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
        self.supervisor: Supervisor | None = None
        self.services: Services

    async def run(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self.services = self._services(nursery)
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
        supervisor = Supervisor(self.services, domain)
        try:
            answers = await probe(cast("Monitor", monitor), None, timeout=5.0)
            session = Session.from_probe(
                cast("Monitor", monitor), cast("Peer", peer), answers, supervisor.listen
            )
            self.fleet.identify(domain, session)
            domain.problem = ""
            self.supervisor = supervisor
            await supervisor.run(session)
        finally:
            self.supervisor = None
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
        journal = cast("Journal", world.journal)
        tally = Tally(metrics, Totals({}, {}, {}, {}, {}, {}), world.journal.restarts())
        keeping = Keeping(journal, tally, now, lambda: JournalFailure.PRESERVE)
        waiting = WaitingRoom(nursery, now, self.fleet.has_returned)
        for incident in world.journal.incidents():
            if incident.is_open:
                waiting.park(Chronicle(incident, keeping))
        return Services(
            config=lambda: config,
            keeping=keeping,
            metrics=metrics,
            fleet=self.fleet,
            waiting=waiting,
            holds=self.holds,
            storm=StormBreaker(lambda: None, dict),
            dumps=DumpQueue(1, now),
            bundles=BundleKeeper(Path("/journal"), Path("/bundles")),
            way=RightOfWay(),
            unrecorded=lambda: False,
            libvirt=Libvirt(lambda: None, dry_run=False),
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

    def beyond_signals(self) -> str:
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
