"""A libvirtd that ends while panicd takes a domain's evidence."""

from __future__ import annotations

from pathlib import Path

import trio

from panicd.libvirt.protocol import Procedure
from tests.parts.daemon import DaemonInside
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd


async def test_it_costs_this_session_alone(socket_dir: Path) -> None:
    """It once ended panicd, which waited for the kernel's note."""
    vm = FakeDomain("vm", 1)
    vm.inside += "<features><vmcoreinfo state='on'/></features>"
    async with (
        FakeLibvirtd.start(socket_dir, vm) as fake,
        DaemonInside.start(
            socket_dir, {"evidence": {}}, libvirt={"uri": fake.uri}, monitors=[]
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        fake.faults.hangs.add(Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT)
        fake.panic()
        while Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT not in fake.told:
            await trio.lowlevel.checkpoint()
        await fake.end()
        await daemon.wait_log("domain is not connected", domain="vm")
        fake.faults.hangs.clear()
        await daemon.wait_incident("vm", ending="restarted")
