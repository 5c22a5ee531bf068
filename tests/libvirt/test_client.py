"""A client of libvirt's, when libvirtd or a QEMU is not as it should be."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from panicd.libvirt import introduction, requests
from panicd.libvirt.client import (
    LINES_MOST,
    OPENED_WITHIN,
    WAKES_UP_WITHIN,
    Asked,
    Client,
    Standing,
)
from panicd.libvirt.connection import QUIET, UNDER_WAY_MOST, Connection
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtLostError,
    LibvirtRefusedError,
    LibvirtSilentError,
)
from panicd.libvirt.protocol import DomainRef, EventKind, Procedure, State
from panicd.libvirt.wire import (
    MESSAGE_MOST,
    QEMU_PROGRAM,
    REMOTE_PROGRAM,
    Kind,
    Message,
    Status,
)
from panicd.libvirt.xdr import pack_int, pack_opaque, pack_text, pack_uint
from tests.parts.background import background
from tests.parts.fake_libvirtd import PICTURE, FakeDomain, FakeLibvirtd
from tests.parts.libvirt_client import ANSWERED_WITHIN, Listener, connected
from tests.parts.patience import fail_after


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(30):
        yield


async def call(listener: Listener, request: requests.Request[Any]) -> Any:
    return await listener.client.call(request, timeout=ANSWERED_WITHIN)


# A libvirtd that goes away.


async def test_no_descriptor_for_it_is_a_libvirt_that_is_away(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    told = trio.Event()
    async with FakeLibvirtd.start(socket_dir) as fake, background() as nursery:
        client = Client(fake.uri, heard=lambda _e: None, changed=lambda _s: told.set())
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", none_left)
            nursery.start_soon(client.run)
            await told.wait()
            assert "Too many open files" in client.problem
        while client.standing is not Standing.UP:
            told = trio.Event()
            await told.wait()


async def test_what_it_said_before_it_went_away_is_heard() -> None:
    """What follows from the first event can't be written any more, and keeps nothing from that."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    payload = pack_int(1) + DomainRef("vm", str(UUID(int=1)), 1).pack() + pack_int(8) + pack_int(0)
    procedure = Procedure.DOMAIN_EVENT_CALLBACK_LIFECYCLE
    event = Message(REMOTE_PROGRAM, procedure, Kind.EVENT, 0, Status.OK, payload).pack()
    heard: list[object] = []
    answers: list[object] = []

    def hear(said: object) -> None:
        heard.append(said)
        connection.call(requests.list_domains(), answers.append)

    connection = Connection(ours, hear)
    theirs.sendall(event * 3)
    theirs.close()
    await connection.run()
    assert len(heard) == 3
    assert [type(answer) for answer in answers] == [LibvirtAwayError] * 2 + [LibvirtLostError]


# A QEMU that hangs.


async def test_one_domain_s_hung_qemu_delays_no_other(socket_dir: Path) -> None:
    domains = [FakeDomain(f"vm-{number}", number) for number in range(1, 9)]
    async with FakeLibvirtd.start(socket_dir, *domains) as fake, connected(fake.uri) as listener:
        hung = domains[0].ref
        fake.faults.hangs = {Procedure.DOMAIN_RESET}
        late = [
            listener.client.ask(requests.reset(hung), lambda _: None, timeout=1000)
            for _ in range(50)
        ]
        await wait_all_tasks_blocked()
        assert fake.told[Procedure.DOMAIN_RESET] == 2, "the others wait in line"
        fake.faults.hangs = set()
        for domain in domains[1:]:
            await call(listener, requests.reset(domain.ref))
        await call(listener, requests.destroy(hung))
        assert fake.told[Procedure.DOMAIN_RESET] == 2 + 7
        assert all(asked.done is not None for asked in late)


async def test_calls_of_many_hung_qemus_leave_room_to_end_them(socket_dir: Path) -> None:
    domains = [FakeDomain(f"vm-{number}", number) for number in range(1, 60)]
    async with FakeLibvirtd.start(socket_dir, *domains) as fake, connected(fake.uri) as listener:
        fake.faults.hangs = {Procedure.DOMAIN_RESET}
        for domain in domains:
            listener.client.ask(requests.reset(domain.ref), lambda _: None, timeout=1000)
        while fake.told[Procedure.DOMAIN_RESET] < LINES_MOST * (UNDER_WAY_MOST - 1):
            await wait_all_tasks_blocked(0.01)
        for domain in domains:
            await call(listener, requests.state_of(domain.ref))
            await call(listener, requests.destroy(domain.ref))
        assert fake.told[Procedure.DOMAIN_RESET] == LINES_MOST * (UNDER_WAY_MOST - 1)
        assert fake.most_under_way == UNDER_WAY_MOST


