"""A picture of the guest's screen: in memory, and as libvirt sends it."""

import os
from typing import Final

import trio

from panicd.libvirt.client import Client
from panicd.libvirt.protocol import DomainRef
from panicd.libvirt.requests import screenshot

MOST: Final = 32 << 20
"""Bytes of a picture: enough for 4K in all its colours, and for larger ones that are packed."""

TOO_LARGE: Final = f"more than the {MOST} bytes that a screen can be"
SIGNATURES: Final = {"png": b"\x89PNG\r\n\x1a\n", "ppm": b"P6"}
CHUNK: Final = 1 << 16  # bytes that are taken at a time
BY_LIBVIRT_WITHIN: Final = 5.0  # seconds: it waits for what libvirt does about the panic itself


class Picture:
    """A picture as it comes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def data(self) -> bytes:
        """All of it so far."""
        return b"".join(self._pieces)

    def take(self, pipe: int) -> bool:
        """Take what a pipe has, which does not block; return whether there was anything.

        Raises:
            OSError: it is more than a screen can be.
        """
        before = self._size
        try:
            while len(data := os.read(pipe, CHUNK)) == CHUNK:  # else the pipe is empty
                self.add(data)
            self.add(data)
        except BlockingIOError:
            pass
        return self._size > before

    def add(self, data: bytes) -> None:
        """Add what comes next.

        Raises:
            OSError: it is more than a screen can be.
        """
        self._size += len(data)
        if self._size > MOST:
            raise OSError(TOO_LARGE)
        self._pieces.append(data)


async def take_picture_by_libvirt(client: Client, domain: DomainRef) -> tuple[bytes, str]:
    """Have libvirt make a picture of a guest's screen; return it, and ``png`` or ``ppm``.

    Raises:
        LibvirtError: it refuses, or does not answer.
        OSError: its data is no picture.
    """
    picture = Picture()
    problem: OSError | None = None
    with trio.CancelScope() as scope:

        def take(piece: bytes) -> None:
            nonlocal problem
            try:
                picture.add(piece)
            except OSError as error:
                problem = error
                scope.cancel()

        await client.call(screenshot(domain), timeout=BY_LIBVIRT_WITHIN, take=take)
    if problem is not None:
        raise problem
    for kind, signature in SIGNATURES.items():
        if picture.data.startswith(signature):
            return picture.data, kind
    raise OSError("libvirt's answer is no picture")
