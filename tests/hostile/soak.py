"""A soak: for some time VMs panic, flood, lose their monitors, and panicd is reloaded and killed.

    python -m tests.hostile.soak [--minutes 60] [--domains 20] [--seed N]

panicd runs in a process of its own, the QEMUs are fakes on real sockets in this one. Kills come in
the first half; over the second half memory and file descriptors have to stay flat. In the end each
panic has to be in the journal: one incident for each episode of each domain, none twice, and of the
floods every repeat (so none is under way at a kill), but where the fake took so long to say them
that panicd gave its session up. Ends with status 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio

from panicd.rules.incident import Incident, Outcome
from panicd.service.control_client import DaemonUnreachableError, RefusedError
from tests.hostile.monitors import FUTILE, TOLERABLE, event, serving
from tests.parts.daemon import ExecutedDaemon, Process
from tests.parts.fake import FakeQemu
from tests.parts.vitals import open_files, resident_bytes
from tests.parts.wire import Message

UNIT = Path("systemd/panicd.service")
FLOOD = 3000
PANIC = event("GUEST_PANICKED", {"action": "run"})
GROWTH = 8 << 20
"""Bytes by which panicd may grow over the second half."""

SETTLED_AFTER = 15.0
"""Seconds after which a daemon that was started anew has all its connections again."""

FILES = 12
"""File descriptors that the fewest may differ by: so many come and go at any time."""

TOLD_BEFORE = 0.2
"""Seconds by which the log may tell of something before the journal, or ``status``, has it."""


class SoakedDaemon(ExecutedDaemon):
    """A daemon that logs for an hour: its lines are counted and not kept.

    Attributes:
        lines: How many told of each domain.
        runs: How often it was made ready.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._killed = True  # its log is not kept: it is not compared with the journal
        self.lines: Counter[str] = Counter()
        self.runs = 0
        self._ready_again = trio.lowlevel.ParkingLot()

    def _take(self, *lines: Message) -> None:
        self.lines.update(line["domain"] for line in lines if "domain" in line)
        self._changed.unpark_all()

    async def _open_process(self, arguments: list[str], environment: dict[str, str]) -> Process:
        return await super()._open_process(arguments, {**environment, **environment_as_shipped()})

    async def start_again(self) -> None:
        """Start it, and tell those who wait for it."""
        await super().start_again()
        self.runs += 1
        self._ready_again.unpark_all()

    async def wait_ready(self, *, since: int) -> None:
        """Wait until it was made ready once more than so often."""
        while self.runs <= since:
            await self._ready_again.park()

    async def wait_told(self, domain: str, *, since: int) -> None:
        """Wait until it tells more of a domain; for a moment only, for it tells a bit early."""
        with trio.move_on_after(TOLD_BEFORE):
            await self._wait(lambda: self.lines[domain] > since)


def environment_as_shipped() -> dict[str, str]:
    """What the unit has the daemon's memory be looked after by."""
    lines = UNIT.read_text().splitlines()
    (settings,) = [line for line in lines if line.startswith("Environment=MALLOC_")]
    return dict(setting.split("=") for setting in settings.removeprefix("Environment=").split())


