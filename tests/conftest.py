"""Fixtures for the test parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.parts.apt import MissingError
from tests.parts.linters import LINTERS, linter
from tests.parts.linux import Kernel, find_kernel

# How long an example takes depends on what else the machine does. What hangs, hangs without too.
settings.register_profile("any-load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-load")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin what takes long and disturbs nobody before the tests that wait for something."""
    if not session.config.option.collectonly:
        for arguments in LINTERS:
            if any(
                item.nodeid.endswith(f"::test_linter[{' '.join(arguments)}]")
                for item in session.items
            ):
                linter(arguments)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets, which ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory(prefix="panicd-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def linux_kernel() -> Kernel:
    """A Linux kernel to boot; skips, saying what is missing, where there is none to be had."""
    try:
        return find_kernel()
    except MissingError as missing:
        pytest.skip(f"no Linux guest here: {missing}")
