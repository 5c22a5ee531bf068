"""Reads the lines of a socket in trio, each handed over at once by a plain call."""

import socket
import time
from collections.abc import Callable
from typing import Final

import trio

from panicd.qemu.other_end import receive
from panicd.qemu.pace import Pace

CHUNK: Final = 1 << 16  # bytes received at once
WAKEUP: Final = 25e-6
"""Seconds that it costs to be woken and to receive: all that a line costs that never ends."""


async def read_lines(
    sock: socket.socket,
    head: bytes,
    take: Callable[[bytes, int | None], bool],
    limit: int,
    pace: Pace,
) -> bytes:
    """Hand over a socket's lines until one is not taken, is too long, or nothing more comes.

    Args:
        sock: connected and non-blocking.
        head: what was read from it before.
        take: takes a line, without its end, and the number of the process that sent its end, None
            where that is not known (``other_end.show_senders``); False: it is not taken.
        limit: bytes of a line.
        pace: how much of a processor this may take.

    Returns:
        What was read and not taken, from the beginning of a line on.
    """
    shows_senders = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED))
    read = bytearray(head)
    looked_at = 0
    sender = None
    while True:
        began = time.perf_counter()
        while (end := read.find(b"\n", looked_at)) >= 0:
            if not take(bytes(read[:end]), sender):
                return bytes(read)
            del read[: end + 1]
            looked_at = 0
            now = time.perf_counter()
            pause = pace.pause(began, now)
            if pause is None:
                began = now
            else:
                await trio.sleep(pause)
                began = time.perf_counter()
        looked_at = len(read)
        if looked_at > limit:
            return bytes(read)
        received, sender = await _receive(sock, shows_senders=shows_senders)
        if not received:
            return bytes(read)
        read += received
        now = time.perf_counter()
        if pause := pace.pause(now - WAKEUP, now):
            await trio.sleep(pause)


async def _receive(sock: socket.socket, *, shows_senders: bool) -> tuple[bytes, int | None]:
    """Return what comes next, empty at the end or where the connection failed, and its sender."""
    while True:
        try:
            await trio.lowlevel.wait_readable(sock)
            return receive(sock, CHUNK) if shows_senders else (sock.recv(CHUNK), None)
        except BlockingIOError:
            continue
        except OSError:
            return b"", None
