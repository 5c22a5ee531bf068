"""A daemon as its log, its journal and its control socket show it."""

from __future__ import annotations

import mmap
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from panicd.journal import database as journal_database
from panicd.journal.codec import decode
from panicd.journal.file import beside
from panicd.journal.intents import read_intents
from panicd.rules.incident import Incident
from panicd.rules.printable import escape
from panicd.service import control_client
from tests.parts.patience import patience
from tests.parts.wire import Message

TIME_LIMIT = 20.0
"""Seconds for everything inside one ``RunningDaemon.start``, unless it says otherwise."""

IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a tmpfs on any Linux, as /run is on a host

_NOTED = 60
"""How many of the last lines of the log are shown when a test fails."""


_DECISION = ("on_crash", "unrequested", "action", "reason", "relaunch")


@dataclass
class LoggedIncident:
    """One incident, as the log tells it.

    Attributes:
        id: The incident's.
        domain: The domain's name.
        source: ``event`` or ``reconciliation``; empty where another run of the daemon told it.
        decisions: ``(action, reason)`` of each; one that is made again stands there once.
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
    _decided: tuple[object, ...] = ()

    def take(self, line: Message) -> None:
        """Take in one line that has the incident's id."""
        match line["event"]:
            case "guest panicked":
                self.source = line["source"]
            case "decided":
                decided = tuple(map(line.get, _DECISION))
                if decided != self._decided:
                    self.decisions.append((line["action"], line["reason"]))
                self._decided = decided
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
        runtime: Where its control socket and its intents are: in memory, as /run is.
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
        self.runtime = Path(tempfile.mkdtemp(prefix="panicd-", dir=IN_MEMORY))
        weakref.finalize(self, shutil.rmtree, self.runtime, ignore_errors=True)  # if never started
        self.runtime.chmod(0o755)  # as /run/panicd has it: the socket's mode decides who may call
        self.log: list[Message] = []
        self.began = 0
        self._config: dict[str, Any] = {
            "monitors": [{"glob": str(directory / "*.qmp")}],
            "metrics": {"listen": "127.0.0.1:0"},
            "state_directory": str(directory / "state"),
            "control_socket": str(self.runtime / "control.sock"),
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
    def state_directory(self) -> Path:
        """Where its journal, its incidents and its dumps are."""
        return Path(self._config["state_directory"])

    @property
    def control_socket(self) -> Path:
        """Its control socket."""
        return Path(self._config["control_socket"])

    def write_config(self, **changed: Any) -> None:
        """Write its configuration file, with these sections changed."""
        self._config |= changed
        self.config_file.write_text(yaml.safe_dump(self._config))

    def journal(self) -> list[Incident]:
        """The incidents in its journal, in the order of their beginnings; then those intended."""
        intended = self._intended()
        path = self.state_directory / "journal.sqlite3"
        written = []
        if path.exists():
            with journal_database.reader(path) as database:
                written = journal_database.incidents(
                    database, domain=None, open_only=False, since=None, until=None, limit=-1
                )[::-1]
        known = {incident.id for incident in written}
        return [*written, *(each for each in intended if each.id not in known)]

    def _intended(self) -> list[Incident]:
        path = beside(self.control_socket, ".intents")
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory,
            ):
                left = read_intents(memory).values()
        except (OSError, ValueError):  # there is none, or it is just being made
            return []
        folded = (
            journal_database.fold(intent.incident_id, [*map(decode, intent.entries)])
            for intent in left
        )
        return [incident for incident in folded if incident is not None]

    def _remove_runtime(self) -> None:
        shutil.rmtree(self.runtime)

    # -- asking it

    async def call(self, command: str, **arguments: object) -> Any:
        """Ask it over its control socket.

        Raises:
            RefusedError: It refused.
            DaemonUnreachableError: It did not answer.
        """
        return await trio.to_thread.run_sync(
            control_client.call, self.control_socket, command, arguments, abandon_on_cancel=True
        )

    async def domain(self, name: str) -> Any:
        """What ``status`` says about one domain."""
        status = await self.call("status")
        (domain,) = [domain for domain in status["domains"] if domain["domain"] == name]
        return domain

    async def foreseen(self, name: str) -> tuple[str, str]:
        """Return what its panic would lead to now, and why; all that can be asked agree on it."""
        status, explained = await self.domain(name), await self.call("explain", domain=name)
        told = status["effective_on_crash"], status["reason"]
        assert told == (explained["plan"]["action"], explained["plan"]["reason"])
        return told

    async def exposures(self, name: str) -> dict[str, str]:
        """Why one domain could not be acted on; this machine may have QEMUs of others so named."""
        found = (await self.call("audit"))["exposed"]
        mine = (each for each in found if each["domain"] == name and each["pid"] is None)
        return next(({**each["reasons"]} for each in mine), {})

    async def metric(self, name: str, **labels: str) -> float | None:
        """Return the present value of one of its metrics; None where there is no such series."""
        served = await self.wait_log("metrics are served", since=self.began)
        text = await trio.to_thread.run_sync(scrape, served["host"], served["port"])
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
        """Wait until a condition on a domain in ``status`` is true. What changes it is logged."""
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
        """Wait until its journal says of an incident what its log says: the log comes first."""
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
        """Check that the journal says of each incident what the log says."""
        journal = {incident.id: incident for incident in self.journal()}
        for told in self.incidents():
            kept = journal.pop(told.id)
            ending = kept.closed.ending if kept.closed else ""
            assert (escape(kept.opened.domain), ending) == (told.domain, told.ending), told
            if told.id not in self._told_before:
                assert [(d.effective, d.reason) for d in kept.decisions] == told.decisions, told
        for before in self._told_before:
            journal.pop(before, None)
        assert not journal, "the log tells of every incident"

    def last_words(self) -> str:
        """The last lines that it logged, for a test that failed."""
        return "\n".join(["the daemon logged, at last:", *map(_in_words, self.log[-_NOTED:])])


def _in_words(line: Message) -> str:
    first = {key: line[key] for key in ("timestamp", "level", "event")}
    rest = " ".join(f"{key}={value!r}" for key, value in line.items() if key not in first)
    return f"{first['timestamp'][11:23]} {first['level']:7} {first['event']}  {rest}"


def scrape(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=patience(TIME_LIMIT)) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as answer:
            _, _, body = answer.read().partition(b"\r\n\r\n")
    return body.decode()
