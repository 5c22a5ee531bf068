"""Dumps that can't be made, and what then becomes of the guest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import LoggedIncident, RunningDaemon
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real


def files(directory: Path) -> list[Path]:
    """All files below a directory, whatever they are called."""
    return [path for path in directory.rglob("*") if path.is_file()]


def coredump(directory: Path, **settings: Any) -> dict[str, Any]:
    """A policy that dumps there before it destroys."""
    settings = {"directory": str(directory), "min_free": "1MiB", "format": "elf"} | settings
    return {"on_crash": "coredump-destroy", "coredump": settings}


@pytest.fixture
def not_a_directory(socket_dir: Path) -> Path:
    """A place where nobody can write, root neither."""
    file = socket_dir / "not-a-directory"
    file.touch()
    return file


@pytest.fixture
def small_disk(socket_dir: Path) -> Iterator[Path]:
    """A file system of 8 MiB, half a guest's memory; skips where none can be mounted."""
    disk = socket_dir / "small-disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "panicd-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def dump_fails(
    socket_dir: Path, policy: dict[str, Any], *, ending: str = "destroyed", state: str = ""
) -> LoggedIncident:
    """Have a guest panic whose dump can't be made; its process then ends, or it is preserved."""
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        incident = await daemon.wait_incident("vm", ending=ending, state=state)
        assert ("Dump", "failed") in incident.steps
        if ending:
            assert await vm.wait_exit() == 0
        else:
            assert await vm.status() == "guest-panicked"
        assert await daemon.metric("panicd_coredumps_total") == 1
        failure = incident.details[incident.steps.index(("Dump", "failed"))].partition(":")[0]
        assert await daemon.metric("panicd_coredump_failures_total", reason=failure) == 1
        return incident


async def test_directory_that_cannot_be_written_costs_the_dump_only(
    socket_dir: Path, not_a_directory: Path
) -> None:
    incident = await dump_fails(socket_dir, coredump(not_a_directory / "coredumps"))
    assert incident.decisions == [("coredump-destroy", "on-crash")]


async def test_full_disk_costs_the_dump_and_leaves_no_part_of_it(
    socket_dir: Path, small_disk: Path
) -> None:
    incident = await dump_fails(socket_dir, coredump(small_disk, min_free="0%"))
    assert incident.decisions == [("coredump-destroy", "on-crash")]
    assert "no-space: room for " in str(incident.details)
    assert files(small_disk) == []


async def test_dump_stops_where_space_is_to_stay_free(socket_dir: Path) -> None:
    directory = socket_dir / "coredumps"
    incident = await dump_fails(socket_dir, coredump(directory, min_free="1000TiB"))
    assert "below min_free" in str(incident.details)
    assert files(directory) == []


async def test_guest_is_preserved_without_a_dump_that_is_required(
    socket_dir: Path, not_a_directory: Path
) -> None:
    policy = coredump(not_a_directory / "coredumps", required=True)
    incident = await dump_fails(socket_dir, policy, ending="", state="preserved")
    assert incident.decisions == [
        ("coredump-destroy", "on-crash"),
        ("preserve", "dump-failed"),
    ]


async def test_format_that_qemu_does_not_offer_becomes_elf(socket_dir: Path) -> None:
    directory = socket_dir / "coredumps"
    async with (
        RunningDaemon.start(socket_dir, coredump(directory, format="kdump-snappy")) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        incident = await daemon.wait_incident("vm", ending="destroyed")
        (dump,) = files(directory)
        assert dump.name == f"{incident.id}.elf"
        assert dump.read_bytes()[:4] == b"\x7fELF"


async def test_compressed_elf_is_the_format_by_default(socket_dir: Path) -> None:
    directory = socket_dir / "coredumps"
    policy = coredump(directory)
    del policy["coredump"]["format"]
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        incident = await daemon.wait_incident("vm", ending="destroyed")
        (dump,) = files(directory)
        assert dump.name == f"{incident.id}.elf.zst"
        assert dump.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
