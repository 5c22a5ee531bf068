"""Keeps a listening unix socket's file in its place.

A cleanup of ``/run`` or ``/tmp`` removes the file but not the socket. Then nobody can connect, and
the listener gets no notice. So this module checks the file now and then, and binds a new socket
when the file is no longer the socket's own.
"""

import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import trio

LOOK_EVERY: Final = 5.0  # seconds
LOST: Final = "its file was removed or replaced"

Bind = Callable[[], trio.socket.SocketType]
Serve = Callable[[trio.socket.SocketType], Awaitable[object]]
Tell = Callable[[str], None]


async def keep_listening(
    path: Path,
    listener: trio.socket.SocketType,
    bind: Bind,
    serve: Serve,
    tell: Tell,
    *,
    faults: type[Exception] = OSError,
) -> NoReturn:
    """Listen until cancelled; bind a new socket whenever the file is no longer the socket's own.

    Args:
        path: the place of the socket's file.
        listener: the first socket, made by ``bind``.
        bind: makes the socket and its file.
        serve: accepts connections until cancelled, and leaves the work on them to other tasks.
        tell: receives the socket's fault; an empty text: the fault is over.
        faults: exceptions of ``bind`` after which it is called again later.

    Resource handling:
        The file is removed at the end, if it is the socket's own.
    """
    while True:
        own = _identity(path)
        try:
            with listener:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve, listener)
                    await _until_lost(path, own)
                    nursery.cancel_scope.cancel()
        finally:
            if own is not None and _identity(path) == own:
                _remove(path)
        tell(LOST)
        listener = await _bound_again(bind, tell, faults)
        tell("")


async def _until_lost(path: Path, own: object) -> None:
    while True:
        if own is None or _identity(path) != own:
            return
        await trio.sleep(LOOK_EVERY)


async def _bound_again(bind: Bind, tell: Tell, faults: type[Exception]) -> trio.socket.SocketType:
    while True:
        await trio.lowlevel.checkpoint()
        try:
            return bind()
        except faults as error:
            tell(f"{LOST}, and it can't be bound anew: {error}")
        await trio.sleep(LOOK_EVERY)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the next start copes with it
        path.unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return the identity of a path's file (inode numbers are used again); None: unknown."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
