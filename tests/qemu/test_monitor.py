"""One QMP session against a monitor that behaves, and against every sort that does not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from panicd.fleet.connector import connect
from panicd.qemu.event_outlet import Heard
from panicd.qemu.monitor import (
    CommandError,
    Monitor,
    NoReplyError,
    SessionLostError,
    SilentError,
    UncertainError,
    UnreachableError,
    event_loop,
    open_monitor,
    pulse,
)
from panicd.qemu.pending import Question
from panicd.rules.qapi import GuestPanickedEvent, StopEvent
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.profile import QEMU_7_2, QEMU_10_0, Profile

TIME_LIMIT = 10.0
SOON = 0.05
"""Seconds to wait for an answer that does not come."""


@asynccontextmanager
async def session(
    directory: Path, fake: FakeQemu | None = None
) -> AsyncIterator[tuple[Monitor, FakeQemu]]:
    vm = fake or FakeQemu(directory / "vm.qmp")
    with fail_after(TIME_LIMIT):
        async with vm.running(), event_loop():
            sock = await connect(vm.socket)
            async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
                yield monitor, vm


@pytest.mark.parametrize("profile", [QEMU_7_2, QEMU_10_0])
async def test_greeting_tells_the_version(socket_dir: Path, profile: Profile) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    async with session(socket_dir, fake) as (monitor, _):
        assert monitor.version == profile.version


async def test_answers_come_back_and_errors_are_raised(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, _):
        answer = await monitor.execute("query-name", timeout=TIME_LIMIT)
        assert answer == {"name": "vm"}
        with pytest.raises(CommandError) as caught:
            await monitor.execute("fly", timeout=TIME_LIMIT)
        assert caught.value.error_class == "CommandNotFound"
        assert caught.value.description == "The command fly has not been found"


async def test_several_commands_go_out_at_once_and_are_answered_in_order(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        asked = ["query-name", "fly", "query-status"]
        name, failed, status = await monitor.execute_all(
            [(command, {}) for command in asked], timeout=TIME_LIMIT
        )
        assert name == {"name": "vm"}
        assert isinstance(failed, CommandError)
        assert isinstance(status, dict)
        assert vm.commands[-3:] == asked


async def test_events_are_heard_from_the_start_to_the_end(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.machine.panic_action = "pause"
        vm.panic()
        heard: list[Heard] = []
        ended = trio.Event()
        monitor.events.hand_over(heard.append, ended.set)
        await monitor.execute("query-name", timeout=TIME_LIMIT)
        assert [type(entry.event) for entry in heard] == [GuestPanickedEvent, StopEvent]
        vm.exit()
        await ended.wait()


async def test_answer_that_does_not_come_leaves_the_session_usable(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.swallow("query-name")
        with pytest.raises(NoReplyError, match="query-name: no answer in"):
            await monitor.execute("query-name", timeout=SOON)
        assert await monitor.execute("query-name", timeout=TIME_LIMIT) == {"name": "vm"}


async def test_answer_behind_many_events_is_waited_for_at_a_higher_pace(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.machine.panic_action = "none"
        monitor.pace.share = 1e-6  # with no more than that the answer would take a day
        for _ in range(5000):
            vm.panic()
        assert await monitor.execute("query-name", timeout=TIME_LIMIT) == {"name": "vm"}
        assert not monitor.pace.hurried


async def test_session_that_is_cut_leaves_the_command_uncertain(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.cut_after("cont")
        with pytest.raises(SessionLostError, match="before an answer came"):
            await monitor.execute("cont", timeout=TIME_LIMIT)
        with pytest.raises(SessionLostError):
            await monitor.execute("cont", timeout=TIME_LIMIT)
        assert vm.commands.count("cont") == 1


NESTED = b'{"return": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\r\n"

GARBAGE = {
    "text": b"Segmentation fault\r\n",
    "not-utf-8": b"\xff\xfe\xfd\r\n",
    "array": b"[1, 2]\r\n",
    "empty-line": b"\r\n",
    "number": b'{"return": ' + b"9" * 5000 + b"}\r\n",
    "nesting": NESTED,
    "endless-line": b'{"return": "' + b"A" * (2 << 20),
    "error-without-sense": b'{"error": 7, "id": 1}\r\n',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_leaves_the_command_uncertain_and_harms_no_other(
    socket_dir: Path, garbage: bytes
) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.garble("query-name", garbage)
        with pytest.raises(UncertainError):
            await monitor.execute("query-name", timeout=1.0)
        await pulse()  # the loop that all monitors share still turns


@pytest.mark.parametrize("blank", [b"\v", b"\f", b"\xc2\xa0"])
async def test_what_is_no_blank_in_json_is_none_here(socket_dir: Path, blank: bytes) -> None:
    async with session(socket_dir) as (monitor, vm):
        event = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}'
        vm.garble("query-name", blank + event + b"\r\n")
        with pytest.raises(SessionLostError):
            await monitor.execute("query-name", timeout=1.0)


@pytest.mark.parametrize(
    ("greeting", "error", "says"),
    [
        (b"hello\r\n", UnreachableError, "no QMP session"),
        (b"[]\r\n", UnreachableError, "no QMP session"),
        (b'{"QMP": []}\r\n', UnreachableError, "no QMP session"),
        (NESTED, UnreachableError, "no QMP session"),
        (b"", SilentError, "no greeting within"),
    ],
    ids=["text", "array", "object", "nesting", "none"],
)
async def test_without_a_greeting_there_is_no_session(
    socket_dir: Path, greeting: bytes, error: type[UnreachableError], says: str
) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(socket_dir / "vm.qmp", greeting=greeting).running() as vm, event_loop():
            sock = await connect(vm.socket)
            with pytest.raises(UnreachableError, match=says) as caught:
                async with open_monitor(sock, timeout=SOON if not greeting else TIME_LIMIT):
                    pass
            assert caught.type is error
            assert sock.fileno() == -1  # it was closed


async def test_pretty_json_is_named(socket_dir: Path) -> None:
    greeting = b'{\r\n    "QMP": {\r\n        "version": {}\r\n    }\r\n}\r\n'
    with fail_after(TIME_LIMIT):
        async with (
            FakeQemu(socket_dir / "vm.qmp", greeting=greeting).running() as vm,
            event_loop(),
        ):
            sock = await connect(vm.socket)
            with pytest.raises(UnreachableError, match="-qmp-pretty"):
                async with open_monitor(sock, timeout=TIME_LIMIT):
                    pass


async def test_a_greeting_without_an_answer_to_the_negotiation_is_named(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(socket_dir / "vm.qmp").running() as vm, event_loop():
            vm.swallow("qmp_capabilities")
            sock = await connect(vm.socket)
            with pytest.raises(SilentError, match="did not answer qmp_capabilities") as caught:
                async with open_monitor(sock, timeout=SOON):
                    pass
            assert caught.value.greeted


async def test_event_before_the_negotiation_s_answer_is_named(socket_dir: Path) -> None:
    event = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}}\r\n'
    with fail_after(TIME_LIMIT):
        async with FakeQemu(socket_dir / "vm.qmp").running() as vm, event_loop():
            vm.garble("qmp_capabilities", event)
            sock = await connect(vm.socket)
            with pytest.raises(UnreachableError) as caught:
                async with open_monitor(sock, timeout=TIME_LIMIT):
                    pass
            assert "Error" not in str(caught.value)


async def test_file_descriptor_is_handed_over(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        reading, writing = os.pipe()
        try:
            await monitor.send_fd(writing, "pipe", timeout=TIME_LIMIT)
        finally:
            os.close(writing)
        await monitor.execute(
            "dump-guest-memory",
            {"paging": False, "protocol": "fd:pipe", "detach": True},
            timeout=TIME_LIMIT,
        )
        # The answer comes before the dump, which is written by this thread.
        async with trio.lowlevel.FdStream(reading) as dump:
            assert await dump.receive_some(4) == b"\x7fELF"
        assert vm.commands[-2:] == ["getfd", "dump-guest-memory"]


async def test_nothing_is_sent_while_a_descriptor_is_taken(socket_dir: Path) -> None:
    """QEMU's monitor reads in a thread of its own: 10.0.13 crashed of both at once."""
    async with session(socket_dir) as (monitor, vm):
        fault = vm.hold_reply("getfd")
        told: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(_hand_over, monitor, TIME_LIMIT))
            while "getfd" not in vm.commands:
                await trio.lowlevel.checkpoint()
            held = monitor.ask([("query-name", {})], told.extend, timeout=TIME_LIMIT)
            given_up = monitor.ask([("query-uuid", {})], told.extend, timeout=SOON)
            given_up.give_up()
            await pulse()
            assert vm.commands[-1] == "getfd"
            fault.release()
            await _over(held)
        assert [type(answer) for answer in told] == [NoReplyError, dict]
        assert vm.commands[-2:] == ["getfd", "query-name"]


