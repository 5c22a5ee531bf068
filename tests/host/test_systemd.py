"""Starting a unit, on a real D-Bus daemon: how each end of the job is told, and each fault."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from jeepney import HeaderFields, Message, new_method_return
from jeepney.bus_messages import message_bus

from panicd.host.systemd import (
    AccessDeniedError,
    JobFailedError,
    JobLateError,
    NoSuchUnitError,
    NoSystemdError,
    SystemdError,
    UnitRefusedError,
    _Bus,
    start_unit,
)
from tests.parts.patience import fail_after
from tests.parts.systemd import SYSTEMD, Bus, job_removed

LIMIT = 20.0
"""Seconds that are never waited for."""


@pytest.fixture
async def bus(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    async with Bus.start(socket_dir) as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield bus


async def test_a_unit_is_started(bus: Bus) -> None:
    async with bus.systemd() as systemd:
        await start_unit("done.service", LIMIT)
        assert systemd.calls == [("Subscribe", ()), ("StartUnit", ("done.service", "replace"))]


async def test_a_job_may_end_before_it_is_told_of(bus: Bus) -> None:
    async with bus.systemd():
        await start_unit("hasty.service", LIMIT)


@pytest.mark.parametrize(
    ("unit", "error", "said"),
    [
        ("failed.service", JobFailedError, "failed to start (journalctl -u 'failed.service')"),
        ("timeout.service", JobFailedError, "longer than the unit allows"),
        ("dependency.service", JobFailedError, "a unit that it needs"),
        ("skipped.service", JobFailedError, "by a condition of the unit"),
        ("canceled.service", JobFailedError, "cancelled"),
        ("frozen.service", JobFailedError, "frozen.service: frozen"),
        ("missing.service", NoSuchUnitError, "Unit missing.service not found."),
        ("masked.service", UnitRefusedError, "Unit masked.service is masked."),
        ("denied.service", AccessDeniedError, "denied.service: Interactive authentication"),
    ],
)
async def test_a_unit_that_is_not_started_says_why(
    bus: Bus, unit: str, error: type[SystemdError], said: str
) -> None:
    async with bus.systemd():
        with pytest.raises(SystemdError, match=re.escape(said)) as raised:
            await start_unit(unit, LIMIT)
        assert raised.type is error


@pytest.mark.parametrize("unit", ["silent.service", "endless.service"])
async def test_it_is_not_waited_for_beyond_its_time(
    bus: Bus, unit: str, mock_clock: trio.testing.MockClock
) -> None:
    async with bus.systemd() as systemd, trio.open_nursery() as nursery:

        async def let_the_time_pass() -> None:
            await systemd.asked.wait()
            mock_clock.jump(LIMIT)

        nursery.start_soon(let_the_time_pass)
        with pytest.raises(JobLateError, match="not started within 20 s"):
            await start_unit(unit, LIMIT)


async def test_another_connection_can_t_say_that_the_job_has_ended(bus: Bus) -> None:
    """Any local user can send any signal to any connection of the system's bus."""
    async with bus.systemd() as systemd, bus.connect() as liar, trio.open_nursery() as nursery:

        async def lie() -> None:
            await systemd.asked.wait()
            forged = job_removed("endless.service", "failed")
            forged.header.fields[HeaderFields.destination] = systemd.callers[-1]
            await liar.send(forged)
            # The liar's next call is answered: what it sent before has been passed on.
            await liar.send(message_bus.GetId())
            await liar.receive()
            await systemd.end_job("endless.service", "done")

        nursery.start_soon(lie)
        await start_unit("endless.service", LIMIT)


async def test_systemd_may_re_execute_itself_meanwhile(bus: Bus) -> None:
    """It keeps its jobs and who has subscribed, and is on the bus by another unique name."""
    async with bus.systemd() as systemd, bus.connect() as anew, trio.open_nursery() as nursery:

        async def re_execute() -> None:
            await systemd.asked.wait()
            await systemd.leave()
            await anew.send(message_bus.RequestName(SYSTEMD))
            while (await anew.receive()).body != (SYSTEMD,):
                pass  # until NameAcquired
            await anew.send(job_removed("endless.service", "done"))

        nursery.start_soon(re_execute)
        await start_unit("endless.service", LIMIT)


async def test_a_message_of_a_later_d_bus_is_passed_over() -> None:
    """The dbus-daemon of today takes such a field out, which not every bus does."""
    ours, bus = trio.testing.memory_stream_pair()
    serial = 1
    reply = new_method_return(message_bus.GetId(), "s", ("the one",))
    reply.header.fields[HeaderFields.reply_serial] = serial
    strange = with_a_field_of_the_future(job_removed("endless.service", "failed"))
    await bus.send_all(strange + strange + reply.serialise(serial=7))
    assert await _Bus(ours).call(message_bus.GetId()) == ("the one",)


async def test_systemd_that_leaves_the_bus_is_told(bus: Bus) -> None:
    async with bus.systemd() as systemd, trio.open_nursery() as nursery:

        async def stop() -> None:
            await systemd.asked.wait()
            bus.process.terminate()

        nursery.start_soon(stop)
        with pytest.raises(NoSystemdError, match=r"endless\.service: the (bus closed|connection)"):
            await start_unit("endless.service", LIMIT)
        nursery.cancel_scope.cancel()


async def test_a_bus_without_systemd(bus: Bus) -> None:
    with pytest.raises(NoSystemdError, match="systemd1"):
        await start_unit("done.service", LIMIT)
    assert bus.process.poll() is None


async def test_a_bus_that_lets_nobody_ask_systemd(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bus.start(socket_dir, denied="StartUnit") as bus, bus.systemd():
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        with pytest.raises(AccessDeniedError, match=r"done\.service: "):
            await start_unit("done.service", LIMIT)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("unix:path={directory}/none", "No such file"),
        ("unix:path={directory}/file", "Connection refused"),
        ("tcp:host=localhost,port=1", "not supported"),
        ("nonsense", "no D-Bus system bus"),
    ],
)
async def test_no_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address.format(directory=tmp_path))
    with pytest.raises(NoSystemdError, match=said):
        await start_unit("done.service", LIMIT)


@pytest.mark.parametrize(
    "answer", [b"", b"REJECTED EXTERNAL\r\n", b"OK 1\r\nOK 2\r\n", b"x" * 9999]
)
async def test_what_is_no_bus(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    path = str(socket_dir / "bus")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        await listener.bind(path)
        listener.listen()

        async def serve() -> None:
            connection, _ = await listener.accept()
            with connection:
                await connection.recv(100)
                await trio.SocketStream(connection).send_all(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(NoSystemdError):
                await start_unit("done.service", LIMIT)


def with_a_field_of_the_future(message: Message) -> bytes:
    """A message with a header field that its receiver does not know, and has to pass over."""
    message.header.fields[HeaderFields.unix_fds] = 0
    data: bytes = message.serialise(serial=99)
    assert data.count(b"\x09\x01u\0") == 1
    return data.replace(b"\x09\x01u\0", b"\x1f\x01u\0")


@pytest.fixture(autouse=True)
async def _in_time() -> AsyncIterator[None]:
    with fail_after(3 * LIMIT):
        yield
