"""Tests as another user; only for root, which alone can become another user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user or namespace: needs root")


@contextmanager
def acting_as(uid: int | None) -> Iterator[None]:
    """Be another user for a moment, in which nothing waits, as SO_PEERCRED shows it."""
    before = os.geteuid()
    os.seteuid(before if uid is None else uid)
    try:
        yield
    finally:
        os.seteuid(before)
