"""Real Linux kernels panic of all kinds of trouble: the line that says why, and the signature.

Both are the same in every boot, and from the log in memory as from the console.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.evidence.bundle import CONSOLE_KEPT
from panicd.rules.last_words import words_of_console
from tests.parts.apt import MissingError
from tests.parts.daemon import RunningDaemon
from tests.parts.linux import Kernel, linux_guest
from tests.parts.linux_trouble import KINDS, make_trouble

pytestmark = [pytest.mark.linux, pytest.mark.real]

WHOLE = os.environ.get("PANICD_LINUX") == "whole"
BOOTS = 3 if WHOLE else 1
TIME_LIMIT = 120.0
"""Seconds; under TCG a kernel panics some seconds after its start."""


@pytest.mark.parametrize("name", KINDS if WHOLE else ["null"])
async def test_a_panic_is_known_by_its_cause_in_every_boot(
    socket_dir: Path, linux_kernel: Kernel, name: str
) -> None:
    kind = KINDS[name]
    try:
        trouble = make_trouble(kind, linux_kernel)
    except MissingError as missing:
        pytest.skip(f"no such trouble here: {missing}")
    policy: dict[str, Any] = {"on_crash": "destroy", "evidence": {"budget": "5s"}}
    known = set()
    async with RunningDaemon.start(socket_dir, policy, time_limit=TIME_LIMIT * BOOTS) as daemon:
        for boot in range(1, BOOTS + 1):
            mark = daemon.mark()
            starts = linux_guest(socket_dir, linux_kernel, trouble=trouble, paused=True)
            async with starts as guest:
                await daemon.wait_armed("linux", since=mark)
                await guest.vm.start_guest()
                found = await daemon.wait_incident("linux", ending="destroyed", count=boot)
                await daemon.wait_kept(found)
            incident: Any = await daemon.call("incident", incident=found.id)
            assert incident["panic_line"].startswith(kind.line)
            signature = incident["signature"]
            assert signature["title"] == kind.title
            assert kind.frame in {"", *signature["frames"][:1]}
            known.add(signature["hash"])
            assert incident["same"]["count"] == boot
            assert "kernel.log" in incident["evidence"]["files"]
            console = words_of_console(
                (await trio.Path(guest.console).read_bytes())[-CONSOLE_KEPT:]
            )
            assert console.line.startswith(kind.line)
            assert console.signature is not None
            known.add(console.signature.hash)
    assert len(known) == 1
