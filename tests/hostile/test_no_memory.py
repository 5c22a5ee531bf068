"""The host's memory runs out: what needs much is left out, and the guest is dealt with."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.vitals import address_space

POLICY = {"on_crash": "coredump-restart", "coredump": {"min_free": "1MiB"}}


@pytest.mark.parametrize("left", [0, 1 << 20])
async def test_a_panic_is_dealt_with_once(socket_dir: Path, left: int) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, POLICY) as daemon, vm.running():
        await daemon.wait_armed("vm")
        limit = address_space(daemon.pid) + left
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for count in (1, 2):
            mark = daemon.mark()
            vm.panic()
            incident = await daemon.wait_incident("vm", ending="restarted", since=mark)
            assert ("Dump", "failed") in incident.steps
            assert any(detail.startswith("no-memory: ") for detail in incident.details)
            assert vm.commands.count("system_reset") == vm.commands.count("cont") == count
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, unlimited)
        mark = daemon.mark()
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted", since=mark)
        assert ("Dump", "done") in incident.steps
