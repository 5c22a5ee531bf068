"""A running daemon, as a test sees it: the real program, or the same inside the test's process.

What it does is known from its log, which is read as it is written: a test waits for an event in it
and never for time to pass::

    async with RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon:
        await daemon.wait_armed("vm")
        …
        incident = await daemon.wait_incident("vm", ending="destroyed")
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

import structlog
import trio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from panicd.daemon import Daemon
from panicd.host import control, journal_database, logs
from panicd.host.config import Config, load
from panicd.rules.incident import Incident
from tests.parts.background import background
from tests.parts.wire import Message

TIME_LIMIT = 20.0
"""Seconds for everything inside one ``RunningDaemon.start``, unless it says otherwise."""

_RECEIVE_SIZE = 64 * 1024

_NOTED = 60
"""So many of the last lines of the log are noted when a test fails."""


class DaemonEndedError(Exception):
    """The daemon ended though nobody told it to."""


@dataclass
class LoggedIncident:
    """One incident, as the log tells it.

    Attributes:
        id: The incident's.
        domain: The domain's name.
        source: ``event`` or ``reconciliation``; empty where another run of the daemon told it.
        decisions: ``(action, reason)`` of each.
        steps: ``(step, outcome)`` of each step that ended, over all plans.
        details: What was said about each of them.
        state: Where the incident stays open; empty: nowhere yet.
        ending: How it ended; empty: not yet.
    """

    id: str
    domain: str
    source: str = ""
    decisions: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    state: str = ""
    ending: str = ""

    def take(self, line: Message) -> None:
        """Take in one line that bears the incident's id."""
        match line["event"]:
            case "guest panicked":
                self.source = line["source"]
            case "decided":
                self.decisions.append((line["action"], line["reason"]))
                self.state = ""
            case "step ended":
                self.steps.append((line["step"], line["outcome"]))
                self.details.append(line["detail"])
            case "incident stays open":
                self.state = line["state"]
            case "incident closed":
                self.ending, self.state = line["ending"], ""


