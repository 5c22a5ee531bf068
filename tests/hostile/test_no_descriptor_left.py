"""No file descriptor is left: that costs evidence, dumps and connections, and no VM its action."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.test_dial_in import silent
from tests.parts.background import background
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu

CAN_BE_RESET = ("one", "two")


@pytest.mark.parametrize(
    ("on_crash", "result", "failed"),
    [
        ("destroy", {"ending": "destroyed"}, ""),
        ("restart", {"ending": "restarted"}, "RunRelaunch"),
        ("coredump-preserve", {"state": "preserved"}, "Dump"),
    ],
)
async def test_panics_are_handled(
    socket_dir: Path, on_crash: str, result: dict[str, Any], failed: str
) -> None:
    path = socket_dir / "dial-in.sock"
    vms = [FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in CAN_BE_RESET]
    vms.append(FakeQemu(socket_dir / "off.qmp", name="off", reboot_action="shutdown"))
    monitors = [{"listen": str(path)}, {"glob": f"{socket_dir}/*.qmp"}]
    policy = {"on_crash": on_crash, "relaunch": {"command": ["/bin/true"]}}
    async with (
        background() as nursery,
        RunningDaemon.start(socket_dir, policy, monitors=monitors) as daemon,
    ):
        for vm in vms:
            nursery.start_soon(vm.run)
        for name in (*CAN_BE_RESET, "off"):
            await daemon.wait_armed(name)
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f"/proc/{daemon.pid}/fd")))  # noqa: PTH208 - names only
        lowest_free = min(set(range(len(used) + 1)) - used)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
        with silent(path, 200):
            await daemon.wait_log("connections have to wait")
            for vm in vms:
                vm.panic()
            for name in CAN_BE_RESET:
                await daemon.wait_incident(name, **result)
            if failed:
                await daemon.wait_log("step ended", step=failed, outcome="failed")
            assert len(daemon.logged("connections have to wait")) == 1
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert await daemon.call("status")
