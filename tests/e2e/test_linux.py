"""A real Linux kernel panics, and its domain's policy is carried out."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.parts.daemon import RunningDaemon
from tests.parts.linux import Kernel, linux_guest

pytestmark = [pytest.mark.linux, pytest.mark.real]

TIME_LIMIT = 120.0
"""Seconds; under TCG a kernel panics some seconds after its start."""

NAME = "linux"


@pytest.mark.parametrize(
    ("device", "on_crash", "ending"),
    [("pvpanic", "destroy", "destroyed"), ("pvpanic-pci", "restart", "restarted")],
)
async def test_linux_panic_leads_to_its_policy(
    socket_dir: Path, linux_kernel: Kernel, device: str, on_crash: str, ending: str
) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": on_crash}, time_limit=TIME_LIMIT) as daemon,
        linux_guest(socket_dir, linux_kernel, devices=[device]) as guest,
    ):
        await daemon.wait_armed(NAME)
        assert (await daemon.domain(NAME))["panic_device"] == "requested"
        incident = await daemon.wait_incident(NAME, ending=ending)
        assert incident.source == "event"
        assert incident.decisions == [(on_crash, "on-crash")]
        if on_crash == "destroy":
            assert await guest.vm.wait_exit() == 0
        else:
            await guest.vm.wait_event("RESET")
            assert await guest.vm.status() == "running"
        console = await trio.Path(guest.console).read_text(errors="replace")
        assert "Kernel panic - not syncing: sysrq triggered crash" in console
