"""How a domain stands is asked in advance, and right before each command all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from panicd.host.timers import Timers
from panicd.libvirt import look, requests
from panicd.libvirt.connection import Connection
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.libvirt.memory import dumper
from panicd.libvirt.protocol import Procedure, QemuEvent, State
from panicd.libvirt.wire import Incoming
from panicd.qemu.event_outlet import Heard
from panicd.qemu.exchange import Command
from panicd.qemu.monitor_error import CommandError, SessionLostError
from panicd.rules.capability import UNKNOWN_VERSION, Capability
from panicd.rules.machine.vm import Vm, follow
from panicd.rules.qapi import RunState
from tests.parts.fake_libvirtd import FakeLibvirtd
from tests.parts.libvirt_client import connected
from tests.parts.patience import fail_after

LOOK_UP, GET_STATE = Procedure.DOMAIN_LOOKUP_BY_UUID, Procedure.DOMAIN_GET_STATE
RESET, RESUME = Procedure.DOMAIN_RESET, Procedure.DOMAIN_RESUME
PANICKED, WAS_RESET = (State.CRASHED, 1), (State.PAUSED, 10)


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(30):
        yield


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await trio.lowlevel.checkpoint()


class Follower:
    """What a driver knows of a domain, and asks of it."""

    def __init__(self, fake: FakeLibvirtd, monitor: DomainMonitor) -> None:
        self.fake = fake
        self.monitor = monitor
        self.vm = Vm(RunState.RUNNING, Capability(UNKNOWN_VERSION))
        self.answers: list[object] = []
        monitor.known = lambda: self.vm
        monitor.events.hand_over(self._hear, lambda: None)

    def hear(self, name: str) -> None:
        """Have QEMU's event heard."""
        details = {"GUEST_PANICKED": '{"action":"pause"}'}
        ref = self.monitor.domain
        self.monitor.hear(QemuEvent(ref, name, 1_700_000_000.0, details.get(name, "")))

    def panic(self) -> None:
        """Have its panic heard, which libvirt knows of."""
        self.fake.domain().state = PANICKED
        self.hear("GUEST_PANICKED")
        self.hear("STOP")

    async def looked(self, times: int) -> None:
        """Wait until it was looked so often, and what libvirt said has come."""
        await until(lambda: self.fake.told[GET_STATE] == self.fake.told[LOOK_UP] == times)
        await trio.testing.wait_all_tasks_blocked()

    def give(self, command: str) -> None:
        """Give a command."""
        self.monitor.ask([(command, {})], self.answers.extend, timeout=60)

    def _hear(self, heard: Heard) -> None:
        self.vm = follow(self.vm, heard.event)


@asynccontextmanager
async def followed(directory: Path) -> AsyncIterator[Follower]:
    async with (
        FakeLibvirtd.start(directory) as fake,
        connected(fake.uri) as listener,
        trio.open_nursery() as nursery,
    ):
        timers = Timers()
        nursery.start_soon(timers.run)
        yield Follower(fake, DomainMonitor(listener.client, fake.domain().ref, timers))
        nursery.cancel_scope.cancel()


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look holds for as long as a busy machine may take."""
    monkeypatch.setattr(look, "HOLDS", 60.0)


@pytest.mark.usefixtures("long")
async def test_what_was_asked_at_the_panic_is_not_asked_again(socket_dir: Path) -> None:
    async with followed(socket_dir) as one:
        one.panic()
        await one.looked(1)
        one.give("system_reset")
        await until(lambda: bool(one.answers))
        assert one.answers == [{}]
        assert one.fake.told[GET_STATE] == 1


async def test_what_was_asked_longer_ago_is_asked_anew(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have ended the domain and started it anew."""
    monkeypatch.setattr(look, "HOLDS", 0.0)
    async with followed(socket_dir) as one:
        one.panic()
        await one.looked(1)
        one.fake.domain().id = 77
        one.give("system_reset")
        await until(lambda: bool(one.answers))
        assert isinstance(one.answers[0], SessionLostError)
        assert not one.fake.told[RESET]


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("heard", ["RESUME", "RESET"])
async def test_what_was_asked_before_something_happened_is_asked_anew(
    socket_dir: Path, heard: str
) -> None:
    async with followed(socket_dir) as one:
        one.panic()
        await one.looked(1)
        one.fake.domain().state = (State.RUNNING, 1)
        one.hear(heard)
        one.give("quit")
        await until(lambda: bool(one.answers))
        assert one.fake.told[GET_STATE] == 2


