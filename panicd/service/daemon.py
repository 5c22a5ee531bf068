"""The daemon: everything wired together, from start to stop."""

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio
from prometheus_client import CollectorRegistry

from panicd import __version__
from panicd.config.config import (
    ByLibvirt,
    Config,
    ConfigError,
    Dial,
    Found,
    Listen,
    Mistake,
    Monitor,
    load,
)
from panicd.dumps.coredump import DumpFailure
from panicd.dumps.directory import known_space
from panicd.dumps.queue import DumpQueue
from panicd.dumps.standby import Standby
from panicd.evidence.bundle_writer import BundleWriter
from panicd.evidence.retention import BundleRetention
from panicd.fleet.audit import count_exposed
from panicd.fleet.connector import Connector
from panicd.fleet.snapshot import (
    Outlook,
    domain_samples,
    hold_samples,
    incident_samples,
)
from panicd.host.domain_series import DomainSample
from panicd.host.garbage import look_through
from panicd.host.logs import dropped, get_logger, write_late
from panicd.host.metrics import SIGNATURES, Metrics
from panicd.host.priority import Priority
from panicd.host.problems import Problems
from panicd.host.sdnotify import ServiceManager
from panicd.host.timers import Timers
from panicd.host.wall_clock import WallClock
from panicd.incident.adoption import take_up_orphans
from panicd.incident.domains import Domain, Fleet
from panicd.incident.records import BUNDLES, JOURNAL, read_groups
from panicd.incident.rush import Rush
from panicd.incident.services import Services, bundle_directory
from panicd.incident.storm import StormWatch
from panicd.incident.waiting import WaitingRoom
from panicd.journal.chronicle import Keeping
from panicd.journal.counters import Counters
from panicd.journal.damaged import open_journal
from panicd.journal.intent_keeping import keep_intents, open_chronicles
from panicd.journal.journal import JournalDamagedError, JournalError
from panicd.journal.totals import ForeignAction
from panicd.libvirt.known_domains import Libvirt
from panicd.notify.notifier import Notifier
from panicd.qemu.monitor import event_loop, pulse
from panicd.qemu.threads import NoThreadError, needing_a_thread
from panicd.rules.incident import Incident, Source, State
from panicd.rules.on_crash import Action
from panicd.rules.operation import Holds
from panicd.rules.policy import FALLBACK_REASONS
from panicd.rules.settings import JournalFailure
from panicd.service import control
from panicd.service.api import Api
from panicd.service.counter import Counter
from panicd.service.operators import Operators
from panicd.service.programs import missing_programs
from panicd.web.http import serve_http
from panicd.web.page import Pages
from panicd.web.web import WebApp

AT_START_ONLY: Final = ("metrics_listen", "state_directory", "control_socket", "record_first")
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SWITCH_INTERVAL: Final = 0.0005  # seconds (sys.setswitchinterval)
LAST_WORDS: Final = 2.0  # seconds for writing the last entries at the end
PRUNE_EVERY: Final = 24 * 3600.0  # seconds
PULSE_EVERY: Final = 5.0  # seconds
WEDGED_AFTER: Final = 15.0  # seconds without a pulse after which /healthz says so


