"""What panicd relies on in a VM, whichever way it reaches it: a QMP monitor, or libvirt's API.

Each test runs on both kinds, on a fake and on the real one. What holds for one alone says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.lowlevel

from panicd.fleet.connector import connect
from panicd.host.timers import Timers
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.libvirt.protocol import CrashedDetail, Event, EventKind, Lifecycle, QemuEvent
from panicd.libvirt.qmp_words import QEMU_EVENTS
from panicd.qemu.event_outlet import Heard
from panicd.qemu.exchange import Command, Exchange
from panicd.qemu.monitor import event_loop, open_monitor
from panicd.qemu.monitor_error import CommandError, NoReplyError, SessionLostError
from panicd.rules.capability import UNKNOWN_VERSION, Capability
from panicd.rules.machine.answers import work_in_progress
from panicd.rules.machine.vm import Vm, follow
from panicd.rules.qapi import RunState
from tests.contract.subjects import PAUSES, Setup, Subject, start_fake, start_real
from tests.parts.fake_libvirtd import FakeLibvirtd
from tests.parts.libvirt import Libvirtd, LibvirtMissingError
from tests.parts.libvirt_client import connected
from tests.parts.patience import fail_after

ANSWERS_WITHIN = 20.0
TIME_LIMIT = 60.0


class Reached:
    """A VM that is reached in one of the ways.

    Attributes:
        exchange: the way.
        by_libvirt: it is libvirt's API.
        panic: has the guest panic.
        heard: the names of the events so far.
        vm: what a session knows by them.
    """

    def __init__(
        self, exchange: Exchange, panic: Callable[[], Awaitable[None]], *, by_libvirt: bool
    ) -> None:
        self.exchange = exchange
        self.by_libvirt = by_libvirt
        self.panic = panic
        self.heard: list[str] = []
        self.vm = Vm(RunState.RUNNING, Capability(UNKNOWN_VERSION))
        exchange.events.hand_over(self._hear, lambda: None)

    async def execute(self, command: str) -> object:
        """Have a command carried out."""
        return await self.exchange.execute(command, timeout=ANSWERS_WITHIN)

    async def status(self) -> object:
        """Ask for the run state."""
        answer = await self.execute("query-status")
        assert isinstance(answer, dict)
        return answer["status"]

    async def wait_heard(self, *names: str) -> None:
        """Wait until the last events are these."""
        while self.heard[-len(names) :] != list(names):
            await trio.lowlevel.checkpoint()

    async def panics(self) -> None:
        """Have the guest panic, and see it heard."""
        await self.panic()
        await self.wait_heard("GuestPanickedEvent", "StopEvent")

    def _hear(self, heard: Heard) -> None:
        self.heard.append(type(heard.event).__name__)
        self.vm = follow(self.vm, heard.event)


Reach = Callable[[Path], AbstractAsyncContextManager[Reached]]


def by_monitor(
    start: Callable[[Path, Setup], AbstractAsyncContextManager[Subject]],
) -> Reach:
    @asynccontextmanager
    async def reach(directory: Path) -> AsyncIterator[Reached]:
        async with (
            event_loop(),
            start(directory, PAUSES) as subject,
            open_monitor(await connect(subject.socket), timeout=ANSWERS_WITHIN) as monitor,
        ):
            yield Reached(monitor, subject.panic, by_libvirt=False)

    return reach


@asynccontextmanager
async def domain_of(uri: str, panic: Callable[[], Awaitable[None]]) -> AsyncIterator[Reached]:
    """Reach the domain of a libvirt that has one, as ``known_domains`` does."""
    async with (
        connected(uri, qemu_events=QEMU_EVENTS) as listener,
        trio.open_nursery() as nursery,
    ):
        timers = Timers()
        nursery.start_soon(timers.run)
        monitor = DomainMonitor(listener.client, await listener.domain(), timers)
        reached = Reached(monitor, panic, by_libvirt=True)
        monitor.known = lambda: reached.vm

        def hear(event: Event) -> None:
            match event:
                case QemuEvent():
                    monitor.hear(event)
                case Lifecycle(event=EventKind.CRASHED, detail=CrashedDetail.PANICKED):
                    monitor.taken_in(is_still=True)
                case Lifecycle(event=EventKind.STOPPED):
                    monitor.end("the domain has ended")

        listener.client._heard = hear
        for line in (listener.client._events, *listener.client._lines):
            assert line is not None
            line._heard = hear
        yield reached
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def by_fake_libvirtd(directory: Path) -> AsyncIterator[Reached]:
    async with FakeLibvirtd.start(directory) as fake:

        async def panic() -> None:
            fake.panic()

        async with domain_of(fake.uri, panic) as reached:
            yield reached


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """A real one, for all tests."""
    try:
        with TemporaryDirectory(prefix="panicd-") as place, Libvirtd.start(Path(place)) as libvirtd:
            yield libvirtd
    except LibvirtMissingError as error:
        pytest.skip(str(error))


def by_real_libvirtd(libvirtd: Libvirtd) -> Reach:
    @asynccontextmanager
    async def reach(directory: Path) -> AsyncIterator[Reached]:
        async with (
            libvirtd.domain(directory, "preserve") as vm,
            domain_of(libvirtd.uri, vm.press_key) as reached,
        ):
            yield reached

    return reach


@pytest.fixture(
    params=[
        pytest.param(by_monitor(start_fake), id="fake-monitor"),
        pytest.param(by_monitor(start_real), id="monitor", marks=pytest.mark.real),
        pytest.param(by_fake_libvirtd, id="fake-libvirt"),
        pytest.param(None, id="libvirt", marks=pytest.mark.real),
    ]
)
async def vm(request: pytest.FixtureRequest, socket_dir: Path) -> AsyncIterator[Reached]:
    reach: Reach = request.param or by_real_libvirtd(request.getfixturevalue("libvirtd"))
    with fail_after(TIME_LIMIT):
        async with reach(socket_dir) as reached:
            yield reached


async def test_a_panic_stops_the_guest(vm: Reached) -> None:
    assert await vm.status() == "running"
    await vm.panics()
    assert await vm.status() == "guest-panicked"
    assert vm.heard == ["GuestPanickedEvent", "StopEvent"]


async def test_a_reset_guest_waits_and_is_let_run(vm: Reached) -> None:
    await vm.panics()
    assert await vm.execute("system_reset") == {}
    await vm.wait_heard("ResetEvent")
    assert await vm.status() == "prelaunch"
    assert await vm.execute("cont") == {}
    await vm.wait_heard("ResetEvent", "ResumeEvent")
    assert await vm.status() == "running"


async def test_cont_may_follow_as_soon_as_the_reset_is_heard(vm: Reached) -> None:
    await vm.panics()
    vm.exchange.ask([("system_reset", {})], lambda _: None, timeout=ANSWERS_WITHIN)
    await vm.wait_heard("ResetEvent")
    assert await vm.execute("cont") == {}
    assert await vm.status() == "running"


async def test_a_panicked_guest_is_resumed_as_it_is(vm: Reached) -> None:
    await vm.panics()
    assert await vm.execute("cont") == {}
    await vm.wait_heard("ResumeEvent")
    assert await vm.status() == "running"
    assert "ResetEvent" not in vm.heard


async def test_a_running_guest_is_stopped(vm: Reached) -> None:
    assert await vm.execute("stop") == {}
    await vm.wait_heard("StopEvent")
    assert await vm.status() == "paused"


async def test_an_idle_one_is_busy_with_nothing(vm: Reached) -> None:
    await vm.panics()
    names = ("query-migrate", "query-block-jobs", "query-dump")
    asked: list[Command] = [(name, {}) for name in names]
    answers = await vm.exchange.execute_all(asked, timeout=ANSWERS_WITHIN)
    assert not work_in_progress(*answers)


async def test_quit_ends_it(vm: Reached) -> None:
    await vm.panics()
    answers: list[object] = []
    vm.exchange.ask([("quit", {})], answers.extend, timeout=ANSWERS_WITHIN)
    while not (answers and vm.exchange.events.ended):
        await trio.lowlevel.checkpoint()
    assert answers == [{}] or isinstance(answers[0], SessionLostError)
    with pytest.raises(SessionLostError):
        await vm.execute("query-status")


async def test_what_it_does_not_know_is_refused(vm: Reached) -> None:
    with pytest.raises(CommandError) as refused:
        await vm.execute("nope")
    assert refused.value.error_class == "CommandNotFound"


async def test_a_question_that_is_given_up_is_told_once(vm: Reached) -> None:
    told: list[list[object]] = []
    question = vm.exchange.ask([("query-status", {})], told.append, timeout=ANSWERS_WITHIN)
    question.give_up()
    question.give_up()
    assert len(told) == 1
    assert isinstance(told[0][0], NoReplyError)
    assert await vm.status() == "running"
    assert len(told) == 1


async def test_aborted_it_answers_nothing_more(vm: Reached) -> None:
    vm.exchange.abort()
    with pytest.raises(SessionLostError):
        await vm.execute("query-status")


@pytest.mark.parametrize("command", ["set-action", "human-monitor-command", "getfd"])
async def test_a_monitor_alone_has_these(vm: Reached, command: str) -> None:
    """libvirt sets what a panic does by ``<on_crash>``; the others would taint the domain."""
    (answer,) = await vm.exchange.execute_all([(command, {})], timeout=ANSWERS_WITHIN)
    is_unknown = isinstance(answer, CommandError) and answer.error_class == "CommandNotFound"
    assert is_unknown is vm.by_libvirt


async def test_libvirt_alone_gives_no_cont_to_a_guest_that_runs(vm: Reached) -> None:
    """QEMU takes it and does nothing; libvirt refuses it."""
    if vm.by_libvirt:
        with pytest.raises(CommandError, match="already running"):
            await vm.execute("cont")
    else:
        assert await vm.execute("cont") == {}
    assert await vm.status() == "running"