@pytest.mark.usefixtures("long")
async def test_a_flood_of_panics_has_libvirt_asked_once(socket_dir: Path) -> None:
    async with followed(socket_dir) as one:
        for _ in range(1000):
            one.panic()
        await one.looked(1)


async def test_what_a_panic_leads_to_goes_before_the_look(socket_dir: Path) -> None:
    """panicd puts it on record, which takes longest."""
    async with followed(socket_dir) as one:
        looks: list[object] = []
        one.monitor.events.hand_over(lambda _: looks.append(one.monitor.look), lambda: None)
        one.hear("GUEST_PANICKED")
        assert looks == [None]
        assert one.monitor.looked_ahead


@pytest.mark.usefixtures("long")
async def test_a_question_at_the_panic_is_the_look(socket_dir: Path) -> None:
    async with followed(socket_dir) as one:
        questions: list[object] = []

        def hear(_: Heard) -> None:
            commands: list[Command] = [("query-migrate", {}), ("query-status", {})]
            questions.append(one.monitor.ask(commands, one.answers.extend, timeout=60))

        one.monitor.events.hand_over(hear, lambda: None)
        one.fake.domain().state = PANICKED
        one.hear("GUEST_PANICKED")
        await one.looked(1)
        assert one.answers == [{"status": "none"}, {"status": "guest-panicked"}]
        assert one.fake.told[Procedure.DOMAIN_GET_JOB_STATS] == 1


