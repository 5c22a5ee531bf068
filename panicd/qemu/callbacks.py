"""Calls the callbacks of the asyncio loop: all that are ready in one turn of trio's.

trio-asyncio would check that each callback is no coroutine, send it through a channel, and call one
in each turn of trio's loop. To attach a domain takes some twelve callbacks, and that took as long
as all that qemu.qmp does in them. So callbacks wait here, and trio-asyncio is given one for all of
them.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

AT_ONCE: Final = 64  # callbacks, before other tasks have their turn


class Handle(Protocol):
    """A callback that waits, as asyncio has it (``asyncio.Handle``)."""

    def cancelled(self) -> bool:
        """Return True if it is not to be called any more."""

    def _run(self) -> None:
        """Call it."""


class Callbacks:
    """The callbacks that are ready, in their order.

    Args:
        handle: makes a handle of a callback, its arguments and its context.
        later: has the loop call a function in a later turn.
    """

    def __init__(
        self,
        handle: Callable[[Callable[..., object], tuple[object, ...], object], Handle],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self._handle = handle
        self._later = later
        self._ready: deque[Handle] = deque()
        self._is_awaited = False  # by the loop

    def call_soon(
        self, callback: Callable[..., object], *arguments: object, context: object = None
    ) -> Handle:
        """Have a callback called soon, after earlier ones, as asyncio's loops do."""
        handle = self._handle(callback, arguments, context)
        if not self._is_awaited:
            self._later(self._call)
            self._is_awaited = True
        self._ready.append(handle)
        return handle

    def _call(self) -> None:
        try:
            for _ in range(AT_ONCE):
                if not self._ready:
                    break
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()  # noqa: SLF001 - for those who write loops
        finally:
            self._is_awaited = bool(self._ready)
            if self._is_awaited:
                self._later(self._call)
