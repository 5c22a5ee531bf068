"""The virtual time, and how long a message takes in it."""

from __future__ import annotations

from typing import Final

import trio

EPOCH: Final = 1_800_000_000.0
"""Seconds since the epoch at the beginning of the virtual time."""

LATENCY: Final = 0.001
"""Seconds: of a command on its way to QEMU, of its answer, and of a commit."""


def now() -> float:
    """Seconds since the epoch, in virtual time."""
    return EPOCH + trio.current_time()