class Soak:
    """One run.

    Attributes:
        episodes: Panics or floods of each domain, so far.
        said: Panics of each flooded domain, all told.
        known: The incident of each domain's last episode that is over.
        amiss: What was found wrong.
    """

    def __init__(self, daemon: SoakedDaemon, minutes: float, chance: random.Random) -> None:
        self.daemon = daemon
        self.chance = chance
        self.began = self.started_at = trio.current_time()
        self.ends = self.began + minutes * 60
        self.episodes: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.known: dict[str, str] = {}
        self.kills = 0
        self.told_minute = 0
        self.kill_is_due = False
        self.flood_ended = trio.lowlevel.ParkingLot()
        self.vitals: list[tuple[int, int]] = []
        self.amiss: list[str] = []
        self.under_way: set[str] = set()

    @property
    def over(self) -> bool:
        return trio.current_time() >= self.ends

    @property
    def halfway(self) -> bool:
        return trio.current_time() >= (self.began + self.ends) / 2

    async def ask(self, command: str, **arguments: object) -> Any:
        """Ask panicd, until it is there to answer."""
        while True:
            run = self.daemon.runs
            try:
                return await self.daemon.call(command, **arguments)
            except DaemonUnreachableError:
                await self.daemon.wait_ready(since=run)

    async def panics(self, vm: FakeQemu, *, flood: bool) -> None:
        """Have a VM panic or flood, and wait until panicd is through with it, again and again."""
        name = vm.machine.name
        while not self.over:
            await self.connected(name)
            if flood and self.kill_is_due:
                await self.daemon.wait_ready(since=self.daemon.runs)
                continue
            self.under_way.add(name)
            self.episodes[name] += 1
            if flood:
                self.said[name] += FLOOD
                vm.send_raw(PANIC * FLOOD)
                await self.restarted_by_hand(name)
            else:
                vm.panic()
                await self.told(name, {"closed"})
            self.known[name], _ = await self.episode(name)
            self.under_way.discard(name)
            self.flood_ended.unpark_all()
            await trio.sleep(self.chance.random() * 2)

    async def connected(self, name: str) -> None:
        """Wait until a VM is looked after, with nothing left of what was before."""
        while True:
            lines = self.daemon.lines[name]
            domains = (await self.ask("status"))["domains"]
            if any(d["domain"] == name and d["connected"] and not d["incident"] for d in domains):
                return
            await self.daemon.wait_told(name, since=lines)

    async def restarted_by_hand(self, name: str) -> None:
        """See a flood end in preserve, and have an operator restart the guest."""
        while True:
            lines = self.daemon.lines[name]
            await self.told(name, {"preserved", "closed"})
            try:
                await self.daemon.call("act", domain=name, action="restart", why="soak")
            except DaemonUnreachableError:
                pass
            except RefusedError:  # it is connected anew, or this was done already
                pass
            _, state = await self.episode(name)
            if state == "closed":
                return
            await self.daemon.wait_told(name, since=lines)

    async def told(self, name: str, states: set[str]) -> None:
        """Wait until the incident of a domain's present episode is in one of these states."""
        deadline = trio.current_time() + 60
        while True:
            lines = self.daemon.lines[name]
            _, state = await self.episode(name)
            if state in states:
                return
            if trio.current_time() > deadline:
                self.amiss.append(f"{name}: in episode {self.episodes[name]} it is {state!r}")
                raise RuntimeError(self.amiss[-1])
            await self.daemon.wait_told(name, since=lines)

    async def episode(self, name: str) -> tuple[str, str]:
        """The one incident that followed a domain's last episode: id and state, or empty.

        Two are asked for, so that an answer is as long in the first minute as in the last.
        """
        told = [
            (one["id"], one["state"]) for one in await self.ask("incidents", domain=name, limit=2)
        ]
        before = [self.known[name]] if name in self.known else []
        if [number for number, _ in told[1:]] == before and told[:1]:
            return told[0]
        return "", ""

    async def trouble(self, vms: list[FakeQemu]) -> None:
        """Reload panicd, kill it, cut sessions off, have hostile monitors come and go."""
        while not self.over:
            await trio.sleep(self.chance.uniform(0.5, 4.0))
            match self.chance.choice(["reload", "cut", "cut", "hostile", "kill"]):
                case "reload":
                    await self.ask("reload")
                case "cut":
                    vm = self.chance.choice(vms)
                    if vm.machine.name not in self.said:  # of those every panic is to be heard
                        vm.close_session()
                case "hostile":
                    await self.hostile()
                case "kill" if not self.halfway:
                    self.kill_is_due = True
                    while self.under_way & self.said.keys():  # what nobody hears is lost
                        await self.flood_ended.park()
                    self.kills += 1
                    await self.daemon.kill()
                    await self.daemon.start_again()
                    self.started_at = trio.current_time()
                    self.kill_is_due = False

    async def hostile(self) -> None:
        name, behaviour = self.chance.choice([*FUTILE.items(), *TOLERABLE.items()])
        async with serving(self.daemon.directory / f"hostile-{name}.qmp", behaviour):
            await trio.sleep(self.chance.uniform(0.1, 3.0))

    async def look(self) -> None:
        """Look at panicd's memory and files, over the second half."""
        while not self.over:
            await trio.sleep(2.0)
            if not self.halfway or trio.current_time() < self.started_at + SETTLED_AFTER:
                continue
            memory, files = resident_bytes(self.daemon.pid), len(open_files(self.daemon.pid))
            self.vitals.append((memory, files))
            minute = int((trio.current_time() - self.began) / 60)
            if minute > self.told_minute:
                self.told_minute = minute
                print(f"minute {minute}: {memory / 1e6:.1f} MB, {files} files", flush=True)

    def check(self, journal: list[Incident]) -> None:
        """Compare what was done with the journal, and the vitals with each other."""
        found = Counter(incident.opened.domain for incident in journal)
        for name, episodes in self.episodes.items():
            if found[name] != episodes:
                self.amiss.append(f"{name}: {episodes} episodes, {found[name]} incidents")
        given_up = 0
        for incident in journal:
            if incident.opened.domain not in self.said:
                continue
            # With a session that is given up goes what was not yet said over it.
            lost = any(step.outcome is Outcome.UNKNOWN for step in incident.steps.values())
            given_up += lost
            counted = 1 + incident.repeats
            if counted > FLOOD or (counted < FLOOD and not lost):
                self.amiss.append(f"{incident.id}: panicked {FLOOD} times, {counted} were counted")
        quarter = max(1, len(self.vitals) // 4)
        first, last = self.vitals[:quarter], self.vitals[-quarter:]
        growth = median(memory for memory, _ in last) - median(memory for memory, _ in first)
        # What is open for a while, a call or a hostile monitor's connection, is not there in each.
        files = min(files for _, files in last) - min(files for _, files in first)
        print(
            f"{sum(self.episodes.values())} episodes, {sum(self.said.values())} panics in floods, "
            f"{given_up} of them given up, {self.kills} kills; memory "
            f"{first[0][0] / 1e6:.1f} -> {last[-1][0] / 1e6:.1f} MB, files {first[0][1]} -> "
            f"{last[-1][1]}"
        )
        if growth > GROWTH:
            self.amiss.append(f"memory grew by {growth / 1e6:.1f} MB")
        if files > FILES:
            self.amiss.append(f"{files} more files are open")


async def soak(minutes: float, domains: int, seed: int) -> list[str]:
    """Run it; return what is amiss."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as where:
        directory = Path(where)
        rules = [{"match": "flood-*", "on_crash": "ignore", "flood": {"max": 500}}]
        budget = {"on_crash": "restart", "restart": {"max": 10**8, "min_uptime": "0s"}}
        async with (
            SoakedDaemon.start(
                directory, budget, domains=rules, storm="off", time_limit=minutes * 60 + 180
            ) as daemon,
            AsyncExitStack() as stack,
        ):
            run = Soak(daemon, minutes, random.Random(seed))  # noqa: S311 - made up, and repeatable
            names = [f"{'flood' if n % 5 == 0 else 'vm'}-{n}" for n in range(domains)]
            vms = [FakeQemu(directory / f"{name}.qmp", name=name) for name in names]
            for vm in vms:
                await stack.enter_async_context(vm.running())
            async with trio.open_nursery() as nursery:
                for vm in vms:
                    floods = vm.machine.name.startswith("flood")
                    nursery.start_soon(partial(run.panics, vm, flood=floods))
                nursery.start_soon(run.trouble, vms)
                nursery.start_soon(run.look)
            run.check(daemon.journal())
            return run.amiss


def main() -> int:
    """Run a soak, and tell what is amiss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--domains", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))  # noqa: S311 - likewise
    options = parser.parse_args()
    print(f"seed {options.seed}")
    amiss = trio.run(soak, options.minutes, options.domains, options.seed)
    print(*amiss or ["nothing is amiss"], sep="\n")
    return bool(amiss)


if __name__ == "__main__":
    sys.exit(main())
