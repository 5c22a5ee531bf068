"""Reads the lines of a socket in trio, each handed over at once by a plain call."""

import socket
import time
from collections.abc import Callable
from typing import Final

import trio

from panicd.qemu.pace import Pace

CHUNK: Final = 1 << 16  # bytes received at once
WAKEUP: Final = 25e-6
"""Seconds that it costs to be woken and to receive: all that a line costs that never ends."""


async def read_lines(
    sock: socket.socket, head: bytes, take: Callable[[bytes], bool], limit: int, pace: Pace
) -> bytes:
    """Hand over a socket's lines until one is not taken, is too long, or nothing more comes.

    Args:
        sock: connected and non-blocking.
        head: what was read from it before.
        take: takes a line, without its end; False: it is not taken.
        limit: bytes of a line.
        pace: how much of a processor this may take.

    Returns:
        What was read and not taken, from the beginning of a line on.
    """
    read = bytearray(head)
    looked_at = 0
    while True:
        began = time.perf_counter()
        while (end := read.find(b"\n", looked_at)) >= 0:
            if not take(bytes(read[:end])):
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
        received = await _receive(sock)
        if not received:
            return bytes(read)
        read += received
        now = time.perf_counter()
        if pause := pace.pause(now - WAKEUP, now):
            await trio.sleep(pause)


async def _receive(sock: socket.socket) -> bytes:
    """Return what comes next, empty at the end; so too where the connection failed."""
    while True:
        try:
            await trio.lowlevel.wait_readable(sock)
            return sock.recv(CHUNK)
        except BlockingIOError:
            continue
        except OSError:
            return b""