class ObservedDaemon:
    """What both daemons have in common: a configuration, a log, a control socket, a journal.

    Attributes:
        directory: Where its files are: ``panicd.yaml``, ``state``, and by default the monitors.
        log: Every line that it logged so far, over all its runs.
        began: Where in ``log`` its present run begins, for use as ``since``.
    """

    def __init__(
        self,
        directory: Path,
        defaults: Mapping[str, Any] | None = None,
        *,
        domains: list[dict[str, Any]] | None = None,
        **config: Any,
    ) -> None:
        """Write the configuration of a daemon.

        Args:
            directory: For its files and sockets; unless ``config`` says otherwise the monitors are
                ``directory/*.qmp``.
            defaults: The configuration's ``defaults``.
            domains: Its ``domains``.
            config: Further keys of it.
        """
        self.directory = directory
        self.log: list[Message] = []
        self.began = 0
        self._config: dict[str, Any] = {
            "monitors": [{"glob": str(directory / "*.qmp")}],
            "metrics": {"listen": "127.0.0.1:0"},
            "state_directory": str(directory / "state"),
            "control_socket": str(directory / "control.sock"),
            # What a plan's steps are is asserted in many places; evidence has tests of its own.
            "defaults": {"evidence": {"budget": "0s"}, **(defaults or {})},
            **({"domains": domains} if domains else {}),
            **config,
        }
        self._changed = trio.lowlevel.ParkingLot()
        self._told_before = {incident.id for incident in self.journal()}
        self.write_config()

    # -- its files

    @property
    def config_file(self) -> Path:
        """Its configuration file."""
        return self.directory / "panicd.yaml"

    @property
    def control_socket(self) -> Path:
        """Its control socket."""
        return Path(self._config["control_socket"])

    def write_config(self, **changed: Any) -> None:
        """Write its configuration file, with these sections changed."""
        self._config |= changed
        self.config_file.write_text(yaml.safe_dump(self._config))

    def journal(self) -> list[Incident]:
        """The incidents in its journal, in the order of their beginnings."""
        path = Path(self._config["state_directory"], "journal.sqlite3")
        if not path.exists():
            return []
        with journal_database.reader(path) as database:
            return journal_database.incidents(
                database, domain=None, open_only=False, since=None, until=None, limit=-1
            )[::-1]

    # -- asking it

    async def call(self, command: str, **arguments: object) -> Any:
        """Ask it over its control socket.

        Raises:
            RefusedError: It refused.
            DaemonUnreachableError: It did not answer.
        """
        return await trio.to_thread.run_sync(
            control.call, self.control_socket, command, arguments, abandon_on_cancel=True
        )

    async def domain(self, name: str) -> Any:
        """What ``status`` says about one domain."""
        status = await self.call("status")
        (domain,) = [domain for domain in status["domains"] if domain["domain"] == name]
        return domain

    async def metric(self, name: str, **labels: str) -> float | None:
        """Return the present value of one of its metrics; None where there is no such series."""
        served = await self.wait_log("metrics are served", since=self.began)
        text = await trio.to_thread.run_sync(_scrape, served["host"], served["port"])
        samples = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(samples) <= 1, f"{name}{labels} is not one series"
        return samples[0] if samples else None

    # -- seeing and waiting

    def mark(self) -> int:
        """The present point in the log, for use as ``since``."""
        return len(self.log)

    def logged(self, event: str, *, since: int = 0, **fields: object) -> list[Message]:
        """The lines of the log that say ``event``, with these fields."""
        wanted = {"event": event, **fields}
        return [line for line in self.log[since:] if wanted.items() <= line.items()]

    async def wait_log(
        self, event: str, *, since: int = 0, count: int = 1, **fields: object
    ) -> Message:
        """Wait until ``count`` lines say ``event``, with these fields; return the last of them."""
        await self._wait(lambda: len(self.logged(event, since=since, **fields)) >= count)
        return self.logged(event, since=since, **fields)[count - 1]

    async def wait_armed(self, domain: str, *, since: int = 0) -> Message:
        """Wait until a domain is connected and what a panic does to it is set."""
        return await self.wait_log("policy in force", domain=domain, since=since)

    async def wait_domain(self, name: str, holds: Callable[[Any], bool]) -> Any:
        """Wait until something holds of a domain in ``status``. What changes it is logged."""
        while True:
            mark = self.mark()
            status = await self.call("status")
            for domain in status["domains"]:
                if domain["domain"] == name and holds(domain):
                    return domain
            await self._wait_line(mark)

    def incidents(self, *, since: int = 0) -> list[LoggedIncident]:
        """The incidents that the log tells of, in the order of their beginnings."""
        found: dict[str, LoggedIncident] = {}
        for line in self.log[since:]:
            if "incident" in line and "domain" in line:
                incident = LoggedIncident(line["incident"], line["domain"])
                found.setdefault(incident.id, incident).take(line)
        return list(found.values())

    async def wait_incident(
        self, domain: str, *, state: str = "", ending: str = "", since: int = 0, count: int = 1
    ) -> LoggedIncident:
        """Wait until an incident of a domain stays open in a state, or ended so.

        Args:
            domain: The domain's name.
            state: ``preserved``, ``running-on`` or ``failed``; empty: it has ended.
            ending: How; empty: it has not.
            since: Take in the log from here on only.
            count: Wait for that many, and return the last of them.
        """

        def matching() -> list[LoggedIncident]:
            return [
                incident
                for incident in self.incidents(since=since)
                if (incident.domain, incident.state, incident.ending) == (domain, state, ending)
            ]

        await self._wait(lambda: len(matching()) >= count)
        return matching()[count - 1]

    async def wait_kept(self, incident: LoggedIncident) -> None:
        """Wait until its journal tells of an incident what its log does: that is told first."""
        wanted = incident.state or "closed"
        kept: dict[str, str] = {}
        while kept.get(incident.id) != wanted:
            told = await self.call("incidents", domain=incident.domain)
            kept = {one["id"]: one["state"] for one in told}

    # -- inside

    def _take(self, *lines: Message) -> None:
        self.log += lines
        self._changed.unpark_all()

    async def _wait_line(self, since: int) -> None:
        await self._wait(lambda: len(self.log) > since)

    async def _wait(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.park()

    def _check_journal(self) -> None:
        """Check that the journal tells of each incident what the log does."""
        journal = {incident.id: incident for incident in self.journal()}
        for told in self.incidents():
            kept = journal.pop(told.id)
            ending = kept.closed.ending if kept.closed else ""
            assert (kept.opened.domain, ending) == (told.domain, told.ending), told
            if told.id not in self._told_before:
                assert [(d.effective, d.reason) for d in kept.decisions] == told.decisions, told
        for before in self._told_before:
            journal.pop(before, None)
        assert not journal, "the log tells of every incident"

    def last_words(self) -> str:
        """The last lines that it logged, for a test that failed."""
        return "\n".join(["the daemon logged, at last:", *map(_in_words, self.log[-_NOTED:])])


class Process(Protocol):
    """What is made use of of a ``trio.Process``."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    @property
    def stderr(self) -> trio.abc.ReceiveStream | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, sig: signal.Signals) -> None: ...


class RunningDaemon(ObservedDaemon):
    """The real program, in a process of its own. Made by :meth:`start` and ended with it.

    It must leave as it should, without a traceback, and its journal must hold what its log told
    (after a :meth:`kill` the log may know more).

    Attributes:
        stray: Lines on its standard error that are no log: a crash's traceback.
    """

    def __init__(
        self, directory: Path, *arguments: Any, dry_run: bool = False, **keywords: Any
    ) -> None:
        """As :class:`ObservedDaemon`; ``dry_run``: with ``--dry-run``, at every start."""
        super().__init__(directory, *arguments, **keywords)
        self._options = ["--dry-run"] if dry_run else []
        self.stray: list[str] = []
        self._process: Process | None = None
        self._ready = False
        self._log_ended = trio.Event()
        self._killed = False
        self._end_expected = False
        self._nursery: trio.Nursery

    @classmethod
    @asynccontextmanager
    async def start(
        cls, directory: Path, *arguments: Any, time_limit: float = TIME_LIMIT, **keywords: Any
    ) -> AsyncIterator[Self]:
        """Start a daemon that is ready, and stop it in the end, if it still runs.

        Args:
            directory: As for :class:`ObservedDaemon`, and so are the others.
            arguments: These.
            time_limit: Seconds for everything inside.
            keywords: And these.
        """
        daemon = cls(directory, *arguments, **keywords)
        try:
            with trio.fail_after(time_limit):
                async with background() as daemon._nursery:
                    await daemon.start_again()
                    yield daemon
                    if daemon.running:
                        await daemon.terminate()
        except BaseException as error:
            error.add_note(daemon.last_words())
            raise
        finally:
            daemon._reap()
        if not daemon._killed:
            daemon._check_journal()

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it was started"
        return self._process.pid

    async def start_again(self) -> None:
        """Start it, with the state that its last run left, and wait until it says it is ready."""
        assert not self.running
        self._ready, self._end_expected, self._log_ended = False, False, trio.Event()
        self.began = len(self.log)
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            await manager.bind(str(path))
            self._process = await self._open_process(
                ["--config", str(self.config_file), "run", "--log-level", "debug", *self._options],
                {"NOTIFY_SOCKET": str(path)},
            )
            self._nursery.start_soon(self._read_log, self._process)
            while "READY=1" not in (await manager.recv(_RECEIVE_SIZE)).decode().splitlines():
                pass  # a status, perhaps; its end without being ready fails the test

    async def terminate(self) -> None:
        """Have it stop by SIGTERM, and see that it does so without a complaint."""
        self._send(signal.SIGTERM)
        assert await self.wait_exit() == 0, "the daemon's exit status"
        assert not self.stray, "\n".join(self.stray)
        assert not [line for line in self.log if "exception" in line], "a traceback was logged"

    async def kill(self) -> None:
        """End it by SIGKILL, and wait for its end."""
        self._killed = True
        self._send(signal.SIGKILL)
        await self.wait_exit()

    async def wait_exit(self) -> int:
        """Wait for its end, and for the last of its log; returns its exit status."""
        self._end_expected = True
        assert self._process is not None, "it was started"
        status = await self._process.wait()
        await self._log_ended.wait()
        return status

    def hang_up(self) -> None:
        """Send it SIGHUP."""
        self._send(signal.SIGHUP)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it in its tracks (SIGSTOP) while this lasts; what it is sent meanwhile, waits."""
        self._send(signal.SIGSTOP)
        try:
            yield
        finally:
            self._send(signal.SIGCONT)

    def last_words(self) -> str:
        """The last lines that it wrote, for a test that failed."""
        return "\n".join([super().last_words(), *self.stray])

    async def _open_process(self, arguments: list[str], environment: dict[str, str]) -> Process:
        return await trio.lowlevel.open_process(
            [sys.executable, "-m", "panicd", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None, "it was started"
        self._process.send_signal(number)

    async def _read_log(self, process: Process) -> None:
        pending = b""
        assert process.stderr is not None
        async with process.stderr as stream:
            while data := await stream.receive_some():
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._take_line(line.decode())
        await process.wait()
        self._log_ended.set()
        if not self._end_expected:
            raise DaemonEndedError(f"by itself, exit status {process.returncode}")

    def _take_line(self, line: str) -> None:
        try:
            self._take(json.loads(line))
        except ValueError:
            self.stray.append(line)

    def _reap(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            os.waitpid(self._process.pid, 0)


class DaemonInside(ObservedDaemon):
    """The daemon in the test's own process: started in milliseconds, and open to monkeypatches.

    Its limits: it is at the other end of its own monitors where the test fakes them, so nothing is
    to be tested on it that goes by process id; and signals are not its.
    """

    @classmethod
    @asynccontextmanager
    async def start(
        cls, directory: Path, *arguments: Any, time_limit: float = TIME_LIMIT, **keywords: Any
    ) -> AsyncIterator[Self]:
        """Run a daemon until this ends; arguments as for :meth:`RunningDaemon.start`."""
        daemon = cls(directory, *arguments, **keywords)
        try:
            with trio.fail_after(time_limit), daemon._logging(), _switch_interval_kept():
                inside = _StoppableDaemon(
                    daemon.config_file, load(daemon.config_file), dry_run=False
                )
                async with background() as nursery:
                    nursery.start_soon(inside.run_and_tell)
                    await daemon.wait_log("configuration in force")
                    yield daemon
                    inside.stop.set()
                    await inside.stopped.wait()
        except BaseException as error:
            error.add_note(daemon.last_words())
            raise
        daemon._check_journal()

    @contextmanager
    def _logging(self) -> Iterator[None]:
        before = structlog.get_config()
        processors = [structlog.processors.add_log_level, logs._clean_event, self._take_event]
        structlog.configure(processors=processors)
        try:
            yield
        finally:
            structlog.configure(**before)

    def _take_event(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        # What the program would write, and read back.
        line = json.loads(json.dumps({"timestamp": _now(), **event}, default=str))
        self._take(line)
        raise structlog.DropEvent


class _StoppableDaemon(Daemon):
    def __init__(self, config_file: Path, config: Config, *, dry_run: bool) -> None:
        super().__init__(config_file, config, dry_run=dry_run)
        self.stop, self.stopped = trio.Event(), trio.Event()

    async def run_and_tell(self) -> None:
        await self.run()
        self.stopped.set()

    async def _until_told_to_stop(self, _signals: AsyncIterator[int]) -> None:
        await self.stop.wait()


@contextmanager
def _switch_interval_kept() -> Iterator[None]:
    interval = sys.getswitchinterval()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _in_words(line: Message) -> str:
    first = {key: line[key] for key in ("timestamp", "level", "event")}
    rest = " ".join(f"{key}={value!r}" for key, value in line.items() if key not in first)
    return f"{first['timestamp'][11:23]} {first['level']:7} {first['event']}  {rest}"


def _scrape(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=TIME_LIMIT) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as answer:
            _, _, body = answer.read().partition(b"\r\n\r\n")
    return body.decode()
