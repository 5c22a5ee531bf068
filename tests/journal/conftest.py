"""Fixtures of the journal's tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import pytest

from panicd.journal.journal import Journal
from tests.parts.patience import patience

PATIENCE = 30  # seconds after which a test has failed instead of hanging


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal is to be."""
    return tmp_path / "state" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """A new journal."""
    with Journal.open(path) as opened_journal:
        yield opened_journal


@pytest.fixture
def time_limit() -> Iterator[None]:
    """End what hangs, in the loop or in ``close``."""

    def end(_number: int, _frame: object) -> None:
        raise TimeoutError(f"{PATIENCE} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(ceil(patience(PATIENCE)))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
