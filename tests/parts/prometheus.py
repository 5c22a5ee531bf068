"""Prometheus and Alertmanager, as Debian has them, on unused ports of the loopback interface.

async with Alerting.start(directory, target="127.0.0.1:10077") as alerting:
    await alerting.wait_query('panicd_domain_up{domain="vm"} == 1')
    …
    notice = await alerting.wait_notice("PanicdDomainPanicked", domain="vm")
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import trio
import yaml

from tests.parts.background import background
from tests.parts.patience import patience

RULES = Path(__file__).parents[2] / "config/prometheus/panicd.rules.yaml"

_QUIET, _BUSY = 0.4, 1.0
"""Seconds between two scrapes, and between two evaluations of the rules: at least, and at most."""

EACH_AT_ONCE: dict[str, Any] = {
    "route": {
        "receiver": "webhook",
        "group_by": ["..."],
        "group_wait": "0s",
        "group_interval": "1s",
    },
    "receivers": [{"name": "webhook"}],
}
"""Alertmanager's configuration by default: each alert by itself, without delay."""

_LOOK_EVERY = 0.05  # seconds
_PROGRAMS = ("prometheus", "prometheus-alertmanager")


class MonitoringEndedError(Exception):
    """Prometheus or Alertmanager ended by itself; carries its last words."""


class QueryError(Exception):
    """Prometheus refused a query; the message says why."""


def missing_programs() -> str:
    """Name the programs that this machine lacks."""
    return ", ".join(program for program in _PROGRAMS if shutil.which(program) is None)


@dataclass(frozen=True)
class Notice:
    """One alert that came out of Alertmanager at the other end; ``at`` on trio's clock."""

    at: float
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]
    receiver: str = ""


@dataclass(frozen=True)
class Message:
    """What Alertmanager sent in one message: one page, or one mail."""

    receiver: str
    alerts: tuple[Notice, ...]


