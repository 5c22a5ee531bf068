"""How long a test waits before it counts as stuck.

A limit is for a machine that does nothing else. On a busy one everything takes longer, in
proportion to how many processes want each processor. So does the limit: the test is slow then, not
red. These limits are not for what panicd itself must do in time; that is stated and measured where
it is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import trio

from tests.parts.slowness import slowness


def patience(seconds: float) -> float:
    """Return a limit as it is now, if the time to wait must be known beforehand.

    Args:
        seconds: On an idle machine.
    """
    return seconds * slowness()


def patiently(seconds: float) -> str:
    """Return a limit as it is now, for a configuration that must be met within it.

    Args:
        seconds: On an idle machine.
    """
    return f"{ceil(patience(seconds) * 1000)}ms"


@contextmanager
def fail_after(seconds: float) -> Iterator[trio.CancelScope]:
    """Cancel what still runs when the limit is over; the limit is computed again then.

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
