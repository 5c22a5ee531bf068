"""A dry run decides, records and reports, and sends nothing that changes a VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.qemu import RealQemu
from tests.parts.recorded import FOLLOWS

pytestmark = pytest.mark.real


@pytest.mark.parametrize("on_crash", ["restart", "coredump-destroy"])
async def test_dry_run_decides_and_does_nothing(socket_dir: Path, on_crash: str) -> None:
    policy = {"on_crash": on_crash, "evidence": {"budget": "3s"}}
    async with (
        RealQemu.start(
            socket_dir, guest=Guest.PANIC_ON_KEY, proxied=True, extra=("-action", "panic=pause")
        ) as vm,
        RunningDaemon.start(socket_dir, policy, dry_run=True) as daemon,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [(on_crash, "on-crash")]
        assert incident.steps == []
        await daemon.wait_kept(incident)
        assert (await daemon.call("status"))["dry_run"] is True
        assert await daemon.metric("panicd_domain_panics_total", domain="vm") == 1

        await daemon.terminate()
        await daemon.start_again()
        await daemon.wait_log("open incident found again", incident=incident.id)
        await daemon.wait_armed("vm", since=daemon.began)
        assert vm.proxy.changing_commands == []
        assert FOLLOWS not in vm.proxy.commands
        assert await vm.status() == "guest-panicked"
