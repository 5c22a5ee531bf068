"""The examples for Alertmanager: taken by it, and what its receivers get.

PANICD_TEST_ALERTMANAGER names another Alertmanager than the machine's own, with amtool beside it.
"""

from __future__ import annotations

import email.policy
import http.client
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.parts.background import background
from tests.parts.patience import fail_after, patience
from tests.parts.prometheus import RULES, unused_port
from tests.parts.receiver import Receiver, Told

GIVEN = os.environ.get("PANICD_TEST_ALERTMANAGER")
PROGRAM = GIVEN or shutil.which("prometheus-alertmanager")
TOOL = str(Path(GIVEN).with_name("amtool")) if GIVEN else "amtool"
DIRECTORY = RULES.parent
TIME_LIMIT = 60.0
HOSTILE = "<!channel> *db* [x](http://evil.example) & <b>"
ALERT = {
    "labels": {"alertname": "PanicdDomainAwaitsOperator", "severity": "critical", "job": "panicd",
               "instance": "h1:10077", "domain": HOSTILE},
    "annotations": {"summary": f"{HOSTILE} panicked and waits for somebody",
                    "description": f"{HOSTILE} has had an open panic incident at h1:10077.",
                    "runbook_url": "https://runbooks.example/panicd/X.md"},
}  # fmt: skip


def version() -> tuple[int, ...]:
    if PROGRAM is None:
        return ()
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)\.(\d+)", done.stdout + done.stderr)
    assert found is not None
    return tuple(map(int, found.groups()))


pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PROGRAM is None, reason="needs prometheus-alertmanager"),
]
needs_teams = pytest.mark.skipif(version() < (0, 28), reason="needs Alertmanager 0.28")
EXAMPLES = [
    "alertmanager.example.yml",
    pytest.param("alertmanager.teams.example.yml", marks=needs_teams),
]


def filled_in(directory: Path, example: str) -> Path:
    """Put an example's files in place below a directory; nothing waits for others there."""
    text = (DIRECTORY / example).read_text(encoding="utf-8")
    for secret in set(re.findall(r"_file: /etc/alertmanager/(\S+)", text)):
        (directory / secret).write_text("0123456789abcdef0123456789abcdef")
    shutil.copy(DIRECTORY / "panicd.tmpl", directory)
    path = directory / "alertmanager.yml"
    text = re.sub(r"group_wait: \S+", "group_wait: 0s", text)
    path.write_text(text.replace("/etc/alertmanager", str(directory)))
    return path


@pytest.mark.parametrize("example", EXAMPLES)
def test_amtool_is_content(tmp_path: Path, example: str) -> None:
    path = filled_in(tmp_path, example)
    done = subprocess.run(
        [TOOL, "check-config", path], capture_output=True, text=True, check=False,
        timeout=patience(60),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@asynccontextmanager
async def alertmanager(directory: Path, config: Path) -> AsyncIterator[int]:
    """Run it, with an alert that has just come; yields its port."""
    assert PROGRAM is not None
    port = unused_port()
    command = [
        PROGRAM,
        f"--config.file={config}",
        f"--storage.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with (directory / "log").open("wb") as log, fail_after(TIME_LIMIT):
        async with background() as nursery:
            process = await trio.lowlevel.open_process(command, stdout=log, stderr=log)
            try:
                while not await trio.to_thread.run_sync(post_alerts, port, [ALERT]):
                    with trio.move_on_after(0.05):
                        await trio.Event().wait()  # it does not tell when it listens
                yield port
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()


def post_alerts(port: int, alerts: list[dict[str, Any]]) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(10))
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/api/v2/alerts", json.dumps(alerts), headers)
        return connection.getresponse().status == http.client.OK
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


def sent_to(requests: list[Told], path: str) -> list[Any]:
    return [told.body for told in requests if told.target == path]


async def test_pagerduty_and_slack_are_told_what_there_is_to_do(tmp_path: Path) -> None:
    config = filled_in(tmp_path, "alertmanager.example.yml")
    async with Receiver.start() as receiver:
        base = f"http://127.0.0.1:{receiver.port}"
        (tmp_path / "slack-url").write_text(f"{base}/slack")
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("https://events.pagerduty.com/v2/enqueue", f"{base}/pd"))
        async with alertmanager(tmp_path, config):
            await receiver.wait(
                lambda told: bool(sent_to(told, "/pd")) and bool(sent_to(told, "/slack"))
            )
    (page,) = sent_to(receiver.requests, "/pd")
    assert page["routing_key"] == "0123456789abcdef0123456789abcdef"
    assert page["event_action"] == "trigger"
    assert page["client_url"] == "http://h1:10077/"
    payload = page["payload"]
    assert payload["severity"] == "critical"
    assert "PanicdDomainAwaitsOperator at h1:10077" in payload["summary"]
    assert payload["custom_details"]["runbook"] == ALERT["annotations"]["runbook_url"]
    assert HOSTILE in payload["custom_details"]["what"], "no markup: shown as it is"
    (message,) = sent_to(receiver.requests, "/slack")
    assert message["channel"] == "#on-call"
    (shown,) = message["attachments"]
    assert shown["title"] == "[FIRING 1] PanicdDomainAwaitsOperator at h1:10077"
    assert shown["title_link"] == ALERT["annotations"]["runbook_url"]
    assert "<!channel>" not in shown["text"]
    assert "&lt;!channel&gt; *db* [x](http://evil.example) &amp; &lt;b&gt;" in shown["text"]
    assert "<http://h1:10077/|the page of h1:10077>" in shown["text"]


