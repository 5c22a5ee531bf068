"""Fixtures for the test parts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests.parts.apt import MissingError
from tests.parts.libvirt import Libvirtd, LibvirtMissingError
from tests.parts.linux import Kernel, find_kernel

LONGEST: Final = (
    "tests/test_demo.py",
    "tests/prometheus/test_fleet.py",
    "tests/kill/test_kill_matrix.py",
    "tests/incident/test_own_time.py",
    "tests/e2e/test_libvirt_domains.py",
    "tests/test_style.py",
    "tests/e2e/test_libvirt.py",
    "tests/proof/test_search.py",
    "tests/dumps/test_dump_tools.py",
    "tests/test_matrix.py",
    "tests/libvirt/test_contract.py",
    "tests/hostile/test_claims.py",
    "tests/prometheus/test_end_to_end.py",
    "tests/rules/test_recovery_model.py",
    "tests/web/page/test_browser.py",
    "tests/e2e/test_old_versions.py",
    "tests/e2e/test_destroy.py",
    "tests/rules/test_windows.py",
    "tests/e2e/test_operators.py",
    "tests/hostile/test_claims_libvirt.py",
    "tests/hostile/test_flood.py",
    "tests/model/test_histories.py",
    "tests/libvirt/test_memory.py",
)
"""The files that take longest, in this order: several workers are done together then."""

# How long an example takes depends on what else the machine does. What hangs, hangs without too.
settings.register_profile("any-load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-load")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    turn = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: turn.get(item.nodeid.partition("::")[0], len(turn)))


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


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[Libvirtd]:
    """A libvirtd for all the tests of a worker that take one."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        try:
            with Libvirtd.start(Path(directory)) as libvirtd:
                yield libvirtd
        except LibvirtMissingError as missing:
            pytest.skip(f"no libvirt here: {missing}")
