"""Each alert has its runbook, each runbook its parts, and their commands work on a live daemon."""

from __future__ import annotations

import http.client
import re
import shlex
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trio
from click.testing import CliRunner, Result

from panicd.cli import main
from panicd.demo.guests import Guest
from tests.parts.daemon import ObservedDaemon, RunningDaemon
from tests.parts.qemu import RealQemu
from tests.prometheus.test_rules import alert, rules

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "docs/runbooks"
RUNBOOKS = sorted(set(DIRECTORY.glob("*.md")) - {DIRECTORY / "README.md"})
UNIT = (ROOT / "systemd/panicd.service").read_text(encoding="utf-8")

OF_A_GUEST = ["Is it looping?", "Dump and screenshot", "Stop the automation"]
"""What stands in a runbook where a guest panicked, and in no other."""

FOUND: Final = {"audit": 1}
"""Exit status of a command that has found what it looks for."""
ENDING = {"act", "release"}
"""Commands that act on a guest: each gets a panicked one of its own, without a dump, in the end."""

SERVICE = {"status": "ExecStart=", "restart": "ExecStart=", "reload": "ExecReload="}
"""What systemctl is asked for, and what the unit must have for it."""

NOTHING = "it found nothing"
TIME_LIMIT = 120.0
COMMAND_LIMIT = 20.0
ADDRESS = "http://127.0.0.1:10077"
STATE = "/var/lib/panicd"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands(text: str) -> Iterator[str]:
    """Return what stands behind a prompt in a runbook's consoles."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert line.startswith("$ "), f"an output would rot: {line}"
            yield line[2:]


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS} == {alert(rule) for rule in rules()}


def test_the_list_of_runbooks_is_complete() -> None:
    listed = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", text_of(DIRECTORY / "README.md"), re.MULTILINE
    )
    assert listed == [(alert(r), alert(r), r["labels"]["severity"]) for r in rules()]


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_has_all_its_parts(path: Path) -> None:
    title, *parts = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    assert title == path.stem
    of_a_guest = OF_A_GUEST * (parts[3:4] == OF_A_GUEST[:1])
    assert parts == [
        *("Meaning", "Impact", "Diagnosis", *of_a_guest, "Mitigation", "Verify the fix", "Escalate")
    ]
    (rule,) = [rule for rule in rules() if rule["alert"] == title]
    assert f"\nSeverity: {rule['labels']['severity']}.\n" in text_of(path)
    assert ("panicd incident INCIDENT" in text_of(path)) is bool(of_a_guest)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_s_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", text_of(path)):
        assert (DIRECTORY / target).exists(), target


def all_commands() -> dict[str, list[str]]:
    """Return each command and the runbooks that have it; reasons given make no difference."""
    found: dict[str, list[str]] = defaultdict(list)
    by_words: dict[tuple[str, ...], str] = {}
    for path in RUNBOOKS:
        for command in commands(text_of(path)):
            words = shlex.split(command)
            if "--why" in words:
                words[words.index("--why") + 1] = ""
            found[by_words.setdefault(tuple(words), command)].append(path.stem)
    return found


@dataclass(frozen=True)
class Stage:
    """A live daemon, one of its domains, and what a runbook's placeholders stand for there.

    Attributes:
        said: what the commands of panicd have said.
    """

    daemon: ObservedDaemon
    domain: str
    incident: str
    unwatched: Path
    said: list[str] = field(default_factory=list)

    async def run(self, command: str) -> str:
        """Run a command; return what was wrong with that."""
        program, *words = self._filled_in(command)
        match program:
            case "panicd":
                arguments = ["--config", str(self.daemon.config_file), *words]
                result = await trio.to_thread.run_sync(_panicd, arguments)
                self.said.append(result.output)
                good = result.exit_code in {0, FOUND.get(words[0], 0)}
                return "" if good else result.output or repr(result.exception)
            case "ls" | "df" | "find":
                arguments = [program, *words]
            case "journalctl":  # it reads the words; the daemon under test logs elsewhere
                (self.daemon.directory / "empty").mkdir(exist_ok=True)
                arguments = [program, f"--directory={self.daemon.directory}/empty", *words]
            case "systemctl":
                verb, unit = words
                assert unit == "panicd"
                return "" if f"\n{SERVICE[verb]}" in UNIT else f"the unit has no {SERVICE[verb]}"
            case "curl":
                return await self._fetch(words[-1])
            case _:
                raise AssertionError(f"{command}: teach this test how to run it")
        done = await trio.run_process(
            arguments, capture_stdout=True, capture_stderr=True, check=False
        )
        if program == "find" and not done.stdout:
            return NOTHING
        return "" if done.returncode == 0 else (done.stderr or done.stdout).decode()

    def _filled_in(self, command: str) -> list[str]:
        for placeholder, value in {
            "DOMAIN": self.domain,
            "INCIDENT": self.incident,
            "SOCKET": str(self.unwatched),
            STATE: str(self.daemon.state_directory),
        }.items():
            command = re.sub(rf"(?<!\w){placeholder}(?!\w)", value, command)
        return shlex.split(command)

    async def _fetch(self, url: str) -> str:
        assert url.startswith(ADDRESS)
        served = await self.daemon.wait_log("metrics are served", since=self.daemon.began)
        path = url.removeprefix(ADDRESS)
        try:
            status = await trio.to_thread.run_sync(_status, served["host"], served["port"], path)
        except ConnectionRefusedError:
            return "connection refused"
        return "" if status == http.client.OK else f"HTTP status {status}"


def _panicd(arguments: list[str]) -> Result:
    """Run the program's commands, in this process: it has most of its imports already."""
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "500"})


