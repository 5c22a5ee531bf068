"""A listening unix socket whose file stays where it is to be.

Whoever cleans up in ``/run`` or ``/tmp`` removes the file and not the socket: nobody can connect
any more, and nothing tells who listens. So the file is looked at now and then, and when it is no
longer the socket's own, another is bound.
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
    """Listen until cancelled, on another socket whenever the file is another's.

    Args:
        path: where the sockets' file is to be.
        listener: the first socket, as ``bind`` has made it.
        bind: makes the socket and its file.
        serve: takes connections until it is cancelled, and leaves them to others to deal with.
        tell: what is wrong with the socket; an empty text: nothing any more.
        faults: what ``bind`` raises where it can't; it is called again later then.

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
    """Return which file is at a path (inode numbers are used again); None: it can't be told."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
