"""A picture of the guest's screen, from QEMU through a pipe, or from libvirt as a stream.

QEMU gets the writing end of a pipe, and no file: whoever has a file can fill its disk for as long
as they live. panicd keeps what comes through the pipe in memory, up to the size of a screen.

``/dev/fdset/N``, QEMU's own name for a descriptor that it got, can't be used: QEMU truncates what
it opens there (ftruncate(2)), and a pipe can't be truncated. Its name in /proc can be used. There
the pipe's mode counts, because QEMU may run as another user. panicd does not wait for the end of
the file, because QEMU closes the members of an fd set only when its guest runs: its answer says
that it has written everything.

Sources: QAPI ``screendump`` (``qapi/ui.json``), ``add-fd`` and ``remove-fd`` (``qapi/misc.json``);
QEMU ``util/osdep.c``, ``monitor/fds.c``; proc(5), pipe(7), splice(2).
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from panicd.libvirt.client import Client
from panicd.libvirt.protocol import DomainRef
from panicd.libvirt.requests import screenshot
from panicd.qemu.exchange import Asked
from panicd.qemu.monitor import Command, CommandError, MonitorError
from panicd.qemu.session import Session

MOST: Final = 32 << 20
"""Bytes of a picture: enough for 4K in all its colours, and for larger ones that are packed."""

TOO_LARGE: Final = f"more than the {MOST} bytes that a screen can be"
SIGNATURES: Final = {"png": b"\x89PNG\r\n\x1a\n", "ppm": b"P6"}
CHUNK: Final = 1 << 16  # bytes that are taken at a time
ANSWER_TIMEOUT: Final = 2.0  # seconds
DRAWN_WITHIN: Final = 5.0  # seconds
DRAWN_AT_ONCE: Final = 0.002  # seconds in which a picture that fits into the pipe may come
NO_CONSOLE: Final = "There is no console"  # QEMU, ui/console.c, qmp_screendump
NO_SCREEN: Final = "the VM has no screen"
BY_LIBVIRT_WITHIN: Final = 5.0  # seconds: it waits for what libvirt does about the panic itself
WRITABLE: Final = 0o622  # by QEMU's user; only who already has it can find it in /proc


class Picture:
    """A picture in memory; its last reference closes the descriptor.

    That may be a thread's that hangs on a disk.

    Raises:
        OSError: there is no memory or no descriptor left.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("panicd-screen", os.MFD_CLOEXEC)
        self._size = 0

    def __del__(self) -> None:
        if file := getattr(self, "_file", 0):
            os.close(file)

    def __len__(self) -> int:
        return self._size

    def take(self, pipe: int) -> bool:
        """Take what a pipe has; return whether there was anything.

        Raises:
            BlockingIOError: there is nothing now.
            OSError: it is more than a screen can be.
        """
        taken = os.splice(pipe, self._file, CHUNK, flags=os.SPLICE_F_NONBLOCK)
        self._size += taken
        if self._size > MOST:
            raise OSError(TOO_LARGE)
        return taken > 0

    def add(self, data: bytes) -> None:
        """Add what comes next.

        Raises:
            OSError: it is more than a screen can be.
        """
        self._size += len(data)
        if self._size > MOST:
            raise OSError(TOO_LARGE)
        os.pwrite(self._file, data, self._size - len(data))

    def begins_with(self, signature: bytes) -> bool:
        """Tell whether it begins so."""
        return os.pread(self._file, len(signature), 0) == signature

    def write_to(self, file: int) -> None:
        """Write it to a file. Blocking.

        Raises:
            OSError: that can't be written.
        """
        written = 0
        while written < self._size:
            written += os.sendfile(file, self._file, written, self._size - written)


async def take_picture(session: Session, kind: str, behind: Callable[[], object]) -> Picture:
    """Have QEMU make a picture of its guest's screen.

    Args:
        session: the VM.
        kind: ``png`` (QEMU 7.1 and later) or ``ppm``.
        behind: called when QEMU was asked for the picture, and can be asked for more.

    Raises:
        MonitorError: QEMU refuses, or does not answer.
        OSError: the VM has no screen, or QEMU's data is no picture.
    """
    picture = Picture()
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.set_blocking(writing, True)  # QEMU's copies share the flag
        os.fchmod(writing, WRITABLE)
        try:
            name, fdset = await _hand_over(session, writing)
        finally:
            os.close(writing)
        arguments = {"filename": name, **({"format": kind} if kind == "png" else {})}
        commands: list[Command] = [("screendump", arguments), ("remove-fd", {"fdset-id": fdset})]
        drawing = session.monitor.asked(commands, timeout=DRAWN_WITHIN)
        behind()
        await _take_drawn(drawing, picture, reading)
    finally:
        os.close(reading)
    if not picture.begins_with(SIGNATURES[kind]):
        raise OSError("what QEMU wrote is no picture")
    return picture


async def take_picture_by_libvirt(client: Client, domain: DomainRef) -> tuple[Picture, str]:
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
        if picture.begins_with(signature):
            return picture, kind
    raise OSError("libvirt's answer is no picture")


async def _hand_over(session: Session, pipe: int) -> tuple[str, int]:
    """Give QEMU the writing end; return its name there, and its fd set."""
    answer = await session.qmp.execute_with_fd("add-fd", {}, pipe, timeout=ANSWER_TIMEOUT)
    match answer:
        case {"fd": int(file), "fdset-id": int(fdset)}:
            return f"/proc/self/fd/{file}", fdset
    raise OSError("QEMU's answer to add-fd makes no sense")


async def _take_drawn(drawing: Asked, picture: Picture, pipe: int) -> None:
    """Take from the pipe what QEMU writes until it has answered."""
    problem: Exception | None = None

    async def take() -> None:
        nonlocal problem
        try:
            while True:
                await trio.lowlevel.wait_readable(pipe)
                if not picture.take(pipe):
                    return
        except OSError as error:
            problem = error
            nursery.cancel_scope.cancel()

    with trio.move_on_after(DRAWN_AT_ONCE):
        await drawing.complete.wait()
    async with trio.open_nursery() as nursery:
        if not drawing.complete.is_set():
            nursery.start_soon(take)
        drawn, *_ = await drawing.answers()
        if isinstance(drawn, CommandError):
            problem = OSError(NO_SCREEN) if NO_CONSOLE in drawn.description else drawn
        elif isinstance(drawn, MonitorError):
            problem = drawn
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    with suppress(BlockingIOError):
        while picture.take(pipe):
            pass
