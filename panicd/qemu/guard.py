"""Has a part of a session guarded by qemu.qmp only once something has gone wrong.

qemu.qmp's guard is an asynchronous generator: trio keeps account of each, as long as it goes on.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager


class Guard:
    """Guards a part of a session, in an ``async with`` statement.

    Args:
        original: makes qemu.qmp's guard, which an exception of that part goes through.
    """

    def __init__(self, original: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._original = original

    async def __aenter__(self) -> None:
        """Begin; qemu.qmp's guard would do nothing."""

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Hand an exception to qemu.qmp's guard."""
        if error is not None:
            async with self._original():
                raise error
