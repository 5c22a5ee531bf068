"""A small QMP client, for watching a VM from a second monitor: the demonstration's and the tests'.

It shares nothing with panicd's own client: where both agree, two programs read the same bytes.
"""

from __future__ import annotations

import array
import itertools
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from panicd.demo.background import background

Message = dict[str, Any]
"""A QMP message, decoded from JSON."""

KEPT_EVENTS = 10_000
"""Events after so many are counted unread: a flooding guest sends 50,000 a second."""

_RECEIVE_SIZE = 256 * 1024

_NOTED = 30
"""So many of the last messages are noted on an exception."""


class QmpCommandError(Exception):
    """QEMU answered a command with an error."""

    def __init__(self, command: str, error: dict[str, str]) -> None:
        super().__init__(f"{command}: {error['class']}: {error['desc']}")
        self.error_class = error["class"]
        self.desc = error["desc"]


class QmpClosedError(Exception):
    """The monitor's connection ended before what was waited for came."""


class QmpClient:
    """One QMP session. Made by :func:`connect_qmp` or :func:`qmp_over`.

    Everything received stays in :attr:`messages`, in order, so that something can be waited for
    that may have come already. :meth:`mark` and ``since`` narrow that to what came after a point.

    Attributes:
        greeting: QEMU's greeting; empty until it came.
        messages: Everything received after the greeting, in order. A reply carries, as ``command``,
            the name of the command that it answers.
        events_dropped: Events that were counted unread, see ``KEPT_EVENTS``.
        closed: Whether the connection has ended.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.greeting: Message = {}
        self.messages: list[Message] = []
        self.events_dropped = 0
        self.closed = False
        self._events_kept = 0
        self._socket = sock
        self._changed = trio.lowlevel.ParkingLot()
        self._ids = itertools.count(1)
        self._asked: dict[int, str] = {}

    # -- reading back what came

    @property
    def events(self) -> list[Message]:
        """The events received so far, in order."""
        return [message for message in self.messages if "event" in message]

    def mark(self) -> int:
        """The present point in the stream of messages, for use as ``since``."""
        return len(self.messages)

    def sequence(self, since: int = 0) -> list[str]:
        """What came, in order, in words: ``"STOP"``, ``"return cont"``, ``"error cont"``."""
        return [_in_words(message) for message in self.messages[since:]]

    # -- asking

    async def send(self, command: str, arguments: Message | None = None) -> int:
        """Send a command and return its id, without waiting for the answer."""
        return await self._send(command, arguments, ())

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._send_all(data, ())

    async def execute(
        self, command: str, arguments: Message | None = None, *, fds: Sequence[int] = ()
    ) -> Any:
        """Run a command and return what it returned.

        Args:
            command: Its name.
            arguments: Its arguments.
            fds: File descriptors to send along (SCM_RIGHTS), for ``getfd``.

        Raises:
            QmpCommandError: QEMU answered with an error.
            QmpClosedError: The connection ended before an answer came.
        """
        return await self.reply(await self._send(command, arguments, fds))

    async def reply(self, command_id: int) -> Any:
        """Wait for the answer to a command that :meth:`send` sent; as :meth:`execute`."""
        message = await self._wait_message(0, lambda message: message.get("id") == command_id)
        if "error" in message:
            raise QmpCommandError(message["command"], message["error"])
        return message["return"]

    def hang_up(self) -> None:
        """End the session."""
        self._socket.shutdown(socket.SHUT_RDWR)

    # -- waiting

    async def wait_event(self, name: str, *, since: int = 0, count: int = 1) -> Message:
        """Wait until ``count`` events of that name have come since that point; return the last."""
        found = itertools.count(1)
        return await self._wait_message(
            since, lambda message: message.get("event") == name and next(found) == count
        )

    async def wait_any_message(self, *, since: int) -> None:
        """Wait until anything has come since that point."""
        await self._wait_message(since, lambda _: True)

    async def wait_greeting(self) -> None:
        """Wait for the greeting."""
        while not self.greeting:
            await self._wait_change()

    async def wait_closed(self) -> None:
        """Wait until QEMU has closed the connection."""
        while not self.closed:
            await self._changed.park()

    # -- inside

    async def _wait_message(self, since: int, wanted: Callable[[Message], bool]) -> Message:
        position = since
        while True:
            for message in self.messages[position:]:
                if wanted(message):
                    return message
            position = max(position, len(self.messages))
            await self._wait_change()

    async def _wait_change(self) -> None:
        if self.closed:
            raise QmpClosedError(f"the monitor was closed; it had sent {self.sequence()}")
        await self._changed.park()

    async def _send(self, command: str, arguments: Message | None, fds: Sequence[int]) -> int:
        command_id = next(self._ids)
        self._asked[command_id] = command
        message: Message = {"execute": command, "id": command_id}
        if arguments is not None:
            message["arguments"] = arguments
        await self._send_all(json.dumps(message).encode() + b"\n", fds)
        return command_id

    async def _send_all(self, data: bytes, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = await self._socket.sendmsg([data], ancillary)
            while sent < len(data):
                sent += await self._socket.send(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise QmpClosedError("the monitor was closed") from error

    async def read_until_closed(self) -> None:
        """Take in everything that comes. Run by the context managers that make a client."""
        pending = bytearray()
        try:
            while data := await self._socket.recv(_RECEIVE_SIZE):
                pending += data
                lines = pending.split(b"\n")
                pending = lines.pop()
                for line in lines:
                    self._take_line(bytes(line))
                self._changed.unpark_all()
        except ConnectionResetError:
            pass  # QEMU died: an end like any other
        finally:
            self.closed = True
            self._changed.unpark_all()

    def _take_line(self, line: bytes) -> None:
        if line.startswith(b'{"timestamp"') and self._events_kept >= KEPT_EVENTS:
            self.events_dropped += 1
            return
        message: Message = json.loads(line)
        if "QMP" in message:
            self.greeting = message["QMP"]
            return
        if "event" in message:
            self._events_kept += 1
        elif "id" in message:
            message["command"] = self._asked[message["id"]]
        self.messages.append(message)


def _in_words(message: Message) -> str:
    if "event" in message:
        return str(message["event"])
    kind = "error" if "error" in message else "return"
    return f"{kind} {message.get('command', '?')}"


@asynccontextmanager
async def qmp_over(
    sock: trio.socket.SocketType, *, negotiate: bool = True
) -> AsyncIterator[QmpClient]:
    """A client over a connected socket, which it closes in the end.

    Args:
        sock: The connected socket.
        negotiate: Wait for the greeting and leave capabilities negotiation mode. Until then QEMU
            sends no events.

    Raises:
        QmpClosedError: The connection ended before the greeting or the negotiation's reply.
    """
    client = QmpClient(sock)
    with sock:
        async with background() as nursery:
            nursery.start_soon(client.read_until_closed)
            try:
                if negotiate:
                    await client.wait_greeting()
                    await client.execute("qmp_capabilities")
                yield client
            except BaseException as error:
                error.add_note(f"the monitor had sent, at last: {client.sequence()[-_NOTED:]}")
                raise


@asynccontextmanager
async def connect_qmp(path: Path, *, negotiate: bool = True) -> AsyncIterator[QmpClient]:
    """A client connected to the monitor at ``path``; arguments and errors as :func:`qmp_over`.

    Raises:
        OSError: Nobody listens there.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await sock.connect(bytes(path))
    async with qmp_over(sock, negotiate=negotiate) as client:
        yield client
