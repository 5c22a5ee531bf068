"""A real Linux kernel's panic, as QEMU tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.parts.linux import Kernel, linux_guest
from tests.parts.patience import fail_after

pytestmark = [pytest.mark.linux, pytest.mark.real]

TIME_LIMIT = 120.0


@pytest.mark.parametrize("device", ["pvpanic", "pvpanic-pci"])
async def test_linux_panics(socket_dir: Path, linux_kernel: Kernel, device: str) -> None:
    with fail_after(TIME_LIMIT):
        async with linux_guest(
            socket_dir, linux_kernel, devices=[device], extra=("-action", "panic=pause")
        ) as guest:
            await guest.vm.wait_status("guest-panicked")
            assert [event["event"] for event in guest.vm.events] == [
                *("RESUME", "GUEST_PANICKED", "STOP")
            ]
            console = await trio.Path(guest.console).read_text(errors="replace")
            assert "Kernel panic - not syncing: sysrq triggered crash" in console


async def test_linux_resets_itself_after_its_panic(socket_dir: Path, linux_kernel: Kernel) -> None:
    with fail_after(TIME_LIMIT):
        async with linux_guest(
            socket_dir, linux_kernel, reboots_after=1, extra=("-action", "panic=none")
        ) as guest:
            panic = await guest.vm.wait_event("GUEST_PANICKED")
            assert panic["data"] == {"action": "run"}
            reset = await guest.vm.wait_event("RESET")
            assert reset["data"] == {"guest": True, "reason": "guest-reset"}
