r"""The control socket: how the commands talk to the running daemon.

One connection carries one request and one reply, each a JSON object on a line:

```
→ {"command": "hold", "arguments": {"domain": "db-1"}}\n
← {"return": {"held": true}}\n           or
← {"error": {"kind": "no-such-domain", "message": "…"}}\n
```

Access is by the socket's mode: the owner and the group, nobody else. Who asks is known from the
kernel (SO_PEERCRED, unix(7)), not from what the request says.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

import trio

from panicd.host.listening import Tell, keep_listening
from panicd.rules.socket_path import path_problem
from panicd.service.control_client import RefusedError

REQUEST_LIMIT: Final = 64 * 1024
"""Bytes of a request, without its line break."""

NUMBER_LIMIT: Final = 1e12
"""The largest number in a request: moments and durations, in seconds, and counts."""

ENCODED_AT_ONCE: Final = 16
"""Entries of a list that become JSON in one turn of the event loop."""

CONNECTION_LIMIT: Final = 64
"""Connections that are served at a time; more are refused immediately."""

IDLE_TIMEOUT: Final = 5.0
"""Seconds that a client has to send its request, and then to take its reply."""

SOCKET_MODE: Final = 0o660
"""The owner and the group may connect: that needs the right to write (unix(7))."""

_UCRED: Final = struct.Struct("iII")  # struct ucred: pid_t, uid_t, gid_t (unix(7))


class ControlSocketError(Exception):
    """panicd can't make the control socket, because of its path or of rights."""


class AlreadyRunningError(ControlSocketError):
    """Another process listens on the control socket, most likely another panicd."""


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes:
        command: its name.
        arguments: of the command.
        peer: who asks; panicd itself if somebody asks on the page.
        user: that person's name on the page; empty on the control socket.
    """

    command: str
    arguments: Mapping[str, object]
    peer: PeerCredentials
    user: str = ""


Handler: TypeAlias = Callable[[Request], Awaitable[object]]
"""Carries out a request; returns what JSON can hold, or raises `RefusedError`.

