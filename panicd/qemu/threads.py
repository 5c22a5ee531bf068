"""Work that may hang, in a thread; a host that has no thread left is a fault and no bug."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

NONE_LEFT: Final = "can't start new thread"
"""What Python says where the kernel refuses one (pthread_create(3): EAGAIN)."""

T = TypeVar("T")


class NoThreadError(OSError):
    """The host's, the service's or the user's limit of threads is reached, or of memory for one."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "no thread is left to do it in")


@contextmanager
def needing_a_thread() -> Iterator[None]:
    """Say so where none is left for what is done inside.

    Raises:
        NoThreadError: there is none left.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) != NONE_LEFT:
            raise
        raise NoThreadError from error


async def in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
    """Do something in a thread, which is left behind where this is cancelled.

    Args:
        work: what to do.
        limiter: how many such there may be; None: as many as trio has of its own.

    Raises:
        NoThreadError: there is none left.
    """
    with needing_a_thread():
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
