"""What a command loads before it says its line: nothing that only the daemon needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click
import pytest
import trio

from panicd.cli import main
from panicd.cli.deferred import Deferred
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.patience import patience

DAEMONS = {"trio", "asyncio", "pydantic", "structlog", "prometheus_client", "h11", "sqlite3"}
CONFIGURATION = {"yaml"}

PROGRAM = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from panicd.cli import main
main(prog_name="panicd")
"""


def loaded(*arguments: str | Path, env: Mapping[str, str] | None = None) -> set[str]:
    """Run a command in a process of its own, and return which packages it had loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(60),
    )
    assert done.stdout
    return {module.partition(".")[0] for module in json.loads(done.stderr)}


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_loads_what_writes_it_and_no_more(option: str) -> None:
    assert not loaded(option) & (DAEMONS | CONFIGURATION)


def test_completing_a_command_loads_none() -> None:
    env = {"_PANICD_COMPLETE": "bash_complete", "COMP_WORDS": "panicd ", "COMP_CWORD": "1"}
    assert not loaded(env=env) & (DAEMONS | CONFIGURATION)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["explain", "vm"],
        ["explain", "vm", "--json"],
        ["reload", "--json"],
    ],
    ids=" ".join,
)
async def test_a_question_loads_what_shows_the_answer_and_no_more(
    socket_dir: Path, arguments: list[str]
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", name="vm")
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        run = partial(loaded, "--config", daemon.config_file, *arguments)
        there = await trio.to_thread.run_sync(run)
    assert not there & (DAEMONS | CONFIGURATION)


def test_completing_a_domain_loads_what_asks_for_it_and_no_more(socket_dir: Path) -> None:
    typed = f"panicd --socket {socket_dir}/nowhere explain --"
    env = {"_PANICD_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": "4"}
    assert not loaded(env=env) & (DAEMONS | CONFIGURATION)


@pytest.mark.parametrize("name", main.commands)
def test_a_deferred_command_is_listed_as_it_says_itself(name: str) -> None:
    listed = main.commands[name]
    assert isinstance(listed, Deferred)
    command = listed.load()
    assert isinstance(command, click.Command)
    assert command.name == name
    assert listed.help == command.get_short_help_str(limit=1000)
