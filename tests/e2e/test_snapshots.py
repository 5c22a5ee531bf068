"""A snapshot that somebody restores: what ``enforce`` makes of it, which QEMU does not tell of."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import DaemonInside
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

CLUSTER = 1 << 16
SIZE = 64 << 20


def write_qcow2(path: Path) -> None:
    """Write an empty image that can hold snapshots: header, table and block of refcounts, L1."""
    image = bytearray(4 * CLUSTER)
    header = (b"QFI\xfb", 2, 0, 0, 16, SIZE, 0, 1, 3 * CLUSTER, CLUSTER, 1, 0, 0)
    struct.pack_into(">4sIQIIQIIQQIIQ", image, 0, *header)
    struct.pack_into(">Q", image, CLUSTER, 2 * CLUSTER)
    struct.pack_into(">4H", image, 2 * CLUSTER, 1, 1, 1, 1)
    path.write_bytes(image)


@asynccontextmanager
async def preserved(directory: Path) -> AsyncIterator[tuple[DaemonInside, RealQemu]]:
    """A guest that panicked after a snapshot of it was taken, and is to stay stopped."""
    image = directory / "image.qcow2"
    write_qcow2(image)
    disk = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={image}"
    extra = ("-blockdev", disk, "-device", "virtio-blk-pci,drive=disk")
    async with (
        DaemonInside.start(directory, {"on_crash": "preserve", "enforce": True}) as daemon,
        RealQemu.start(directory, guest=Guest.COUNT, proxied=True, extra=extra) as vm,
    ):
        await daemon.wait_armed("vm")
        await daemon.wait_domain("vm", lambda domain: domain["run_state"] == "running")
        mark = daemon.mark()
        assert await vm.hmp("savevm before") == ""
        await daemon.wait_log("seen", what="guest resumed", since=mark)  # QEMU stops it for that
        await vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        yield daemon, vm


Restore = Callable[[RealQemu], Awaitable[None]]


async def by_hmp(vm: RealQemu) -> None:
    assert await vm.hmp("loadvm before") == ""


async def by_a_job(vm: RealQemu) -> None:
    await vm.witness.execute(
        "snapshot-load", {"job-id": "j", "tag": "before", "vmstate": "disk", "devices": ["disk"]}
    )
    changes = ("created", "running", "waiting", "pending", "concluded")
    last = await vm.wait_event("JOB_STATUS_CHANGE", count=len(changes))
    assert last["data"] == {"status": changes[-1], "id": "j"}
    (job,) = await vm.witness.execute("query-jobs")
    assert job["type"] == "snapshot-load"
    assert "error" not in job


@pytest.mark.parametrize("restore", [by_hmp, by_a_job])
async def test_a_restored_guest_is_taken_for_the_panicked_one(
    socket_dir: Path, restore: Restore
) -> None:
    async with preserved(socket_dir) as (daemon, vm):
        await restore(vm)
        assert await vm.status() == "guest-panicked"  # QEMU says so of what it has restored
        await vm.witness.execute("cont")
        await daemon.wait_log("somebody resumed the panicked guest: stopped again")
        await vm.wait_status("paused")
        assert vm.proxy.acting_commands == ["stop"]


async def test_a_guest_that_is_reset_before_it_is_restored_is_left_alone(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (daemon, vm):
        await vm.witness.execute("system_reset")
        await by_hmp(vm)
        await vm.witness.execute("cont")
        await daemon.wait_incident("vm", ending="foreign-reset")
        await vm.wait_counting()
        assert vm.proxy.acting_commands == []
