"""A D-Bus daemon of a test's own, and a systemd on it that acts by the units' names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.io.trio import DBusConnection, open_dbus_connection

SYSTEMD: Final = "org.freedesktop.systemd1"
JOB: Final = "/org/freedesktop/systemd1/job/7"
MANAGER: Final = DBusAddress("/org/freedesktop/systemd1", SYSTEMD, f"{SYSTEMD}.Manager")
_BUS: Final = """
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="signal"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow send_destination="org.freedesktop.DBus"/>
    {allowed}
  </policy>
</busconfig>
"""


class Bus:
    """A running D-Bus daemon.

    Attributes:
        address: as in ``DBUS_SYSTEM_BUS_ADDRESS``.
        process: the daemon.
    """

    def __init__(self, address: str, process: trio.Process) -> None:
        self.address = address
        self.process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, *, denied: str = "") -> AsyncIterator[Bus]:
        """Run a daemon until this ends; skips the test where none is installed.

        Args:
            directory: for its socket; a short path.
            denied: a method of systemd that nobody may call.
        """
        if shutil.which("dbus-daemon") is None:
            pytest.skip("dbus-daemon is not installed")
        config, socket = directory / "bus.conf", directory / "bus"
        allowed = f'<allow send_destination="{SYSTEMD}"/>'
        if denied:
            method = f'send_interface="{SYSTEMD}.Manager" send_member="{denied}"'
            allowed += f'<deny send_destination="{SYSTEMD}" {method}/>'
        config.write_text(_BUS.format(socket=socket, allowed=allowed))
        process = await trio.lowlevel.open_process(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            await process.stdout.receive_some()
            yield cls(f"unix:path={socket}", process)
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdout.aclose()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[DBusConnection]:
        """Connect to the bus."""
        connection = await open_dbus_connection(self.address)
        async with connection:
            yield connection

    @asynccontextmanager
    async def systemd(self) -> AsyncIterator[FakeSystemd]:
        """Run a systemd on the bus."""
        async with self.connect() as connection, trio.open_nursery() as nursery:
            fake = FakeSystemd(connection)
            await connection.send(message_bus.RequestName(SYSTEMD))
            await connection.receive()
            nursery.start_soon(fake.serve)
            yield fake
            nursery.cancel_scope.cancel()


class FakeSystemd:
    """Answers ``Subscribe`` and ``StartUnit``.

    A job ends as the part of the unit's name before the dot says; ``missing``, ``masked`` and
    ``denied`` are refused with systemd's own errors; ``silent`` has no answer, ``endless`` no end,
    and the job of ``hasty`` ends before it is told of.

    Attributes:
        calls: the methods that were called, with their arguments.
        callers: the unique name of each call's sender.
        asked: set when ``StartUnit`` was called.
    """

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.callers: list[str] = []
        self.asked = trio.Event()

    async def serve(self) -> None:
        """Answer calls, until cancelled or until the bus is gone."""
        with suppress(trio.BrokenResourceError, trio.EndOfChannel):
            while True:
                message = await self._connection.receive()
                if message.header.message_type is MessageType.method_call:
                    await self._answer(message)

    async def end_job(self, unit: str, result: str) -> None:
        """Tell that the job has ended, as systemd tells all who have subscribed."""
        await self._connection.send(job_removed(unit, result))

    async def leave(self) -> None:
        """Give up the name that it has on the bus."""
        await self._connection.send(message_bus.ReleaseName(SYSTEMD))

    async def _answer(self, call: Message) -> None:
        method = call.header.fields[HeaderFields.member]
        self.calls.append((method, call.body))
        self.callers.append(call.header.fields[HeaderFields.sender])
        if method == "Subscribe":
            await self._connection.send(new_method_return(call))
            return
        assert method == "StartUnit", method
        unit = call.body[0]
        kind = unit.partition(".")[0]
        self.asked.set()
        match kind:
            case "silent":
                return
            case "missing":
                await self._refuse(call, f"{SYSTEMD}.NoSuchUnit", f"Unit {unit} not found.")
            case "masked":
                await self._refuse(call, f"{SYSTEMD}.UnitMasked", f"Unit {unit} is masked.")
            case "denied":
                name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
                await self._refuse(call, name, "Interactive authentication required.")
            case "hasty":
                await self.end_job(unit, "done")
                await self._take(call)
            case "endless":
                await self._take(call)
            case _:
                await self._take(call)
                await self.end_job("another.service", "failed")
                await self.end_job(unit, kind)

    async def _take(self, call: Message) -> None:
        await self._connection.send(new_method_return(call, "o", (JOB,)))

    async def _refuse(self, call: Message, name: str, text: str) -> None:
        await self._connection.send(new_error(call, name, "s", (text,)))


def job_removed(unit: str, result: str) -> Message:
    """``JobRemoved`` of the job that ``StartUnit`` made, or for another unit of another job."""
    job = f"{JOB}0" if unit == "another.service" else JOB
    return new_signal(MANAGER, "JobRemoved", "uoss", (7, job, unit, result))
