"""How long a test waits before it takes something for stuck.

A limit is stated for a machine that has nothing else to do. On a busy one everything takes longer,
in proportion to how many want each processor: so does the limit, and a test is slow then, not red.
What panicd itself must do in time is no matter of these limits: it is stated, and measured, where
it is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import trio

from tests.parts.slowness import slowness


def patience(seconds: float) -> float:
    """Return a limit as it is just now, for what can be told only once how long to wait.

    Args:
        seconds: On an idle machine.
    """
    return seconds * slowness()


def patiently(seconds: float) -> str:
    """Return a limit as it is just now for a configuration: something has to happen within it.

    Args:
        seconds: On an idle machine.
    """
    return f"{ceil(patience(seconds) * 1000)}ms"


@contextmanager
def fail_after(seconds: float) -> Iterator[trio.CancelScope]:
    """Cancel what is still going on when the limit is over; it is looked at anew then.

    Args:
        seconds: On an idle machine.

    Raises:
        trio.TooSlowError: It was cancelled.
    """
    ended = trio.CancelScope()
    with trio.CancelScope() as scope:
        trio.lowlevel.spawn_system_task(_expire, scope, seconds, ended)
        try:
            yield scope
        finally:
            ended.cancel()
    if scope.cancelled_caught:
        raise trio.TooSlowError


async def _expire(scope: trio.CancelScope, seconds: float, ended: trio.CancelScope) -> None:
    """Cancel a scope when its limit is over, unless it has ended before."""
    began = trio.current_time()
    until = began + seconds
    with ended:
        while trio.current_time() < until:
            await trio.sleep_until(until)
            until = began + patience(seconds)
        scope.cancel()