class Daemon:
    """One run of the daemon.

    Args:
        config_file: the configuration, read again on reload.
        config: as read from it.
        dry_run: decide and record, and do nothing to any VM.

    Raises:
        JournalError: the journal can't be opened; a damaged one is renamed instead.
    """

    def __init__(self, config_file: Path, config: Config, *, dry_run: bool) -> None:
        self._config_file = config_file
        self._config = config
        self._journal, self._damaged = open_journal(config.state_directory / JOURNAL)
        self._problems = Problems()
        self._notifier = Notifier(
            self._journal, lambda: self._config, time.time, self._problems, dry_run=dry_run
        )
        self._kept = keep_intents(config.control_socket, self._journal, config.record_first)
        self._fleet = Fleet()
        self._holds = Holds(self._journal.operations())
        self._priority = Priority()
        self._metrics = Metrics(
            CollectorRegistry(),
            version=__version__,
            sources=Source,
            actions=Action,
            reasons=FALLBACK_REASONS,
            foreign_actions=ForeignAction,
            dump_failure_reasons=DumpFailure,
            domains=self._domain_samples,
            coredump_free_bytes=self._coredump_free_bytes,
            exposed=self._exposed,
            incidents=lambda: incident_samples(self._incidents_open()),
            holds=lambda: hold_samples(Outlook.of(self._services)),
            log_dropped=lambda: dropped.total,
            give_way=self._priority.give_way,
        )
        self._counters = Counters(
            self._metrics, self._journal.totals(), self._journal.all_restarts()
        )
        for group in read_groups(self._journal.path, 0.0, SIGNATURES):
            self._metrics.note_signature(group.signature, group.last_at)
        self._storm = StormWatch(lambda: self._config.storm, self._fleet.count_by_owner)
        self._remember_storm()
        self._clock = WallClock(
            [self._holds.shift, self._counters.shift, self._storm.shift, _tell_clock_was_set]
        )
        self._metrics.journal_healthy.set_function(self._journal_healthy)
        self._libvirt = Libvirt(lambda: self._config.libvirt, dry_run=dry_run)
        self._metrics.coredump_usable.set_function(self._coredump_usable_bytes)
        self._metrics.incidents_open.set_function(lambda: len(self._incidents_open()))
        self._metrics.pulse_age.set_function(self._pulse_age)
        self._metrics.storm.set_function(lambda: self._storm.raged)
        self._metrics.problems.set_function(lambda: len(self._problems.blinding))
        self._metrics.guests_left_reset.set_function(
            lambda: sum(each.state is State.RESET for each in self._incidents_open())
        )
        self._standby = Standby()
        self._dumps = DumpQueue(config.coredumps_at_once, time.time, self._standby)
        self._dry_run = dry_run
        self._manager = ServiceManager.take(os.environ)
        self._monitors: dict[Monitor, trio.CancelScope] = {}
        self._reloading = trio.Lock()
        self._pulse_at = time.monotonic()
        self._started = False

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            ConfigError: panicd can't watch the monitors.
            ControlSocketError: panicd can't make the control socket.
            HttpBindError: panicd can't listen on the metrics address.
        """
        # A scrape renders in a thread of its own; with the default of 5 ms it would delay panics.
        sys.setswitchinterval(SWITCH_INTERVAL)
        intents = self._kept.intents or nullcontext()
        with intents, self._journal, self._standby, trio.open_signal_receiver(*SIGNALS) as signals:
            async with event_loop(), trio.open_nursery() as nursery:
                nursery.start_soon(write_late)
                self._services = services = self._make_services(nursery)
                nursery.start_soon(services.timers.run)
                nursery.start_soon(look_through, self._priority.quiet_for)
                nursery.start_soon(take_up_orphans, services)
                self._connector = Connector(services)
                self._libvirt.on_problem = _tell_libvirt_problem
                self._nursery = nursery
                operators = Operators(services, self._connector)
                self._libvirt.on_change = operators.look_anew
                api = Api(services, operators, self.reload)
                await nursery.start(
                    control.serve,
                    self._config.control_socket,
                    api.handle,
                    self._priority.give_way_async,
                    partial(self._problems.tell, f"control socket {self._config.control_socket}"),
                )
                counter = Counter(api.handle)
                nursery.start_soon(counter.serve)
                await nursery.start(self._serve_http, Pages(services, counter.ask))
                await self._start_monitors(self._config)
                self._loaded()
                nursery.start_soon(operators.run)
                nursery.start_soon(self._connector.see_mounts)
                nursery.start_soon(self._libvirt.run)
                nursery.start_soon(self._prune)
                nursery.start_soon(services.bundles.run)
                nursery.start_soon(self._notifier.run)
                nursery.start_soon(self._feed_watchdog)
                self._manager.notify(READY=1)
                self._started = True
                await self._until_told_to_stop(signals)
                self._manager.notify(STOPPING=1)
                nursery.cancel_scope.cancel()
            await self._write_the_rest(services.keeping)

    def _make_services(self, nursery: trio.Nursery) -> Services:
        """Make what the domains share, with the open incidents."""
        keeping = Keeping(
            self._journal, self._counters, self._clock, self._journal_failure, self._kept.intents
        )
        waiting = WaitingRoom(nursery, self._clock, self._fleet.has_returned)
        for chronicle in open_chronicles(self._journal, self._kept.unwritten, keeping):
            waiting.park(chronicle, is_resumed=True)
        timers = Timers()
        rush = Rush(timers)
        bundles = self._config.state_directory / BUNDLES
        return Services(
            config=lambda: self._config,
            keeping=keeping,
            metrics=self._metrics,
            fleet=self._fleet,
            waiting=waiting,
            holds=self._holds,
            storm=self._storm,
            dumps=self._dumps,
            bundles=BundleRetention(self._journal.path, bundles, lambda: rush.goes_on),
            bundle_writer=BundleWriter(timers, lambda: rush.goes_on),
            priority=self._priority,
            unrecorded=self._must_wait_out,
            libvirt=self._libvirt,
            timers=timers,
            rush=rush,
            problems=self._problems,
            dry_run=self._dry_run,
        )

    def _remember_storm(self) -> None:
        """Have a storm continue over a restart of the daemon."""
        if self._config.storm is None:
            return
        since = time.time() - self._config.storm.window
        try:
            recent = self._journal.incidents(since=since, limit=-1)[::-1]
        except JournalDamagedError as error:  # one that is closed: it costs no more than this
            get_logger().error("it is not known whether there was a storm", problem=str(error))
            return
        for incident in recent:
            self._storm.remember(incident.opened.domain_key, incident.opened.at)

    async def _write_the_rest(self, keeping: Keeping) -> None:
        """Write what waits when the daemon was told to stop: entries, then evidence."""
        with trio.move_on_after(LAST_WORDS):
            for chronicle in list(keeping.unwritten):
                with suppress(JournalError):  # reported where it is found
                    await chronicle.commit()
        with trio.move_on_after(LAST_WORDS):
            await self._services.bundle_writer.all_written()

    async def _prune(self) -> None:
        """Remove incidents and operations that are too old, once a day."""
        while True:
            before = time.time() - self._config.journal_keep
            try:
                removed = await self._journal.prune(before)
                with needing_a_thread():
                    for incident_id in removed:
                        directory = bundle_directory(self._config, incident_id)
                        await trio.to_thread.run_sync(partial(shutil.rmtree, directory, True))
                    await self._journal.prune_operations(before)
            except (JournalError, OSError) as error:
                get_logger().warning("old incidents could not be removed", problem=str(error))
            else:
                if removed:
                    get_logger().info("old incidents removed", count=len(removed))
            await trio.sleep(PRUNE_EVERY)

    def _incidents_open(self) -> list[Incident]:
        connected = [domain.chronicle for domain in list(self._fleet.domains.values())]
        every = (*connected, *self._services.waiting.chronicles)
        return [chronicle.incident for chronicle in every if chronicle is not None]

    def _journal_failure(self) -> JournalFailure:
        return self._config.journal_failure

    def _must_wait_out(self) -> bool:
        """Whether the journal was damaged, so that panicd does nothing destructive without it."""
        return self._journal_failure() is JournalFailure.PRESERVE and self._damaged.is_there

    def _journal_healthy(self) -> bool:
        return self._journal.fault is None and not self._damaged.is_there

    def _domain_samples(self) -> list[DomainSample]:
        waiting = self._services.waiting.chronicles
        return domain_samples(self._domains(), Outlook.of(self._services), waiting)

    def _exposed(self) -> dict[str, int]:
        return count_exposed(self._domains(), self._counters, self._holds, time.time())

    def _domains(self) -> Iterator[Domain]:
        """Yield all domains, for another thread than the event loop's."""
        return self._priority.in_turn(tuple(self._fleet.domains.values()))

    async def reload(self) -> list[str]:
        """Read the configuration again, and put all of it in force, or nothing.

        Returns:
            The changed keys that only take effect at the next start.

        Raises:
            ConfigError: it is bad, or its monitors can't be watched; the old one stays in force.
            NoThreadError: it can't be read now.
        """
        async with self._reloading:
            return await self._reload()

    async def _reload(self) -> list[str]:
        try:
            with needing_a_thread():
                config = await trio.to_thread.run_sync(load, self._config_file)
            await self._start_monitors(config)
        except ConfigError as error:
            self._metrics.config_last_reload_successful.set(0)
            for mistake in error.mistakes:
                get_logger().warning("configuration refused", mistake=str(mistake))
            raise
        later = [k for k in AT_START_ONLY if getattr(config, k) != getattr(self._config, k)]
        for key in later:
            get_logger().warning("takes effect at the next start", key=key)
        self._config = config
        self._dumps.allow(config.coredumps_at_once)
        self._loaded()
        self._notifier.reload()
        await self._connector.reload()
        self._libvirt.refresh_soon()
        return later

    def _loaded(self) -> None:
        for missing in missing_programs(self._config):
            get_logger().warning(
                "a program is missing",
                program=missing.program,
                wanted_by=missing.wanted_by,
                package=missing.package,
            )
        self._metrics.config_last_reload_successful.set(1)
        self._metrics.config_last_reload_success_timestamp.set(time.time())
        get_logger().info("configuration in force", file=str(self._config_file))

    async def _start_monitors(self, config: Config) -> None:
        """Begin with the configured monitors, all or none, and end with the others.

        Raises:
            ConfigError: panicd can't begin with some.
        """
        wanted = {*config.monitors, *([ByLibvirt()] if config.libvirt is not None else [])}
        new = {monitor: trio.CancelScope() for monitor in wanted - set(self._monitors)}
        for monitor, scope in new.items():
            try:
                await self._nursery.start(self._watch, monitor, scope)
            except OSError as error:
                for begun in new.values():
                    begun.cancel()
                mistake = Mistake(0, 0, "monitors", str(error), str(self._config_file))
                raise ConfigError([mistake]) from error
        self._monitors |= new
        for monitor in set(self._monitors) - wanted:
            self._monitors.pop(monitor).cancel()

    async def _watch(
        self,
        monitor: Monitor,
        scope: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with scope:
            match monitor:
                case Dial(glob=pattern):
                    await self._connector.dial(pattern, task_status=task_status)
                case Listen(path=path):
                    await self._connector.listen(path, task_status=task_status)
                case Found():
                    await self._connector.dial_found(task_status=task_status)
                case ByLibvirt():
                    await self._connector.by_libvirt.look_after(task_status=task_status)

    async def _serve_http(
        self, pages: Pages, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        address = self._config.metrics_listen
        if address is None:
            task_status.started()
            return
        app = WebApp(
            render=self._metrics.render,
            healthy=self._healthy,
            not_ready=self._not_ready,
            pages=pages.answer,
            web=lambda: self._config.web,
        )
        async with serve_http(*address, app) as server:
            get_logger().info("metrics are served", host=server.host, port=server.port)
            task_status.started()
            await trio.sleep_forever()

    def _healthy(self) -> bool:
        return self._pulse_age() < WEDGED_AFTER

    def _pulse_age(self) -> float:
        return time.monotonic() - self._pulse_at

    def _not_ready(self) -> list[str]:
        reasons = [] if self._started else ["the monitors are not yet watched"]
        if not self._healthy():
            reasons.append("the event loop does not turn")
        if not self._journal_healthy():
            reasons.append("the journal is not healthy")
        return reasons + self._problems.blinding

    async def _feed_watchdog(self) -> None:
        """Tell systemd that both event loops still turn, for as long as they do."""
        interval = min(PULSE_EVERY, self._manager.watchdog_interval() or PULSE_EVERY)
        while True:
            await pulse()
            self._pulse_at = time.monotonic()
            self._storm.rages(self._clock())  # for the metric: nobody else sees it end
            self._manager.notify(WATCHDOG=1, STATUS=self._summary())
            await trio.sleep(interval)

    def _summary(self) -> str:
        """Return how the domains stand, for ``systemctl status``."""
        domains = self._fleet.domains.values()
        panicked = sum(domain.chronicle is not None for domain in domains)
        away = sum(domain.session is None for domain in domains)
        silent = sum(domain.is_silent for domain in domains)
        problems = "".join(f"; {problem}" for problem in self._problems.current[:1])
        told = f"{len(domains)} domains, {panicked} panicked, {away} not connected, {silent} silent"
        return told + problems

    async def _until_told_to_stop(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                get_logger().info("stopping", signal=signal.Signals(number).name)
                return
            try:
                with suppress(ConfigError):  # reported and counted where it is found
                    await self.reload()
            except NoThreadError as error:
                get_logger().warning("the configuration was not read", problem=str(error))

    def _coredump_free_bytes(self) -> int | None:
        there = known_space(self._config.defaults.coredump.directory)
        return None if there is None else there.available

    def _coredump_usable_bytes(self) -> float:
        coredump = self._config.defaults.coredump
        there = known_space(coredump.directory)
        return math.nan if there is None else max(0, there.above(coredump.min_free))


def _tell_clock_was_set(seconds: float) -> None:
    get_logger().warning("the clock was set", by=round(seconds, 1))


def _tell_libvirt_problem(problem: str) -> None:
    if problem:
        get_logger().warning("libvirt does not answer", problem=problem)
    else:
        get_logger().info("libvirt answers again")
