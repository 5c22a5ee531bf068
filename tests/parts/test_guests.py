"""The guests, each on a real QEMU: as the firmware itself, and from a floppy through SeaBIOS."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.demo.guests import SECTOR_SIZE, Guest, write_boot_sector
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

TIME_LIMIT = 20.0
PAUSE = ("-action", "panic=pause")
NONE = ("-action", "panic=none")

either_boot = pytest.mark.parametrize("firmware", [False, True], ids=["rom", "floppy"])


@pytest.mark.parametrize("guest", Guest)
def test_a_boot_sector_is_one_sector_with_its_signature(guest: Guest, tmp_path: Path) -> None:
    write_boot_sector(guest, tmp_path / "sector")
    sector = (tmp_path / "sector").read_bytes()
    assert len(sector) == SECTOR_SIZE
    assert sector.endswith(b"\x55\xaa")


@either_boot
async def test_idle_panics_only_from_outside(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, firmware=firmware, extra=PAUSE) as vm:
            assert await vm.status() == "running"
            assert "GUEST_PANICKED" not in vm.witness.sequence()
            await vm.panic()
            await vm.wait_status("guest-panicked")


@either_boot
async def test_count_counts(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, firmware=firmware) as vm:
            await vm.wait_counting()


@either_boot
async def test_panic_once_panics_at_every_boot(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.PANIC_ONCE, firmware=firmware, extra=PAUSE
        ) as vm:
            await vm.wait_status("guest-panicked")
            await vm.witness.execute("system_reset")
            await vm.witness.execute("cont")
            await vm.wait_event("GUEST_PANICKED", count=2)


@either_boot
async def test_panic_and_count_counts_when_resumed(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.PANIC_AND_COUNT, firmware=firmware, extra=PAUSE
        ) as vm:
            await vm.wait_status("guest-panicked")
            await vm.witness.execute("cont")
            await vm.wait_counting()


@either_boot
async def test_panics_on_its_first_boot_only(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.PANIC_ONCE_THEN_BOOT_HEALTHY, firmware=firmware, extra=PAUSE
        ) as vm:
            await vm.wait_status("guest-panicked")
            await vm.witness.execute("system_reset")
            await vm.witness.execute("cont")
            await vm.wait_counting()
            assert vm.witness.sequence().count("GUEST_PANICKED") == 1


@either_boot
async def test_panics_on_each_key_press_from_inside(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.PANIC_ON_KEY, firmware=firmware, extra=NONE
        ) as vm:
            for _ in range(3):
                await vm.wait_counting()
                await vm.press_key()
            assert await vm.status() == "running"


async def test_flood_panics_without_end(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, guest=Guest.FLOOD, extra=NONE) as vm:
            await vm.wait_event("GUEST_PANICKED", count=5_000)


@either_boot
async def test_crashload_then_reset(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.CRASHLOAD_THEN_RESET, firmware=firmware, extra=PAUSE
        ) as vm:
            await vm.wait_event("GUEST_CRASHLOADED")
            assert (await vm.wait_event("RESET"))["data"] == {
                "guest": True,
                "reason": "guest-reset",
            }
            await vm.wait_counting()


@either_boot
async def test_crashload_then_hang(socket_dir: Path, *, firmware: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.CRASHLOAD_THEN_HANG, firmware=firmware, extra=PAUSE
        ) as vm:
            await vm.wait_event("GUEST_CRASHLOADED")
            assert await vm.status() == "running"
