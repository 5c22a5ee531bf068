"""Old evidence goes, and an incident without says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu


async def test_incident_whose_evidence_was_removed_says_so(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "evidence": {"budget": "3s", "keep": 1}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        first = await daemon.wait_incident("vm", ending="restarted")
        mark = daemon.mark()
        vm.panic()
        second = await daemon.wait_incident("vm", ending="restarted", since=mark)
        await daemon.wait_kept(second)
        await daemon.wait_log("old evidence removed", incident=first.id)
        record: Any = await daemon.call("incident", incident=first.id)
        assert "evidence.keep" in record["evidence"]["removed"]["why"]
        record = await daemon.call("incident", incident=second.id)
        assert record["evidence"]["files"]
        assert "removed" not in record["evidence"]


async def test_evidence_that_cannot_be_removed_keeps_nobody_from_anything(
    socket_dir: Path,
) -> None:
    policy = {"on_crash": "restart", "evidence": {"budget": "3s", "keep": 1}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        first = await daemon.wait_incident("vm", ending="restarted")
        await daemon.call("incident", incident=first.id)  # its bundle is written then
        bundles = socket_dir / "state" / "incidents"
        shutil.rmtree(bundles)
        bundles.write_text("no directory")
        mark = daemon.mark()
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted", since=mark)
        await daemon.wait_log("old evidence could not be removed")
