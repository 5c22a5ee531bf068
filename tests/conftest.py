"""Fixtures for the test parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets, which ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory(prefix="panicd-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
