"""A VM's run state, as its events and answers tell it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from panicd.fleet.connector import connect
from panicd.qemu.event_outlet import LIMIT, Heard
from panicd.qemu.monitor import CommandError, event_loop, open_monitor
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from panicd.rules.identity import Claim
from panicd.rules.machine.work import Work
from panicd.rules.qapi import ResumeEvent, RunState
from tests.parts.fake import FakeQemu
from tests.parts.sessions import TIME_LIMIT, open_session

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f56"


@pytest.fixture
def vm(socket_dir: Path) -> FakeQemu:
    return FakeQemu(socket_dir / "vm.qmp", uuid=UUID)


async def until(session: Session, holds: Callable[[], bool]) -> None:
    assert await session.observe(holds, TIME_LIMIT)


async def test_it_knows_which_vm_it_is(vm: FakeQemu) -> None:
    async with open_session(vm) as session:
        assert session.claim == Claim("vm", UUID)
        assert session.run_state is RunState.RUNNING
        # The fake is a thread of this test: no QEMU, so nothing is said of its process.
        assert (session.process_known, session.process) == (False, "")


async def test_stop_after_a_panic_means_panicked_and_alone_paused(vm: FakeQemu) -> None:
    async with open_session(vm) as session:
        await vm.foreign("stop")
        await until(session, lambda: session.run_state is RunState.PAUSED)
        await vm.foreign("cont")
        await until(session, lambda: session.run_state is RunState.RUNNING)
        vm.panic()
        await until(session, lambda: session.run_state is RunState.GUEST_PANICKED)
        assert session.vm.resumes == 1
        await vm.foreign("system_reset")
        await until(session, lambda: session.vm.resets == 1)
        assert await session.query_status() is RunState.PRELAUNCH
        await vm.foreign("cont")
        await vm.foreign("stop")
        await until(session, lambda: session.run_state is RunState.PAUSED)


async def test_panic_that_does_not_stop_the_guest_leaves_a_later_stop_alone(vm: FakeQemu) -> None:
    async with open_session(vm) as session:
        await vm.foreign("set-action", {"panic": "none"})
        vm.panic()
        await vm.foreign("stop")
        await until(session, lambda: session.run_state is RunState.PAUSED)


@pytest.mark.parametrize("lost", [True, False])
async def test_work_is_not_followed_if_an_event_may_have_told_of_it(
    vm: FakeQemu, *, lost: bool
) -> None:
    async with vm.running(), event_loop():
        sock = await connect(vm.socket)
        with Peer.of(sock) as peer:
            async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
                session = Session.from_probe(
                    monitor, peer, await probe(monitor, None, timeout=TIME_LIMIT)
                )
                assert session.vm.work == Work()
                for _ in range(LIMIT + lost):
                    monitor.events.put(ResumeEvent(0.0))
                assert len(session.take_kept()) == LIMIT
                assert session.vm.work == (None if lost else Work())


async def test_every_event_reaches_the_listener(vm: FakeQemu) -> None:
    heard: list[str] = []

    def listen(entry: Heard) -> None:
        heard.append(type(entry.event).__name__)

    async with open_session(vm, listen) as session:
        vm.panic()
        await until(session, lambda: session.run_state is RunState.GUEST_PANICKED)
        assert heard == ["GuestPanickedEvent", "StopEvent"]


async def test_observing_ends_with_the_session(vm: FakeQemu) -> None:
    async with open_session(vm) as session:
        vm.exit()
        assert not await session.observe(lambda: False, TIME_LIMIT)
        assert session.ended


async def test_refused_command_is_an_error_and_changes_nothing(vm: FakeQemu) -> None:
    async with open_session(vm) as session:
        vm.refuse("cont", "not now")
        with pytest.raises(CommandError, match="not now"):
            await session.execute("cont")
        assert session.run_state is RunState.RUNNING
