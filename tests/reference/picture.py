"""``python -m tests.reference.picture``: take README's picture of the page anew, in Chromium.

The daemon is real, its QEMUs are fakes, and what their guests said is on their consoles.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import trio

from panicd.incident import liveness
from tests.parts.chromium import Chromium
from tests.parts.fake import FakeQemu
from tests.reference.files import ROOT
from tests.web.page.test_pages import ALICE, watched

PICTURE: Final = ROOT / "docs/page.png"
WIDTH, HEIGHT = 1280, 860
TIME_LIMIT = 120

OOPS = """\
[ 8123.514206] BUG: kernel NULL pointer dereference, address: 0000000000000018
[ 8123.514260] RIP: 0010:blk_mq_dispatch_rq_list+0x8c/0x7f0
[ 8123.514301] Kernel panic - not syncing: Fatal exception
"""
OUT_OF_MEMORY = """\
[51200.918230] Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled
"""
LOCKUP = """\
[ 3400.100917] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:2:817]
[ 3400.101204] RIP: 0010:smp_call_function_many_cond+0x129/0x520
[ 3400.101377] Kernel panic - not syncing: softlockup: hung tasks
"""
SAID = {"db-2": OOPS, "web-3": LOCKUP, "web-5": LOCKUP, "mail-1": OUT_OF_MEMORY}
FLEET = [
    *(f"web-{number}" for number in range(1, 9)),
    *(f"db-{number}" for number in range(1, 4)),
    *("mail-1", "build-1", "build-2", "ldap-1", "cache-1", "cache-2", "queue-1"),
]


def rules(directory: Path) -> list[dict[str, Any]]:
    """Return the rules of the domains."""
    found: list[dict[str, Any]] = []
    for name in FLEET:
        console = directory / f"{name}.log"
        console.write_text(SAID.get(name, ""), encoding="utf-8")
        on_crash = {"web": "restart", "db": "coredump-preserve", "mail": "restart"}
        policy = on_crash.get(name.partition("-")[0], "preserve")
        evidence = {"budget": "2s", "consoles": [str(console)]}
        found.append({"match": name, "on_crash": policy, "evidence": evidence})
    return found


async def main(directory: Path) -> None:
    """Have guests panic, and take the picture."""
    async with AsyncExitStack() as stack:
        vms = {}
        for name in FLEET:
            devices = () if name == "build-2" else ("pvpanic",)
            vms[name] = FakeQemu(directory / f"{name}.qmp", name=name, devices=devices)
            await stack.enter_async_context(vms[name].running())
        seen = await stack.enter_async_context(
            watched(
                directory,
                users=True,
                domains=rules(directory),
                storm="off",
                defaults={"coredump": {"min_free": "1MiB"}},
                time_limit=TIME_LIMIT,
            )
        )
        daemon = seen.daemon
        for name in FLEET:
            await daemon.wait_armed(name)
        for name in ("web-3", "web-5", "mail-1"):
            vms[name].panic()
            await daemon.wait_incident(name, ending="restarted")
        vms["db-2"].panic()
        incident = await daemon.wait_incident("db-2", state="preserved")
        await daemon.wait_kept(incident)
        await daemon.call("hold", domain="build-1", why="kernel upgrade, ticket 42")
        vms["queue-1"].swallow("query-status", times=None)
        await daemon.wait_log("QEMU does not answer", domain="queue-1")
        browser = await stack.enter_async_context(
            Chromium.start(directory, width=WIDTH, height=HEIGHT)
        )
        name, _, value = ALICE.partition(": ")
        await browser.call("Network.setExtraHTTPHeaders", headers={name: value})
        await browser.go(f"http://127.0.0.1:{seen.server.port}/")
        await browser.take_picture(PICTURE, whole=False)


if __name__ == "__main__":
    real = os.uname()
    host = SimpleNamespace(nodename="kvm-03", machine=real.machine, release=real.release)
    with (
        tempfile.TemporaryDirectory(prefix="panicd-") as place,
        patch.object(os, "uname", lambda: host),
        patch.object(liveness, "ASK_EVERY", 0.5),
        patch.object(liveness, "SILENT_AFTER", 0.5),
    ):
        trio.run(main, Path(place))
