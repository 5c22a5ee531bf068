"""Guests that libvirt calls crashed, and that run: they were reset while libvirtd was away."""

from __future__ import annotations

from pathlib import Path

import pytest

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.libvirt import Libvirtd

pytestmark = pytest.mark.real


@pytest.mark.parametrize("is_reset", [True, False])
async def test_a_guest_that_runs_is_left_alone(
    libvirtd: Libvirtd, socket_dir: Path, *, is_reset: bool
) -> None:
    async with libvirtd.domain(socket_dir, "preserve", guest=Guest.COUNT) as vm:
        await vm.panic()
        await vm.wait_event("STOP")
        while not (await vm.state()).startswith("crashed"):
            pass  # each look is a process
        if is_reset:
            with libvirtd.away():
                await vm.witness.execute("system_reset")
                await vm.witness.execute("cont")
        assert (await vm.state()).startswith("crashed")
        async with RunningDaemon.start(
            socket_dir,
            {"on_crash": "destroy", "evidence": {"budget": "0s"}},
            monitors=[],
            libvirt={"uri": libvirtd.uri, "on_crash": "ignore"},
            time_limit=60,
        ) as daemon:
            if not is_reset:
                await daemon.wait_incident("vm", ending="destroyed")
                return
            await daemon.wait_armed("vm")
            assert (await daemon.domain("vm"))["run_state"] == "running"
            assert not daemon.journal()
            await vm.panic()  # and a panic of it is one
            await daemon.wait_incident("vm", ending="destroyed")
