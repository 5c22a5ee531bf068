"""One session with a monitor whose every word is made up, from its greeting to its end.

Every exception that comes out of it is a bug: what may go wrong is a ``MonitorError``.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio
import trio.testing

from panicd.qemu.event_outlet import LIMIT, Heard
from panicd.qemu.monitor import MonitorError, open_monitor
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from tests.parts.patience import fail_after
from tests.parts.wire import JsonSplitter

ID = b"@ID@"
"""Stands for the id of the command that is answered, as JSON."""

TIME_LIMIT = 5.0

SILENCE = 0.02
"""Seconds without a command after which a monitor says its last; it is no limit for panicd."""


@dataclass
class Course:
    """How a session went.

    Attributes:
        connected: Whether it came to be one.
        probed: Whether the monitor's answers told what it is.
        heard: What was heard of it.
    """

    connected: bool = False
    probed: bool = False
    heard: list[Heard] = field(default_factory=list)


async def converse(
    greeting: bytes, replies: Sequence[bytes], last: bytes = b"", silence: float = SILENCE
) -> Course:
    """Hold a session with a monitor that says this. Runs inside ``event_loop()``.

    Args:
        greeting: Sent at once.
        replies: One is sent for each command, as long as there are any and it is asked.
        last: Sent before it hangs up.
        silence: Seconds without a command after which it does so.

    Raises:
        trio.TooSlowError: The session did not end.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    course = Course()
    with fail_after(TIME_LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                _play, trio.socket.from_stdlib_socket(theirs), greeting, replies, last, silence
            )
            with suppress(MonitorError):
                await _look_after(ours, course)
            assert ours.fileno() == -1
            nursery.cancel_scope.cancel()
    return course


async def _look_after(sock: socket.socket, course: Course) -> None:
    ended = trio.Event()

    def listen(heard: Heard) -> None:
        course.heard.append(heard)

    with Peer.of(sock) as peer:
        async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
            course.connected = True
            answers = await probe(monitor, None, timeout=TIME_LIMIT)
            assert len(monitor.events._entries) <= LIMIT
            session = Session.from_probe(monitor, peer, answers)
            session.listen(listen, ended.set)
            course.probed = True
            for _ in range(3):
                await session.query_status()
            await ended.wait()


async def _play(
    sock: trio.socket.SocketType,
    greeting: bytes,
    replies: Sequence[bytes],
    last: bytes,
    silence: float,
) -> None:
    left = iter(replies)
    splitter = JsonSplitter()
    with sock, suppress(OSError):
        await _send(sock, greeting)
        with trio.move_on_after(silence) as listening:
            while data := await sock.recv(1 << 16):
                for text in splitter.feed(data):
                    reply = next(left, None)
                    if reply is None:
                        listening.cancel()
                        break
                    call = json.loads(text)
                    await _send(sock, reply.replace(ID, json.dumps(call.get("id")).encode()))
                    listening.deadline = trio.current_time() + silence
        await _send(sock, last)


async def _send(sock: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await sock.send(data) :]