async def test_a_look_is_written_at_once(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirtd wakes up once for it."""
    writes: list[bytes] = []
    write = Connection._write_some

    def seen(connection: Connection) -> None:
        writes.append(bytes(connection._unwritten))
        write(connection)

    async with followed(socket_dir) as one:
        monkeypatch.setattr(Connection, "_write_some", seen)
        one.hear("GUEST_PANICKED")
        assert len(writes) == 1
        assert len(list(Incoming().take(writes[0]))) == 3


@pytest.mark.usefixtures("long")
async def test_a_hung_look_holds_nothing_up(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "ANSWERS_WITHIN", 0.1)
    async with followed(socket_dir) as one:
        one.fake.faults.hangs = {LOOK_UP, GET_STATE}
        one.panic()
        await until(lambda: one.fake.told[GET_STATE] == 1)
        one.fake.faults.hangs = set()
        one.give("system_reset")
        await until(lambda: bool(one.answers))
        assert one.answers == [{}]


async def test_a_reset_that_libvirt_has_not_answered_is_waited_for(socket_dir: Path) -> None:
    """QEMU tells of it before libvirt has taken it in, and says 'crashed' until then."""
    async with followed(socket_dir) as one:
        one.panic()
        one.fake.faults.hangs = {RESET}
        one.give("system_reset")
        await until(lambda: bool(one.fake.told[RESET]))
        one.hear("RESET")
        asked = one.fake.told[GET_STATE]
        one.give("cont")
        await until(lambda: one.fake.told[GET_STATE] > asked + 2)
        assert not one.monitor.events.ended
        assert not one.fake.told[RESUME]
        await one.fake.go_on()
        assert one.fake.domain().state == WAS_RESET
        await until(lambda: len(one.answers) == 2)
        assert one.answers == [{}, {}]


@pytest.mark.usefixtures("long")
async def test_a_look_from_before_libvirt_knew_is_made_anew(socket_dir: Path) -> None:
    """It is asked when QEMU tells of the reset, and libvirt answers that before it is done."""
    async with followed(socket_dir) as one:
        one.panic()
        one.fake.faults.hangs = {RESET}
        one.give("system_reset")
        await until(lambda: bool(one.fake.told[RESET]))
        asked = one.fake.told[GET_STATE]
        one.hear("RESET")
        await one.looked(asked + 1)
        await one.fake.go_on()
        await until(lambda: bool(one.answers))
        one.give("cont")
        await until(lambda: len(one.answers) == 2)
        assert one.answers == [{}, {}]


@pytest.mark.usefixtures("long")
@pytest.mark.usefixtures("long")
async def test_a_state_from_before_libvirt_took_the_panic_in_is_asked_anew(
    socket_dir: Path,
) -> None:
    """It is no guest that somebody has let run."""
    async with followed(socket_dir) as one:
        one.hear("GUEST_PANICKED")
        one.hear("STOP")
        await one.looked(1)  # libvirt says that it runs
        one.fake.domain().state = PANICKED
        one.monitor.taken_in(is_still=True)
        one.give("query-status")
        await until(lambda: bool(one.answers))
        assert one.answers == [{"status": "guest-panicked"}]
        assert one.fake.told[GET_STATE] == 2
        assert not one.monitor.events.ended


@pytest.mark.parametrize("question", [LOOK_UP, GET_STATE], ids=["start", "state"])
async def test_a_question_that_is_lost_before_a_command_is_asked_anew(
    socket_dir: Path, question: Procedure
) -> None:
    """Nothing was told by then: the guest is as it was, and the command is not on its way."""
    async with followed(socket_dir) as one:
        one.panic()
        await one.looked(1)
        one.monitor.look = None
        one.fake.faults.hangs = {question}
        one.give("quit")
        await until(lambda: one.fake.told[question] == 2)
        one.fake.faults.hangs = set()
        await one.fake.end()
        await until(lambda: bool(one.answers))
        assert one.answers == [{}]
        assert one.fake.told[Procedure.DOMAIN_DESTROY_FLAGS] == 1


@pytest.mark.parametrize("command", ["system_reset", "quit"])
async def test_a_guest_that_is_let_run_before_the_command_is_left_alone(
    socket_dir: Path, command: str
) -> None:
    """What libvirt says and what was heard agree by then: that it runs."""
    async with followed(socket_dir) as one:
        one.panic()
        await one.looked(1)
        one.monitor.look = None
        one.fake.faults.hangs = {GET_STATE}
        one.give(command)
        await until(lambda: one.fake.told[GET_STATE] == 2)
        one.fake.domain().state = State.RUNNING, 5
        one.hear("RESUME")
        await one.fake.go_on()
        await until(lambda: bool(one.answers))
        assert isinstance(one.answers[0], CommandError)
        assert not one.fake.told[RESET] + one.fake.told[Procedure.DOMAIN_DESTROY_FLAGS]


async def test_one_that_has_no_room_waits_in_line(socket_dir: Path) -> None:
    """Nothing is known from just now any more by then."""
    async with followed(socket_dir) as one:
        one.fake.faults.hangs = {Procedure.DOMAIN_GET_IOTHREAD_INFO}
        for _ in range(2):
            question = requests.io_threads(one.monitor.domain)
            one.monitor.client.ask(question, lambda _: None, timeout=60)
        one.panic()
        await one.looked(1)
        one.give("system_reset")
        await trio.testing.wait_all_tasks_blocked()
        assert not one.fake.told[RESET]
        one.fake.domain().id = 77
        await one.fake.go_on()
        await until(lambda: bool(one.answers))
        assert isinstance(one.answers[0], SessionLostError)
        assert not one.fake.told[RESET]


async def test_a_dump_whose_connection_ends_is_begun_again(socket_dir: Path) -> None:
    """It has not failed: it is the only one that there will be of this guest."""
    async with followed(socket_dir) as one:
        one.panic()
        client, domain = one.monitor.client, one.monitor.domain
        one.fake.faults.hangs = {Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT}

        async def dump() -> None:
            with pytest.raises(SessionLostError):
                await dumper(client, domain)(socket_dir / "dump", "elf", 60.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dump)
            await until(lambda: bool(one.fake.told[Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT]))
            await one.fake.end()


@pytest.mark.parametrize(
    ("command", "procedure"),
    [("system_reset", RESET), ("quit", Procedure.DOMAIN_DESTROY_FLAGS)],
    ids=["reset", "quit"],
)
async def test_what_a_lost_connection_left_unknown_may_yet_be_heard(
    socket_dir: Path, command: str, procedure: Procedure
) -> None:
    """The line for commands has ended, and the one that tells of what came of it has not."""
    async with followed(socket_dir) as one:
        one.panic()
        one.fake.faults.hangs = {procedure}
        one.give(command)
        await until(lambda: bool(one.fake.told[procedure]))
        for line in list(one.monitor.client._lines):
            line.abort("the connection ended")
        if procedure is RESET:
            one.hear("RESET")
        assert not one.answers
        one.monitor.end("libvirt is away")
        assert isinstance(one.answers[0], SessionLostError)
