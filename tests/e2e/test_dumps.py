"""Dumps as the daemon makes them, those that can't be made, and what becomes of the guest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.guests import Guest
from tests.parts.daemon import LoggedIncident, RunningDaemon
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu
from tests.parts.small_disk import small_disk

pytestmark = pytest.mark.real

TIME_LIMIT = 60.0  # seconds


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


@pytest.fixture(name="disk")
def small_disk_of_a_test(socket_dir: Path) -> Iterator[Path]:
    """A file system of 8 MiB, half a guest's memory."""
    with small_disk(socket_dir, "8m") as disk:
        yield disk


async def dump_fails(
    socket_dir: Path,
    policy: dict[str, Any],
    *,
    ending: str = "destroyed",
    state: str = "",
    extra: Sequence[str] = (),
) -> LoggedIncident:
    """Have a guest panic whose dump can't be made; its process then ends, or it is preserved."""
    async with (
        RunningDaemon.start(socket_dir, policy) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=extra) as vm,
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
        assert await daemon.metric("panicd_coredumps_in_progress") == 0
        return incident


LARGE = ("-m", "2G")
"""QEMU takes seconds to write this, even though it is full of zeros."""


async def wait_written(directory: Path) -> None:
    """Wait until something of a guest's memory is in a file: that shows before anything is told."""
    while not any(map(size_of, files(directory))):
        await trio.lowlevel.checkpoint()


def size_of(path: Path) -> int:
    """The size of a file; one that could not become the dump may be gone by now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def test_directory_that_cannot_be_written_costs_the_dump_only(
    socket_dir: Path, not_a_directory: Path
) -> None:
    incident = await dump_fails(socket_dir, coredump(not_a_directory / "coredumps"))
    assert incident.decisions == [("coredump-destroy", "on-crash")]


async def test_full_disk_costs_the_dump_and_leaves_no_part_of_it(
    socket_dir: Path, disk: Path
) -> None:
    incident = await dump_fails(socket_dir, coredump(disk, min_free="0%", level=0))
    assert incident.decisions == [("coredump-destroy", "on-crash")]
    assert "no-space: room for " in str(incident.details)
    assert files(disk) == []


@pytest.mark.parametrize("required", [False, True])
async def test_disk_that_fills_up_costs_the_dump_and_leaves_no_part_of_it(
    socket_dir: Path, disk: Path, required: bool
) -> None:
    noise = socket_dir / "noise"
    noise.write_bytes(os.urandom(12 << 20))  # so that what is expected at least is not what comes
    loaded = ("-device", f"loader,file={noise},addr=0x100000,force-raw=on")
    policy = coredump(disk, min_free="0%", format="elf-zstd", required=required)
    left = {"ending": "", "state": "preserved"} if required else {}
    incident = await dump_fails(socket_dir, policy, extra=loaded, **left)
    assert "no-space: " in str(incident.details)
    assert "No space left on device" in str(incident.details)
    assert files(disk) == []


@pytest.mark.parametrize("kind", ["elf", "elf-zstd"])
async def test_dump_that_takes_too_long_is_given_up(socket_dir: Path, kind: str) -> None:
    directory = socket_dir / "coredumps"
    policy = coredump(directory, timeout="200ms", format=kind)
    incident = await dump_fails(socket_dir, policy, extra=LARGE)
    assert any(detail.startswith("timeout: ") for detail in incident.details)
    assert files(directory) == []


async def test_qemu_killed_in_the_middle_of_its_dump_leaves_no_part_of_it(socket_dir: Path) -> None:
    directory = socket_dir / "coredumps"
    async with (
        RunningDaemon.start(socket_dir, coredump(directory)) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=LARGE) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        await wait_written(directory)
        await vm.freeze()  # in the middle it stays
        assert len(files(directory)) == 1
        vm.kill()
        incident = await daemon.wait_incident("vm", ending="qemu-gone")
        assert incident.steps[-1] == ("Dump", "unknown")
        assert files(directory) == []
        assert await daemon.metric("panicd_coredump_failures_total", reason="lost") == 1
        assert await daemon.metric("panicd_coredumps_in_progress") == 0


@pytest.mark.parametrize("at_once", [1, 2])
async def test_two_guests_that_panic_at_once_are_both_dumped(
    socket_dir: Path, at_once: int
) -> None:
    directory = socket_dir / "coredumps"
    policy = coredump(directory, format="elf-zstd")
    start = partial(RealQemu.start, socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True)
    async with (
        RunningDaemon.start(socket_dir, policy, coredumps_at_once=at_once) as daemon,
        start(name="one") as one,
        start(name="two") as two,
    ):
        for name in ("one", "two"):
            await daemon.wait_armed(name)
        # So that it stays so while it is looked at.
        dumps = {vm: vm.proxy.hold("dump-guest-memory") for vm in (one, two)}
        await one.press_key()
        await dumps[one].reached.wait()
        await two.press_key()
        if at_once == 1:
            await daemon.wait_log("dump waits for its turn", domain="two")
        else:
            await dumps[two].reached.wait()
        assert await daemon.metric("panicd_coredumps_in_progress") == at_once
        waits = (await daemon.domain("two"))["dump"]["state"] == "waiting"
        assert waits is (at_once == 1)
        for dump in dumps.values():
            dump.release()
        for vm, name in ((one, "one"), (two, "two")):
            await daemon.wait_incident(name, ending="destroyed")
            assert await vm.wait_exit() == 0
        assert sorted(path.parent.name for path in files(directory)) == ["one", "two"]
        assert all(path.suffix == ".zst" for path in files(directory))


async def test_guest_that_libvirt_runs_is_not_dumped_behind_its_back(socket_dir: Path) -> None:
    directory, of_libvirt = socket_dir / "coredumps", socket_dir / "libvirt"
    of_libvirt.mkdir()
    extra = ("-serial", f"file:{of_libvirt}/console")  # what libvirt gives its VMs looks so
    incident = await dump_fails(socket_dir, coredump(directory), extra=extra)
    assert any(detail.startswith("libvirt: ") for detail in incident.details)
    assert files(directory) == []


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


def standing_by(daemon: RunningDaemon) -> list[int]:
    """The daemon's processes that wait for a dump to filter."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            program = (directory / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if parent == daemon.pid and b"filter.stand_by" in program:
            found.append(int(directory.name))
    return found


async def test_a_filter_stands_by_where_a_policy_asks_for_dumps(
    socket_dir: Path, tmp_path: Path
) -> None:
    policy = coredump(tmp_path / "coredumps", format="elf-zstd")
    with fail_after(TIME_LIMIT):
        async with (
            RunningDaemon.start(
                socket_dir, {"on_crash": "destroy"}, domains=[{"match": "dumped", **policy}]
            ) as daemon,
        ):
            async with RealQemu.start(socket_dir, name="other"):
                await daemon.wait_armed("other")
                assert standing_by(daemon) == []
            async with RealQemu.start(socket_dir, name="dumped", guest=Guest.PANIC_ON_KEY) as vm:
                await daemon.wait_armed("dumped")
                first = standing_by(daemon)
                assert first
                await vm.press_key()
                await daemon.wait_incident("dumped", ending="destroyed")
                assert await vm.wait_exit() == 0
            while not (second := standing_by(daemon)) or second == first:
                await trio.lowlevel.checkpoint()  # after the dump
            (dump,) = files(tmp_path)
            assert dump.suffix == ".zst"
    with pytest.raises(ProcessLookupError):
        os.kill(second[0], 0)