A long list may be an async iterator instead, which makes its items as they are written.
"""

GiveWay: TypeAlias = Callable[[], Awaitable[None]]


async def serve(
    path: Path,
    handler: Handler,
    give_way: GiveWay = trio.lowlevel.checkpoint,
    tell: Tell = lambda _problem: None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve the control socket until cancelled.

    A handler runs to its end even if its client leaves. Any exception of a handler other than
    `RefusedError` is a bug, and is raised from here.

    Args:
        path: Where to make the socket. Its directory is made too, but not those above it. A socket
            that nobody listens on any more is replaced.
        handler: Called once for each request, several at a time.
        give_way: Awaited between the parts of a long answer.
        tell: Called with what is wrong with the socket; with an empty text if nothing is any more.
        task_status: Reports the start once clients can connect.

    Raises:
        AlreadyRunningError: Another process listens at `path`.
        ControlSocketError: The socket can't be made.

    Resource handling:
        The socket's file is removed at the end, unless another one has replaced it. If the file
        goes before that, the socket is made anew.
    """
    listener = _listen(path)
    slots = trio.Semaphore(CONNECTION_LIMIT)

    async def connected(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                slots.acquire_nowait()
            except trio.WouldBlock:
                message = f"{CONNECTION_LIMIT} requests are under way: try again"
                await _send(stream, _error("busy", message), give_way)
                return
            try:
                await _exchange(stream, handler, give_way)
            finally:
                slots.release()

    async with trio.open_nursery() as under_way:

        async def take(listener: trio.socket.SocketType) -> None:
            await trio.serve_listeners(
                connected, [trio.SocketListener(listener)], handler_nursery=under_way
            )

        task_status.started()  # it listens already
        bind = partial(_listen, path)
        await keep_listening(path, listener, bind, take, tell, faults=ControlSocketError)


async def _exchange(stream: trio.SocketStream, handler: Handler, give_way: GiveWay) -> None:
    try:
        line = await _receive_line(stream)
        if line is None:
            return
        command, arguments = _parse_request(line)
        result = await handler(Request(command, arguments, _peer(stream)))
    except RefusedError as error:
        reply = _error(error.kind, error.message)
    else:
        reply = {"return": result}
    await _send(stream, reply, give_way)


async def _receive_line(stream: trio.SocketStream) -> bytes | None:
    """Return the request's line, or None if the client left without a request.

    Raises:
        RefusedError: The request is too long, too late, or incomplete.
    """
    received = bytearray()
    with trio.move_on_after(IDLE_TIMEOUT):
        while True:
            try:
                chunk = await stream.receive_some(REQUEST_LIMIT + 1)
            except trio.BrokenResourceError:
                return None
            if not chunk:
                if not received:
                    return None
                raise RefusedError("bad-request", "the request does not end with a line break")
            end = chunk.find(b"\n")
            received += chunk if end < 0 else chunk[:end]
            if len(received) > REQUEST_LIMIT:
                raise RefusedError("bad-request", f"the request exceeds {REQUEST_LIMIT} bytes")
            if end >= 0:
                return bytes(received)
    raise RefusedError("timeout", f"no request within {IDLE_TIMEOUT:g} seconds")


def _parse_request(line: bytes) -> tuple[str, dict[str, object]]:
    try:
        request = json.loads(line, parse_constant=_number, parse_int=_number, parse_float=_number)
        json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise RefusedError("bad-request", "the request is not JSON") from error
    match request:
        case {"command": str(command), **rest} if set(rest) <= {"arguments"}:
            arguments = rest.get("arguments", {})
            if isinstance(arguments, dict):
                return command, arguments
    raise RefusedError("bad-request", 'the request is not {"command": string, "arguments": object}')


def _number(written: str) -> int | float:
    """Read a number of a size that panicd can calculate with and keep.

    Raises:
        ValueError: its size is another.
    """
    number = int(written) if written.lstrip("-").isdigit() else float(written)
    if not abs(number) <= NUMBER_LIMIT:  # NaN fails this too
        raise ValueError("too large a number")
    return number


def _peer(stream: trio.SocketStream) -> PeerCredentials:
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return PeerCredentials(*_UCRED.unpack(credentials))


def _error(kind: str, message: str) -> dict[str, object]:
    return {"error": {"kind": kind, "message": message}}


async def _send(stream: trio.SocketStream, reply: dict[str, object], give_way: GiveWay) -> None:
    line = (await _encode(reply, give_way)).encode() + b"\n"
    with trio.move_on_after(IDLE_TIMEOUT):
        try:
            await stream.send_all(line)
        except trio.BrokenResourceError:
            return  # the client has left; its request is carried out all the same


async def _encode(value: object, give_way: GiveWay) -> str:
    """Return a value as JSON; one turn of the event loop makes only a part of a long list."""
    if isinstance(value, dict):
        pairs = [
            f"{json.dumps(str(key))}: {await _encode(item, give_way)}"
            for key, item in value.items()
        ]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, AsyncIterator):
        return "[" + ", ".join([json.dumps(item, allow_nan=False) async for item in value]) + "]"
    if not isinstance(value, list) or len(value) <= ENCODED_AT_ONCE:
        return json.dumps(value, allow_nan=False)
    parts = []
    for first in range(0, len(value), ENCODED_AT_ONCE):
        part = json.dumps(value[first : first + ENCODED_AT_ONCE], allow_nan=False)
        parts.append(part.removeprefix("[").removesuffix("]"))
        await give_way()
    return "[" + ", ".join(parts) + "]"


def _listen(path: Path) -> trio.socket.SocketType:
    if problem := path_problem(path):
        raise ControlSocketError(f"control socket {path}: {problem}")
    try:
        # XDG_RUNTIME_DIR is empty after each log-in. The socket's mode decides who may connect.
        path.parent.mkdir(mode=0o755, exist_ok=True)
        _check_free(path)
        listener = _bind(path)
        return trio.socket.from_stdlib_socket(listener)
    except OSError as error:
        raise ControlSocketError(f"control socket {path}: {error.strerror or error}") from error


def _bind(path: Path) -> socket.socket:
    """Make the socket under a temporary name, then rename it, so that it is always complete."""
    passing_name = path.with_name(f".{os.getpid():x}")  # a socket's path may not be long
    passing_name.unlink(missing_ok=True)
    with contextlib.ExitStack() as on_failure:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        on_failure.callback(listener.close)
        listener.bind(str(passing_name))
        on_failure.callback(passing_name.unlink, missing_ok=True)
        passing_name.chmod(SOCKET_MODE)
        listener.listen(CONNECTION_LIMIT)
        passing_name.rename(path)
        on_failure.pop_all()
    return listener


def _check_free(path: Path) -> None:
    """Make sure that `path` is free, or is a socket that nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlSocketError(f"control socket {path}: it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue gives EAGAIN instead of waiting
        outcome = probe.connect_ex(str(path))
    if outcome in {0, errno.EAGAIN}:
        raise AlreadyRunningError(f"control socket {path}: another panicd listens here")
    if outcome not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise OSError(outcome, os.strerror(outcome))