def _status(host: str, port: int, path: str) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=COMMAND_LIMIT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@asynccontextmanager
async def panicked(daemon: RunningDaemon, name: str, unwatched: Path) -> AsyncIterator[Stage]:
    """A domain whose guest panicked and waits."""
    async with RealQemu.start(daemon.directory, guest=Guest.PANIC_ON_KEY, name=name) as vm:
        await daemon.wait_armed(name)
        await vm.press_key()
        incident = await daemon.wait_incident(name, state="preserved")
        yield Stage(daemon, name, incident.id, unwatched)


@pytest.mark.real
async def test_every_command_works(socket_dir: Path) -> None:
    (socket_dir / "elsewhere").mkdir()
    policy = {"coredump": {"min_free": "1MiB", "format": "elf"}, "evidence": {"budget": "3s"}}
    dumped = [{"match": "web-1", "on_crash": "coredump-preserve"}]
    failed: dict[str, str] = {}
    by_kind: dict[bool, list[str]] = {True: [], False: []}
    for command in sorted(all_commands()):
        by_kind[command.split()[1] in ENDING].append(command)
    async with (
        RunningDaemon.start(socket_dir, policy, domains=dumped, time_limit=TIME_LIMIT) as daemon,
        RealQemu.start(socket_dir / "elsewhere", name="unwatched") as unwatched,
    ):
        async with panicked(daemon, "web-1", unwatched.socket) as stage:
            for command in by_kind[False]:
                if problem := await stage.run(command):
                    failed[command] = problem
        for number, command in enumerate(by_kind[True], 2):
            async with panicked(daemon, f"web-{number}", unwatched.socket) as stage:
                if problem := await stage.run(command):
                    failed[command] = problem
    where = all_commands()
    assert not failed, "\n".join(f"{c} ({', '.join(where[c])}): {p}" for c, p in failed.items())


@pytest.mark.real
async def test_a_command_that_rots_is_seen(socket_dir: Path) -> None:
    async with RunningDaemon.start(socket_dir) as daemon:
        stage = Stage(daemon, "web-1", "none", socket_dir)
        for command in ("panicd statsu", "panicd explain DOMAIN", f"ls {STATE}/gone"):
            assert await stage.run(command), command
        assert await stage.run("panicd status") == ""
