"""A proxy between panicd and a QEMU's monitor: records the commands, and can spoil them.

Its limit: panicd sees the proxy's credentials (SO_PEERCRED, SO_PEERPIDFD), which are those of the
test's own process. Don't test through it what goes by process id (escalation by a signal, the
peer's command line): a SIGKILL would reach pytest.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, Self

import trio

from tests.parts.background import background
from tests.parts.nobody import acting_as
from tests.parts.recorded import CutError, Fault, RecordedMonitor
from tests.parts.wire import MAX_FDS, JsonSplitter, Message, encode

Socket = trio.socket.SocketType

_RECEIVE_SIZE = 64 * 1024

_LISTEN_BACKLOG = 1
"""As with QEMU, one client is served; the kernel lets two more in, which get no greeting."""


async def receive_with_fds(sock: Socket) -> tuple[bytes, list[int]]:
    """Receive bytes and the file descriptors sent along; no bytes at the end of the stream."""
    data, ancillary, _flags, _address = await sock.recvmsg(
        _RECEIVE_SIZE, socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


async def send_with_fds(sock: Socket, data: bytes, fds: list[int]) -> None:
    """Send all of ``data``, with file descriptors beside its first byte, and close those here."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sent = await sock.sendmsg([data], ancillary)
        while sent < len(data):
            sent += await sock.send(data[sent:])
    finally:
        for fd in fds:
            os.close(fd)


def listen(path: Path, uid: int | None = None) -> Socket:
    """A socket that listens at ``path`` as QEMU's monitors do, as another user perhaps."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(bytes(path))
    with acting_as(uid):
        sock.listen(_LISTEN_BACKLOG)
    return trio.socket.from_stdlib_socket(sock)


class RecordingProxy(RecordedMonitor):
    """Relays one monitor session at a time, as QEMU serves one client at a time.

    ``RealQemu.start(…, proxied=True)`` makes one. See :class:`RecordedMonitor` for what it records
    and for its faults.

    Attributes:
        sessions: How many sessions have begun.
    """

    def __init__(self, listener: Socket, target: Path, panicd_side: str) -> None:
        super().__init__()
        self.sessions = 0
        self._listener = listener
        self._target = target
        self._panicd_connects = panicd_side == "accepted"

    @classmethod
    @asynccontextmanager
    async def start(
        cls, path: Path, target: Path, *, panicd_side: Literal["accepted", "connected"] = "accepted"
    ) -> AsyncIterator[Self]:
        """Listen at ``path`` and relay each connection to ``target``.

        Args:
            path: Where to listen.
            target: The socket to connect to for each connection accepted.
            panicd_side: ``"accepted"``: panicd connects to the proxy, which connects to QEMU.
                ``"connected"``: QEMU dials in to the proxy, which dials in to panicd.
        """
        proxy = cls(listen(path), target, panicd_side)
        async with background() as nursery:
            nursery.start_soon(proxy._relay_sessions)
            yield proxy
        proxy.stop_listening()

    def stop_listening(self) -> None:
        """Refuse further connections, as when QEMU is gone."""
        self._listener.close()

    async def _relay_sessions(self) -> None:
        while True:
            try:
                accepted, _address = await self._listener.accept()
            except (trio.ClosedResourceError, OSError):
                return  # stop_listening
            with accepted:
                await self._relay_session(accepted)

    async def _relay_session(self, accepted: Socket) -> None:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
            try:
                await connected.connect(bytes(self._target))
            except (ConnectionRefusedError, FileNotFoundError):
                return
            self.sessions += 1
            panicd, qemu = (accepted, connected) if self._panicd_connects else (connected, accepted)
            session = _Session(self, panicd, qemu)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_cut, session.relay_commands, nursery.cancel_scope)
                nursery.start_soon(_until_cut, session.relay_replies, nursery.cancel_scope)


async def _until_cut(relay: Callable[[], Awaitable[None]], session_scope: trio.CancelScope) -> None:
    """Run one direction of a session; its end, however it comes, ends the session."""
    with suppress(CutError, BrokenPipeError, ConnectionResetError):
        await relay()
    session_scope.cancel()


class _Session:
    def __init__(self, proxy: RecordingProxy, panicd: Socket, qemu: Socket) -> None:
        self._proxy = proxy
        self._panicd = panicd
        self._qemu = qemu
        # QEMU answers in the order of the questions, unless one is out of band.
        self._unanswered: deque[Fault | None] = deque()

    async def relay_commands(self) -> None:
        splitter = JsonSplitter()
        fds: list[int] = []
        while True:
            data, more_fds = await receive_with_fds(self._panicd)
            if not data:
                return
            fds += more_fds
            for command in splitter.feed(data):
                await self._relay_command(command, fds)
                fds = []

    async def _relay_command(self, command: bytes, fds: list[int]) -> None:
        call = _parse(command)
        fault = self._proxy.record(call)
        if fault is not None and not await fault.before():
            refusal = {"error": fault.payload} | ({"id": call["id"]} if "id" in call else {})
            await send_with_fds(self._panicd, encode(refusal), [])
            return
        self._unanswered.append(fault)
        await send_with_fds(self._qemu, command + b"\n", fds)

    async def relay_replies(self) -> None:
        pending = b""
        while True:
            data = await self._qemu.recv(_RECEIVE_SIZE)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                await self._relay_line(line + b"\n")

    async def _relay_line(self, line: bytes) -> None:
        message = _parse(line)
        if "return" in message or "error" in message:
            fault = self._unanswered.popleft()
            if fault is not None:
                line = await fault.after(line)
        await send_with_fds(self._panicd, line, [])


def _parse(line: bytes) -> Message:
    """Return a message, or an empty one if the bytes are none: those are relayed unchanged."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