class MailServer:
    """As much of SMTP (RFC 5321) as Alertmanager speaks."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []
        self.came = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # it may hang up as it likes
            await self._serve(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        buffered = b""

        async def line() -> bytes:
            nonlocal buffered
            while b"\r\n" not in buffered:
                received = await stream.receive_some()
                if not received:
                    raise trio.BrokenResourceError
                buffered += received
            first, _, buffered = buffered.partition(b"\r\n")
            return first

        await stream.send_all(b"220 here\r\n")
        while True:
            verb = (await line())[:4].upper()
            if verb == b"DATA":
                await stream.send_all(b"354 go on\r\n")
                mail = b""
                while (text := await line()) != b".":
                    mail += text + b"\r\n"
                self.mails.append(mail)
                self.came.set()
            await stream.send_all(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
            if verb == b"QUIT":
                return


async def test_a_mail_has_a_subject_and_no_markup_of_others(tmp_path: Path) -> None:
    config = filled_in(tmp_path, "alertmanager.example.yml")
    server = MailServer()
    async with background() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        text = config.read_text(encoding="utf-8")
        text = re.sub(r"\n +auth_\w+: .*", "", text).replace(
            "require_tls: true", "require_tls: false"
        )
        place = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        # What waits for the working day comes by mail.
        text = text.replace("mail.example.org:587", place).replace(
            "receiver: on-call", "receiver: tickets"
        )
        config.write_text(text)
        async with alertmanager(tmp_path, config):
            await server.came.wait()
    mail = message_from_bytes(server.mails[0], policy=email.policy.default)
    assert mail["Subject"] == "[FIRING 1] PanicdDomainAwaitsOperator at h1:10077"
    assert mail["To"] == "vm-team@example.org"
    body = mail.get_body(("html",))
    assert body is not None
    written = body.get_content()
    assert "&lt;!channel&gt;" in written
    assert "<!channel>" not in written
    assert "https://runbooks.example/panicd/X.md" in written


@needs_teams
async def test_teams_is_told_by_a_card(tmp_path: Path) -> None:
    config = filled_in(tmp_path, "alertmanager.teams.example.yml")
    async with Receiver.start() as receiver:
        (tmp_path / "teams-url").write_text(f"http://127.0.0.1:{receiver.port}/teams")
        async with alertmanager(tmp_path, config):
            await receiver.wait(lambda told: bool(sent_to(told, "/teams")))
    (message,) = sent_to(receiver.requests, "/teams")
    (attachment,) = message["attachments"]
    assert attachment["content"]["type"] == "AdaptiveCard"
    text = json.dumps(attachment["content"]["body"])
    assert "PanicdDomainAwaitsOperator at h1:10077" in text
    assert "[the page of h1:10077](http://h1:10077/)" in text
    assert "[x](http://evil.example)" not in text
