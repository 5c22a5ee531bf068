"""Runs work that may hang in a thread. A host without a free thread is a fault, not a bug."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

NONE_LEFT: Final = "can't start new thread"
"""Python's message where the kernel refuses a thread (pthread_create(3): EAGAIN)."""

T = TypeVar("T")


class NoThreadError(OSError):
    """The host, the service or the user has no thread left, or no memory for one."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "no thread is left to do it in")


@contextmanager
def needing_a_thread() -> Iterator[None]:
    """Turn a failure to start a thread inside into a ``NoThreadError``.

    Raises:
        NoThreadError: no thread is left.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) != NONE_LEFT:
            raise
        raise NoThreadError from error


async def in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
    """Run work in a thread. On cancellation the thread is left behind.

    Args:
        work: the function to run.
        limiter: limits the number of threads; None: trio's own limit.

    Raises:
        NoThreadError: no thread is left.
    """
    with needing_a_thread():
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