async def test_one_descriptor_is_taken_after_the_other(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        fault = vm.hold_reply("getfd")
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(partial(_hand_over, monitor, TIME_LIMIT))
            while "getfd" not in vm.commands:
                await trio.lowlevel.checkpoint()
            later = monitor.ask([("query-name", {})], lambda _: None, timeout=TIME_LIMIT)
            await pulse()
            assert vm.commands.count("getfd") == 1
            fault.release()
            await _over(later)
        assert vm.commands[-3:] == ["getfd", "getfd", "query-name"]


@pytest.mark.parametrize("ends", [False, True])
async def test_what_waits_for_a_descriptor_to_be_taken_ends_too(
    socket_dir: Path, *, ends: bool
) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.hold("getfd")
        told: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(_hand_over, monitor, TIME_LIMIT if ends else SOON))
            while "getfd" not in vm.commands:
                await trio.lowlevel.checkpoint()
            held = monitor.ask([("query-name", {})], told.extend, timeout=TIME_LIMIT)
            if ends:
                monitor.abort()
            else:  # it is sent then, and QEMU does not answer
                while not monitor._client._sent:
                    await trio.lowlevel.checkpoint()
                held.give_up()
            await _over(held)
        assert [type(answer) for answer in told] == [SessionLostError if ends else NoReplyError]


async def _over(question: Question) -> None:
    while not question.is_over:
        await trio.lowlevel.checkpoint()


async def _hand_over(monitor: Monitor, timeout: float) -> None:
    reading, writing = os.pipe()
    try:
        with suppress(UncertainError):
            await monitor.send_fd(writing, "pipe", timeout=timeout)
    finally:
        os.close(writing)
        os.close(reading)


async def test_leaving_does_not_wait_for_a_monitor_that_does_not_read(socket_dir: Path) -> None:
    async with session(socket_dir) as (monitor, vm):
        vm.hold("query-name")
        big: dict[str, object] = {"path": "x" * 60_000}
        async with trio.open_nursery() as nursery:
            for _ in range(20):  # more than a socket takes
                nursery.start_soon(_asked_in_vain, monitor, big)


async def _asked_in_vain(monitor: Monitor, arguments: dict[str, object]) -> None:
    with pytest.raises(UncertainError):
        await monitor.execute("query-name", arguments, timeout=SOON)
