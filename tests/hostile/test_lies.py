"""QEMUs that lie at random, through their whole lives: nobody else is concerned, and none is stuck.

``PANICD_HOSTILE=whole`` tries many times as many. A failure names the lives; each follows from its
name and the order in which panicd and it are given their turns.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import trio

from panicd.rules.on_crash import OnCrash
from tests.hostile.lies import Liar
from tests.hostile.scale import whole
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.patience import patience

LIVES = 200 if whole() else 5
AT_ONCE = 24
TIMEOUTS = dict.fromkeys(("stop", "quiet", "reset", "resume", "quit", "terminate", "kill"), "200ms")
DEFAULTS = {
    "timeouts": TIMEOUTS,
    "evidence": {"budget": "1s"},
    "kdump_timeout": "500ms",
    "coredump": {"timeout": "1s", "max_total": "64MiB", "min_free": "1MiB"},
    "restart": {"max": 10_000, "window": "1h", "min_uptime": "0s"},
}
ENDS = ("", "", "\ud800", "/../..", "\0\n\x1b[2J", "💥" * 300)
GOOD = {
    "match": "good",
    "on_crash": "restart",
    "evidence": {"budget": "0s"},
    "timeouts": dict.fromkeys(TIMEOUTS, "60s"),
}


async def live(directory: Path, name: str) -> None:
    """Be connected, if it comes to that; panic once or twice; and be gone."""
    chance = Random(name)  # noqa: S311 - so that a failure can be repeated
    policy = chance.choice(list(OnCrash))
    called = f"{policy}-{name}{chance.choice(ENDS)}"
    vm = Liar(directory / f"{name}.qmp", called, chance)
    async with vm.running():
        with trio.move_on_after(patience(0.3)):
            await vm.wait_command("query-name")
        for _ in range(chance.choice([1, 2])):
            if not vm.exited.is_set():
                vm.send_raw(vm.burst()) if chance.random() < 0.4 else vm.panic()
            with trio.move_on_after(chance.choice([0.02, 0.3])):
                await vm.exited.wait()
    vm.socket.unlink(missing_ok=True)


async def test_qemus_that_lie_harm_nobody_else(socket_dir: Path) -> None:
    good = FakeQemu(socket_dir / "good.qmp", name="good")
    domains = [GOOD, *({"match": f"{policy}-*", "on_crash": str(policy)} for policy in OnCrash)]

    async def lives(place: int) -> None:
        for number in range(LIVES):
            await live(socket_dir, f"{place}-{number}")

    async with (
        DaemonInside.start(
            socket_dir, DEFAULTS, domains=domains, storm="off", time_limit=30 + 3 * LIVES
        ) as daemon,
        good.running(),
    ):
        await daemon.wait_armed("good")
        async with trio.open_nursery() as nursery:
            for place in range(AT_ONCE):
                nursery.start_soon(partial(lives, place))
            for count in range(1, 4):
                good.panic()
                await daemon.wait_incident("good", ending="restarted", count=count)
        good.panic()
        await daemon.wait_incident("good", ending="restarted", count=4)
        assert good.acting_commands == ["system_reset", "cont"] * 4
        await daemon.wait_domain("good", lambda domain: domain["connected"])
        assert not [line for line in daemon.log if "exception" in line]
