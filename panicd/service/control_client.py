"""The commands' end of the control socket; ``panicd.service.control`` describes the protocol.

It is separate from the daemon's end because a command that only asks needs no event loop.
"""

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

Answer: TypeAlias = dict[str, Any]
"""An answer of the daemon, as decoded from JSON."""

REPLY_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a reply that a client accepts; 10,000 domains need some 5 MiB."""


class DaemonUnreachableError(Exception):
    """No daemon answered; the message says what to look at."""


class RefusedError(Exception):
    """The daemon understood a request, and refused it.

    Args:
        kind: The reason, as a word for programs, such as `no-such-domain`.
        message: The reason, for people.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def call(
    path: Path,
    command: str,
    arguments: Mapping[str, object] | None = None,
    timeout: float = 10.0,
) -> object:
    """Ask the daemon something, and wait for the answer.

    Args:
        path: The daemon's control socket.
        command: The command's name.
        arguments: The command's arguments, as JSON can hold them.
        timeout: Seconds that all of it may take.

    Returns:
        What the daemon returned, as JSON's types.

    Raises:
        DaemonUnreachableError: There is no daemon, no right to talk to it, or no complete answer.
            If only the answer is missing, the daemon may have carried out the request.
        RefusedError: The daemon refused.
    """
    request = json.dumps({"command": command, "arguments": dict(arguments or {})})
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise DaemonUnreachableError(_why_no_connection(path, error)) from error
        try:
            connection.sendall(request.encode() + b"\n")
        except ConnectionError:
            pass  # refused before it was read: the reply says why
        except TimeoutError as error:
            raise DaemonUnreachableError(_why_no_reply(path, timeout)) from error
        try:
            reply = _receive_reply(connection, deadline)
        except TimeoutError as error:
            raise DaemonUnreachableError(_why_no_reply(path, timeout)) from error
        except ConnectionError:
            reply = b""
    return _parse_reply(path, reply)


def _receive_reply(connection: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n") and len(received) <= REPLY_LIMIT:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        chunk = connection.recv(1 << 20)
        if not chunk:
            break
        received += chunk
    return bytes(received)


def _parse_reply(path: Path, line: bytes) -> object:
    if not line.endswith(b"\n"):
        raise DaemonUnreachableError(
            f"panicd at {path} closed the connection without a complete answer: it may have "
            "stopped; see its log (journalctl -u panicd)"
        )
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    match reply:
        case {"return": result}:
            return result
        case {"error": {"kind": str(kind), "message": str(message)}}:
            raise RefusedError(kind, message)
    raise DaemonUnreachableError(f"what listens at {path} is not panicd")


def _why_no_connection(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            advice = "is panicd running? (systemctl status panicd)"
        case PermissionError():
            advice = f"run this as root or in the group of the socket (ls -l {path})"
        case BlockingIOError() | TimeoutError():
            advice = "panicd accepts no connection: it is busy or stuck; see its log"
        case _:
            advice = "is this the right socket?"
    return f"can't reach panicd at {path}: {error.strerror or error}; {advice}"


def _why_no_reply(path: Path, timeout: float) -> str:
    return (
        f"panicd at {path} gave no answer within {timeout:g} seconds: it is busy or stuck; "
        "it may have done what you asked (panicd status)"
    )
