"""The daemon: everything wired together, from start to stop."""

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
from prometheus_client import CollectorRegistry

from panicd import __version__
from panicd.api import Api
from panicd.chronicle import Chronicle
from panicd.connector import Connector
from panicd.fleet import Fleet
from panicd.host import control
from panicd.host.config import Config, ConfigError, Dial, Listen, load
from panicd.host.http import build_app, serve_http
from panicd.host.journal import Journal
from panicd.host.logs import get_logger
from panicd.host.metrics import Metrics
from panicd.host.sdnotify import notify, watchdog_interval
from panicd.qemu.coredump import DumpFailure
from panicd.qemu.dump_directory import space
from panicd.qemu.monitor import event_loop, pulse
from panicd.rules.incident import Source
from panicd.rules.on_crash import Action
from panicd.rules.policy import FALLBACK_REASONS
from panicd.snapshot import domain_samples
from panicd.supervisor import Services
from panicd.tally import FOREIGN_ACTIONS, Tally
from panicd.waiting import WaitingRoom

JOURNAL: Final = "journal.sqlite3"
DUMPS_AT_ONCE: Final = 2
PULSE_EVERY: Final = 5.0  # seconds
WEDGED_AFTER: Final = 15.0  # seconds without a pulse after which /healthz says so


class Daemon:
    """One run of the daemon.

    Args:
        config_file: the configuration, read again on reload.
        config: as read from it.
    """

    def __init__(self, config_file: Path, config: Config) -> None:
        self._config_file = config_file
        self._config = config
        self._journal = Journal.open(config.state_directory / JOURNAL)
        self._fleet = Fleet()
        self._metrics = Metrics(
            CollectorRegistry(),
            version=__version__,
            sources=Source,
            actions=Action,
            reasons=FALLBACK_REASONS,
            foreign_actions=FOREIGN_ACTIONS.values(),
            dump_failure_reasons=DumpFailure,
            domains=lambda: domain_samples(self._fleet, self._tally, time.time()),
            coredump_free_bytes=self._coredump_free_bytes,
        )
        self._tally = Tally(self._metrics, self._journal.totals(), self._journal.all_restarts())
        self._monitors: dict[Dial | Listen, trio.CancelScope] = {}
        self._pulse_at = time.monotonic()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            ControlSocketError: the control socket can't be made.
            HttpBindError: the metrics address can't be listened on.
        """
        with self._journal:
            async with event_loop(), trio.open_nursery() as nursery:
                waiting = WaitingRoom(nursery, time.time)
                services = Services(
                    config=lambda: self._config,
                    journal=self._journal,
                    metrics=self._metrics,
                    fleet=self._fleet,
                    clock=time.time,
                    dumps=trio.CapacityLimiter(DUMPS_AT_ONCE),
                    tally=self._tally,
                    waiting=waiting,
                )
                for incident in self._journal.load_open():
                    waiting.park(Chronicle(incident, self._journal, self._tally, time.time))
                self._connector = Connector(services)
                self._nursery = nursery
                api = Api(services, self.reload)
                await nursery.start(control.serve, self._config.control_socket, api.handle)
                await nursery.start(self._serve_http)
                self._loaded()
                self._start_monitors()
                nursery.start_soon(self._feed_watchdog)
                notify(READY=1, STATUS=f"{len(self._config.monitors)} monitor sources")
                await self._until_told_to_stop()
                notify(STOPPING=1)
                nursery.cancel_scope.cancel()
            for chronicle in waiting.chronicles:
                await chronicle.commit()

    def reload(self) -> None:
        """Read the configuration anew, and put it in force, all or nothing.

        Raises:
            ConfigError: it is bad, and the old one stays in force.
        """
        try:
            config = load(self._config_file)
        except ConfigError as error:
            self._metrics.config_last_reload_successful.set(0)
            get_logger().error("configuration refused", mistakes=str(error))
            raise
        for key in ("metrics_listen", "state_directory", "control_socket"):
            if getattr(config, key) != getattr(self._config, key):
                get_logger().warning("takes effect at the next start", key=key)
        self._config = config
        self._loaded()
        self._start_monitors()
        self._connector.reload()

    def _loaded(self) -> None:
        self._metrics.config_last_reload_successful.set(1)
        self._metrics.config_last_reload_success_timestamp.set(time.time())
        get_logger().info("configuration in force", file=str(self._config_file))

    def _start_monitors(self) -> None:
        """Begin with the configured monitors, and end with those that no longer are."""
        wanted = set(self._config.monitors)
        for source in self._monitors.keys() - wanted:
            self._monitors.pop(source).cancel()
        for source in wanted - self._monitors.keys():
            self._monitors[source] = trio.CancelScope()
            self._nursery.start_soon(self._watch, source, self._monitors[source])

    async def _watch(self, source: Dial | Listen, scope: trio.CancelScope) -> None:
        with scope:
            match source:
                case Dial(glob=pattern):
                    await self._connector.dial(pattern)
                case Listen(path=path):
                    await self._connector.listen(path)

    async def _serve_http(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        address = self._config.metrics_listen
        if address is None:
            task_status.started()
            return
        app = build_app(render=self._metrics.render, healthy=self._healthy)
        async with serve_http(*address, app) as server:
            get_logger().info("metrics are served", host=server.host, port=server.port)
            task_status.started()
            await trio.sleep_forever()

    def _healthy(self) -> bool:
        return time.monotonic() - self._pulse_at < WEDGED_AFTER

    async def _feed_watchdog(self) -> None:
        """Say that both event loops still turn, for as long as they do."""
        interval = min(PULSE_EVERY, watchdog_interval() or PULSE_EVERY)
        while True:
            await pulse()
            self._pulse_at = time.monotonic()
            notify(WATCHDOG=1)
            await trio.sleep(interval)

    async def _until_told_to_stop(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number != signal.SIGHUP:
                    get_logger().info("stopping", signal=signal.Signals(number).name)
                    return
                with suppress(ConfigError):  # told of, and counted, where it is found
                    self.reload()

    def _coredump_free_bytes(self) -> int | None:
        directory = self._config.defaults.coredump.directory
        existing = next(p for p in (directory, *directory.parents) if p.exists())
        try:
            return space(existing).available
        except OSError:
            return None