class Alerting:
    """Both programs, and Alertmanager's messages. Made by :meth:`start`.

    Attributes:
        notices: Every alert that came by webhook, in order.
        messages: The messages that they came in.
    """

    def __init__(self, directory: Path) -> None:
        self.notices: list[Notice] = []
        self.messages: list[Message] = []
        self._directory = directory
        self._interval = ""
        self._changed = trio.lowlevel.ParkingLot()
        self._prometheus, self._alertmanager = unused_port(), unused_port()

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *,
        target: str | Sequence[str],
        routing: dict[str, Any] | None = None,
        rules: str | None = None,
        interval: str = "",
    ) -> AsyncIterator[Self]:
        """Run both until this ends.

        Args:
            directory: For their files.
            target: The address that is scraped, or some.
            routing: A configuration of Alertmanager, whose receivers are replaced.
            rules: The alert rules; those that are shipped, by default.
            interval: Between two scrapes, and between two evaluations of the rules; empty: as
                short as the machine allows.
        """
        alerting = cls(directory)
        alerting._interval = interval
        async with background() as nursery:
            (webhook,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, alerting._take, [webhook])
            targets = [target] if isinstance(target, str) else list(target)
            (directory / "rules.yaml").write_text(rules or RULES.read_text(encoding="utf-8"))
            alerting._write_config(targets, webhook.socket.getsockname()[1], routing)
            alertmanager = [
                "prometheus-alertmanager",
                f"--config.file={directory}/alertmanager.yml",
                f"--storage.path={directory}/alertmanager",
                f"--web.listen-address=127.0.0.1:{alerting._alertmanager}",
                "--cluster.listen-address=",
            ]
            prometheus = [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/tsdb",
                f"--web.listen-address=127.0.0.1:{alerting._prometheus}",
            ]
            nursery.start_soon(alerting._run, alertmanager)
            nursery.start_soon(alerting._run, prometheus)
            await alerting._wait_ready(alerting._alertmanager)
            await alerting._wait_ready(alerting._prometheus)
            yield alerting

    async def query(self, expression: str) -> list[Any]:
        """Return the series that an expression has now.

        Raises:
            QueryError: Prometheus can't make sense of it.
        """
        return list((await self.api("query", query=expression))["result"])

    async def api(self, path: str, **arguments: str) -> Any:
        """Return an answer of Prometheus' HTTP API."""
        status, body = await self._get(self._prometheus, f"/api/v1/{path}?{urlencode(arguments)}")
        answer = json.loads(body)
        if status != http.client.OK:
            raise QueryError(f"{arguments}: {answer['error']}")
        return answer["data"]

    async def wait_query(self, expression: str) -> list[Any]:
        """Wait until an expression has a series."""
        while not (found := await self.query(expression)):
            await trio.lowlevel.checkpoint()
            await self._pause()
        return found

    async def alerts(self) -> list[dict[str, str]]:
        """Return the labels of the alerts that Alertmanager has."""
        _, body = await self._get(self._alertmanager, "/api/v2/alerts")
        return [alert["labels"] for alert in json.loads(body)]

    async def wait_notice(self, name: str, *, status: str = "firing", **labels: str) -> Notice:
        """Wait until an alert has come by webhook."""
        wanted = {"alertname": name, **labels}.items()
        while True:
            for notice in self.notices:
                if notice.status == status and wanted <= notice.labels.items():
                    return notice
            await self._changed.park()

    async def wait_message(self, receiver: str, name: str) -> Message:
        """Wait until a receiver was sent a message with an alert that fires."""
        while True:
            for message in self.messages:
                firing = {n.labels["alertname"] for n in message.alerts if n.status == "firing"}
                if message.receiver == receiver and name in firing:
                    return message
            await self._changed.park()

    def _write_config(
        self, targets: list[str], webhook: int, routing: dict[str, Any] | None
    ) -> None:
        interval = self._interval or f"{min(_BUSY, patience(_QUIET)) * 1000:.0f}ms"
        prometheus = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(self._directory / "rules.yaml")],
            "scrape_configs": [
                {"job_name": "panicd", "static_configs": [{"targets": targets}]},
            ],
            "alerting": {
                "alertmanagers": [
                    {"static_configs": [{"targets": [f"127.0.0.1:{self._alertmanager}"]}]}
                ]
            },
        }
        alertmanager = dict(routing or EACH_AT_ONCE)
        alertmanager["receivers"] = [
            {
                "name": receiver["name"],
                "webhook_configs": [{"url": f"http://127.0.0.1:{webhook}/"}],
            }
            for receiver in alertmanager["receivers"]
        ]
        for name, config in (("prometheus", prometheus), ("alertmanager", alertmanager)):
            (self._directory / f"{name}.yml").write_text(yaml.safe_dump(config))

    async def _run(self, command: list[str]) -> None:
        words = self._directory / f"{command[0]}.log"
        with words.open("wb") as log:
            await trio.run_process(
                command,
                stdout=subprocess.DEVNULL,
                stderr=log,
                check=False,
                env={**os.environ, "GOMAXPROCS": "1"},
            )
        raise MonitoringEndedError(words.read_text()[-2000:])

    async def _wait_ready(self, port: int) -> None:
        while True:
            try:
                status, _ = await self._get(port, "/-/ready")
            except ConnectionRefusedError:
                status = 0
            if status == http.client.OK:
                return
            await self._pause()

    async def _pause(self) -> None:
        """Wait a moment before the next look: neither program reports changes."""
        with trio.move_on_after(_LOOK_EVERY):
            await trio.Event().wait()

    async def _get(self, port: int, path: str) -> tuple[int, bytes]:
        return await trio.to_thread.run_sync(_get, port, path, abandon_on_cancel=True)

    async def _take(self, stream: trio.SocketStream) -> None:
        """Take one POST of Alertmanager's."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        head, _, body = data.partition(b"\r\n\r\n")
        (length,) = [
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        while len(body) < length:
            body += await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        sent, now = json.loads(body), trio.current_time()
        came = [
            Notice(now, one["status"], one["labels"], one["annotations"], sent["receiver"])
            for one in sent["alerts"]
        ]
        self.notices += came
        self.messages.append(Message(sent["receiver"], tuple(came)))
        self._changed.unpark_all()


def unused_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on, or is given meanwhile.

    A connection to it has just ended (TIME_WAIT), so the kernel gives it to nobody who wants any
    port; who names it and sets SO_REUSEADDR, as servers do, has it (tcp(7), socket(7)).
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()), server.accept()[0]:
            pass  # the server's end is closed first, and waits
        return int(server.getsockname()[1])


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(10))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