async def test_a_call_that_is_not_answered_in_time_may_have_been_carried_out(
    socket_dir: Path,
) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.hangs = {Procedure.DOMAIN_RESET}
        domain = fake.domain().ref
        with pytest.raises(LibvirtSilentError, match=r"no answer within 0\.05 s"):
            await listener.client.call(requests.reset(domain), timeout=0.05)
        assert listener.client.standing is Standing.UP


async def test_what_waits_in_line_when_its_time_is_over_was_told_to_nobody(
    socket_dir: Path,
) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.hangs = {Procedure.DOMAIN_RESET}
        domain = fake.domain().ref
        for _ in range(2):
            listener.client.ask(requests.reset(domain), lambda _: None, timeout=1000)
        with pytest.raises(LibvirtAwayError, match="not its turn"):
            await listener.client.call(requests.resume(domain), timeout=0.05)
        assert not fake.told[Procedure.DOMAIN_RESUME]


async def test_who_gives_up_in_line_is_never_sent(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.hangs = {Procedure.DOMAIN_RESET}
        domain = fake.domain().ref
        for _ in range(2):
            listener.client.ask(requests.reset(domain), lambda _: None, timeout=1000)
        with trio.move_on_after(0.05):
            await call(listener, requests.resume(domain))
        await fake.go_on()
        await call(listener, requests.suspend(domain))
        assert not fake.told[Procedure.DOMAIN_RESUME]


async def test_calls_that_are_cancelled_leave_nothing_behind(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        domain = fake.domain().ref
        for _ in range(300):
            with trio.CancelScope() as scope:
                scope.cancel()
                await call(listener, requests.state_of(domain))
        assert (await call(listener, requests.state_of(domain))).state == State.RUNNING
        gc.collect()
        asked = [each for each in gc.get_objects() if isinstance(each, Asked)]
        # What is late is taken off the heap of time limits when it is due.
        assert all(each.done is None for each in asked)
        assert len(asked) <= 301


# A libvirtd that goes away, or says nothing.


async def test_there_is_none_and_then_there_is_one(socket_dir: Path) -> None:
    uri = f"qemu:///system?socket={socket_dir}/libvirt-sock"
    async with connected(uri, waits=False) as listener:
        await listener.wait(lambda: "No such file" in listener.client.problem)
        with pytest.raises(LibvirtAwayError, match="No such file"):
            await call(listener, introduction.lib_version())
        async with FakeLibvirtd.start(socket_dir):
            await listener.wait_standing(Standing.UP)
            assert await call(listener, introduction.lib_version()) == 9_000_000
        await listener.wait_standing(Standing.AWAY)
        async with FakeLibvirtd.start(socket_dir):
            await listener.wait_standing(Standing.UP)
            assert listener.client.generation == 2


async def test_it_dies_between_a_call_and_its_answer(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.dies_after = Procedure.DOMAIN_DESTROY_FLAGS
        with pytest.raises(LibvirtLostError, match="ended"):
            await call(listener, requests.destroy(fake.domain().ref))
        assert fake.domain().id == -1, "it was done all the same"
        await listener.wait_standing(Standing.UP)


async def test_what_waits_in_line_when_it_dies_was_told_to_nobody(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.hangs = {Procedure.DOMAIN_RESET}
        domain = fake.domain().ref
        answers: list[object] = []
        for _ in range(5):
            listener.client.ask(requests.reset(domain), answers.append, timeout=1000)
        await wait_all_tasks_blocked()
        await fake.end()
        await listener.wait_standing(Standing.AWAY)
        assert [type(answer) for answer in answers].count(LibvirtLostError) == 2
        assert [type(answer) for answer in answers].count(LibvirtAwayError) == 3


async def test_silence_shows_after_two_quiet_spells_and_ends_after_half_a_minute(
    socket_dir: Path, mock_clock: MockClock
) -> None:
    async def quiet() -> None:
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(QUIET)
        await wait_all_tasks_blocked(0.01)

    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        for _ in range(10):
            await quiet()
        assert listener.standings == [Standing.UP], "it was asked, and has answered"
        answers: list[object] = []
        with fake.frozen():
            listener.client.ask(introduction.lib_version(), answers.append, timeout=1000)
            await quiet()
            assert listener.standings == [Standing.UP]
            await quiet()
            assert listener.standings == [Standing.UP, Standing.SILENT]
            with pytest.raises(LibvirtAwayError):
                await call(listener, introduction.lib_version())
            assert answers == []
        await listener.wait_standing(Standing.UP)
        assert answers == [9_000_000], "what it was told before, it has answered"
        assert listener.client.generation == 1
        with fake.frozen():
            await quiet()
            await quiet()
            mock_clock.jump(WAKES_UP_WITHIN)
            await wait_all_tasks_blocked(0.01)
            assert listener.standings[-2:] == [Standing.SILENT, Standing.AWAY]
            mock_clock.jump(1.0)
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(OPENED_WITHIN)
            await wait_all_tasks_blocked(0.01)
            assert listener.standings[-1] is Standing.SILENT, "it takes connections"
        mock_clock.autojump_threshold = 0.05
        await listener.wait_standing(Standing.UP)
        assert listener.client.generation == 2


async def test_a_panicd_that_stood_still_itself_takes_nobody_for_silent(
    socket_dir: Path, mock_clock: MockClock
) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(10 * WAKES_UP_WITHIN)
        await wait_all_tasks_blocked(0.01)
        assert listener.standings == [Standing.UP]
        await call(listener, requests.state_of(fake.domain().ref))


async def test_many_events_come_in_their_order(socket_dir: Path) -> None:
    domains = [FakeDomain(f"vm-{number}", number) for number in range(1, 2001)]
    async with FakeLibvirtd.start(socket_dir, *domains) as fake, connected(fake.uri) as listener:
        assert len(await call(listener, requests.list_domains())) == 2000
        assert len(await call(listener, requests.states())) == 2000
        for domain in domains:
            fake.panic(domain.name)
        await listener.wait(lambda: len(listener.events) == 3 * 2000)
        assert [event.domain.name for event in listener.events[::3]] == [
            domain.name for domain in domains
        ]
        resumed = trio.Event()
        left = set(range(2000))

        def act(index: int, domain: DomainRef) -> None:
            def was_reset(answer: object) -> None:
                assert answer is None
                listener.client.ask(requests.resume(domain), runs, timeout=ANSWERED_WITHIN)

            def runs(answer: object) -> None:
                assert answer is None
                left.remove(index)
                if not left:
                    resumed.set()

            listener.client.ask(requests.reset(domain), was_reset, timeout=ANSWERED_WITHIN)

        for index, domain in enumerate(domains):
            act(index, domain.ref)
        await resumed.wait()
        assert fake.most_under_way <= UNDER_WAY_MOST
        assert all(domain.state[0] == State.RUNNING for domain in domains)


async def test_it_writes_a_byte_at_a_time(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake:
        fake.faults.piece = 1
        async with connected(fake.uri) as listener:
            fake.panic()
            await listener.wait_event(EventKind.CRASHED, 0)
            assert await call(listener, introduction.lib_version()) == 9_000_000


# Who may.


@pytest.mark.parametrize(
    ("auth", "lets_in", "problem"),
    [(2, True, ""), (2, False, "access denied"), (1, True, "asks for a password")],
)
async def test_who_has_to_prove_who_he_is(
    socket_dir: Path, auth: int, lets_in: bool, problem: str
) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake:
        fake.faults.auth, fake.faults.polkit = auth, lets_in
        async with connected(fake.uri, waits=False) as listener:
            if problem:
                await listener.wait(lambda: problem in listener.client.problem)
                assert listener.client.standing is Standing.AWAY
                assert not fake.opened
            else:
                await listener.wait_standing(Standing.UP)
                assert fake.told[Procedure.AUTH_POLKIT] == 2, "once on each connection"
                assert set(fake.opened) == {"qemu:///system"}


async def test_qemu_s_events_may_not_be_had(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake:
        fake.faults.qemu_events = False
        async with connected(fake.uri) as listener:
            assert not listener.client.tells_qemu_events
            fake.panic()
            await listener.wait_event(EventKind.CRASHED, 0)
            assert listener.of_qemu() == []


# A libvirtd that lies.

REPLY_OF_STATE = Message(
    REMOTE_PROGRAM, Procedure.DOMAIN_GET_STATE, Kind.REPLY, 4_000_000, Status.OK, b"\0" * 8
)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(struct.pack(">I", 0), id="a message without a header"),
        pytest.param(struct.pack(">I", MESSAGE_MOST + 1), id="a message too long"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(struct.pack(">7I", 28, 1, 1, 1, 2, 0, 0), id="another program"),
        pytest.param(struct.pack(">7I", 28, REMOTE_PROGRAM, 2, 1, 2, 0, 0), id="another version"),
        pytest.param(struct.pack(">7I", 28, REMOTE_PROGRAM, 1, 1, 2, 0, 9), id="another status"),
        pytest.param(struct.pack(">7I", 28, REMOTE_PROGRAM, 1, 1, 5, 0, 0), id="another kind"),
        pytest.param(REPLY_OF_STATE.pack(), id="an answer to nobody"),
        pytest.param(
            Message(REMOTE_PROGRAM, 211, Kind.STREAM, 1, Status.CONTINUE, b"x").pack(),
            id="a piece for nobody",
        ),
        pytest.param(
            Message(REMOTE_PROGRAM, 318, Kind.EVENT, 0, Status.OK, b"\0" * 11).pack(),
            id="an event that is cut off",
        ),
        pytest.param(
            Message(QEMU_PROGRAM, 6, Kind.EVENT, 0, Status.OK, b"\xff" * 64).pack(),
            id="an event with endless text",
        ),
    ],
)
async def test_nonsense_ends_the_connection_and_no_more(socket_dir: Path, said: bytes) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.say(said)
        await listener.wait(lambda: Standing.AWAY in listener.standings)
        await listener.wait_standing(Standing.UP)
        assert await call(listener, introduction.lib_version()) == 9_000_000


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (requests.state_of, b""),
        (requests.state_of, b"\0" * 12),
        (requests.describe, pack_uint(1 << 31)),
        (requests.describe, pack_uint(5) + b"x"),
        (requests.reset, b"\0\0\0\0"),
        (lambda domain: requests.peek(domain, 0, 16), pack_opaque(b"x" * 12)),
        (lambda domain: requests.look_up(domain.uuid), pack_text("x") + b"\0" * 16),
        (lambda _domain: requests.list_domains(), pack_uint(1 << 30)),
        (lambda _domain: requests.list_domains(), pack_uint(0xFFFFFFFF) + b"\0" * 4000),
        (lambda _domain: requests.states(), pack_uint(1) + b"\0" * 4000),
        (requests.job, pack_int(1) + pack_uint(1) + pack_text("operation") + pack_int(99)),
    ],
)
async def test_an_answer_that_makes_no_sense_is_none(
    socket_dir: Path, request_of: Callable[[DomainRef], requests.Request[Any]], said: bytes
) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        request = request_of(fake.domain().ref)
        fake.faults.lies = {request.procedure: said}
        with pytest.raises(LibvirtLostError, match="makes no sense"):
            await call(listener, request)
        fake.faults.lies = {}
        await listener.wait(lambda: listener.client.standing is Standing.UP)
        assert await call(listener, introduction.lib_version()) == 9_000_000


async def test_what_it_says_no_with_is_printable_and_bounded(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        stranger = DomainRef("\x1b[31m\n" * 1000, "11111111-2222-3333-4444-555555555555", 1)
        with pytest.raises(LibvirtRefusedError) as refused:
            await call(listener, requests.state_of(stranger))
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 500


# Streams.


@pytest.mark.parametrize("first", [False, True])
async def test_a_picture_comes_in_pieces(socket_dir: Path, first: bool) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.streams_first = first
        picture = bytearray()
        kind = await listener.client.call(
            requests.screenshot(fake.domain().ref), timeout=ANSWERED_WITHIN, take=picture.extend
        )
        assert kind == "image/png"
        assert picture == PICTURE


@pytest.mark.parametrize("first", [False, True])
async def test_a_picture_that_is_not_wanted_any_more(socket_dir: Path, first: bool) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.faults.streams_first = first
        taken: list[bytes] = []
        with trio.CancelScope() as scope:

            def take(piece: bytes) -> None:
                taken.append(piece)
                scope.cancel()

            await listener.client.call(
                requests.screenshot(fake.domain().ref), timeout=ANSWERED_WITHIN, take=take
            )
        assert len(taken) == 1
        await call(listener, requests.reset(fake.domain().ref))


async def test_a_bug_of_whoever_listens_is_not_hidden(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with connected(fake.uri) as listener:

                def fails(_answer: object) -> None:
                    raise ZeroDivisionError

                listener.client.ask(introduction.lib_version(), fails, timeout=ANSWERED_WITHIN)
                await trio.sleep_forever()
