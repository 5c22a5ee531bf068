"""Commands that have to wait for their turn: the domain may be another one by then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from panicd.host.timers import Timers
from panicd.libvirt import beside, requests
from panicd.libvirt.client import Asked, Client
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.libvirt.errors import LibvirtAwayError
from panicd.libvirt.protocol import Procedure, State
from panicd.qemu.monitor_error import SessionLostError
from panicd.rules.capability import UNKNOWN_VERSION, Capability
from panicd.rules.libvirt import parse_domain
from panicd.rules.machine.vm import Stand, Vm
from panicd.rules.qapi import RunState
from tests.parts.fake_libvirtd import FakeLibvirtd
from tests.parts.libvirt_client import connected
from tests.parts.patience import fail_after

COMMANDS = {
    "system_reset": Procedure.DOMAIN_RESET,
    "cont": Procedure.DOMAIN_RESUME,
    "quit": Procedure.DOMAIN_DESTROY_FLAGS,
}
PANICKED, RUNNING = (State.CRASHED, 1), (State.RUNNING, 1)


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(30):
        yield


@asynccontextmanager
async def panicked(directory: Path) -> AsyncIterator[tuple[FakeLibvirtd, Client, DomainMonitor]]:
    """Have a session with a domain that has panicked."""
    async with (
        FakeLibvirtd.start(directory) as fake,
        connected(fake.uri) as listener,
        trio.open_nursery() as nursery,
    ):
        timers = Timers()
        nursery.start_soon(timers.run)
        fake.domain().state = PANICKED
        monitor = DomainMonitor(listener.client, fake.domain().ref, timers)
        monitor.known = lambda: Vm(RunState.GUEST_PANICKED, Capability(UNKNOWN_VERSION))
        yield fake, listener.client, monitor
        nursery.cancel_scope.cancel()


async def test_a_reset_that_waits_its_turn_does_not_meet_the_next_start(socket_dir: Path) -> None:
    """The evidence's calls hold the domain's turns; meanwhile somebody starts it anew."""
    async with panicked(socket_dir) as (fake, client, monitor):
        fake.faults.hangs = {Procedure.DOMAIN_GET_IOTHREAD_INFO}
        ref = fake.domain().ref
        for _ in range(2):
            client.ask(requests.io_threads(ref), lambda _: None, timeout=60)
        while fake.told[Procedure.DOMAIN_GET_IOTHREAD_INFO] < 2:
            await trio.lowlevel.checkpoint()
        answers: list[object] = []
        monitor.ask([("system_reset", {})], answers.extend, timeout=60)
        await client.call(requests.list_domains(), timeout=10)  # what was asked before is answered
        fake.domain().id, fake.domain().state = 77, RUNNING
        await fake.go_on()
        while not answers:
            await trio.lowlevel.checkpoint()
        assert isinstance(answers[0], SessionLostError)
        assert not fake.told[Procedure.DOMAIN_RESET]


@pytest.mark.parametrize("command", COMMANDS)
async def test_what_could_not_be_told_at_once_is_looked_at_anew(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """libvirtd is silent for a while; when it wakes up it first does what others asked it for."""
    async with panicked(socket_dir) as (fake, client, monitor):
        ask = client.ask

        def turned_away(request: Any, done: Any, **how: Any) -> Asked:
            if request.procedure != COMMANDS[command]:
                return ask(request, done, **how)
            monkeypatch.setattr(client, "ask", ask)
            fake.domain().state = RUNNING  # somebody has let it run
            asked = Asked(request, done, None)
            asked.finish(LibvirtAwayError("libvirtd does not answer"))
            return asked

        monkeypatch.setattr(client, "ask", turned_away)
        answers: list[object] = []
        monitor.ask([(command, {})], answers.extend, timeout=60)
        while not answers:
            await trio.lowlevel.checkpoint()
        assert isinstance(answers[0], SessionLostError)
        assert not fake.told[COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
async def test_its_turn_is_not_lost_to_others(socket_dir: Path, command: str) -> None:
    """What is looked at first leaves its room to the command, though others wait in line."""
    async with panicked(socket_dir) as (fake, client, monitor):
        ref = fake.domain().ref
        for _ in range(50):
            client.ask(requests.io_threads(ref), lambda _: None, timeout=60)
        answers: list[object] = []
        monitor.ask([(command, {})], answers.extend, timeout=60)
        for _ in range(50):
            client.ask(requests.io_threads(ref), lambda _: None, timeout=60)
        while not answers:
            await trio.lowlevel.checkpoint()
        assert answers == [{}]
        assert fake.told[COMMANDS[command]] == 1
        assert fake.told[Procedure.DOMAIN_GET_IOTHREAD_INFO] < 100


@pytest.mark.parametrize("asks", ["act", "dump"])
async def test_what_is_done_beside_a_monitor_does_not_meet_the_next_start(
    socket_dir: Path, asks: str
) -> None:
    async with panicked(socket_dir) as (fake, client, _monitor):
        ref = fake.domain().ref
        fake.faults.hangs = {Procedure.DOMAIN_GET_IOTHREAD_INFO}
        for _ in range(2):
            client.ask(requests.io_threads(ref), lambda _: None, timeout=60)
        domain = parse_domain(fake.domain().xml)
        path = socket_dir / "dump"

        def known() -> Stand:
            return Stand.PANICKED

        if asks == "act":
            done = partial(beside.act, client, domain, "reset", Stand.PANICKED, known=known)
        else:
            done = partial(beside.dump, client, domain, path, "elf", known=known, timeout=60.0)

        async def ask() -> None:
            with pytest.raises(LibvirtAwayError):
                await done()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not fake.told[Procedure.DOMAIN_GET_STATE]:
                await trio.lowlevel.checkpoint()
            await client.call(requests.list_domains(), timeout=10)
            fake.domain().id, fake.domain().state = 77, RUNNING
            await fake.go_on()
        assert not fake.told[Procedure.DOMAIN_RESET]
        assert not fake.told[Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT]
