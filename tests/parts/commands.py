"""panicd's commands, run in the test's process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio
from click.testing import CliRunner, Result

from panicd.cli import main
from tests.parts.daemon import ObservedDaemon

DONE, FAILED, BAD_USAGE = 0, 1, 2


def panicd(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """Run a command; a traceback is a failure."""
    result = CliRunner().invoke(main, [*map(str, arguments)], env=env, prog_name="panicd")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def ask(daemon: ObservedDaemon, *arguments: str, status: int = DONE) -> str:
    """Run a command that asks a daemon, and return what it printed."""
    result = await trio.to_thread.run_sync(panicd, "--config", daemon.config_file, *arguments)
    assert result.exit_code == status, result.output
    return result.output


async def ask_json(daemon: ObservedDaemon, *arguments: str, status: int = DONE) -> Any:
    return json.loads(await ask(daemon, *arguments, "--json", status=status))
