"""Evidence is taken within its budget, whatever hangs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from panicd.qemu import evidence
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu


@pytest.mark.parametrize("hanging", ["find_logs", "_make"])
async def test_file_system_that_hangs_keeps_nobody_from_anything(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    let_go = threading.Event()

    def hang(*_arguments: Any) -> list[Any]:
        let_go.wait()
        return []

    monkeypatch.setattr(evidence, hanging, hang)
    policy = {"on_crash": "restart", "evidence": {"budget": "200ms"}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    try:
        async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
            await daemon.wait_armed("vm")
            vm.panic()
            incident = await daemon.wait_incident("vm", ending="restarted")
            assert ("Collect", "done") in incident.steps
    finally:
        let_go.set()


async def test_panic_s_words_are_found_on_the_console(socket_dir: Path) -> None:
    console = socket_dir / "console"
    console.write_bytes(b"[    1.000000] Kernel panic - not syncing: VFS\x07\r\n")
    policy = {"on_crash": "restart", "evidence": {"budget": "3s", "consoles": [str(console)]}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic({"type": "s390", "core": 1, "psw-mask": 1, "psw-addr": 2, "reason": "pgmint-loop"})
        incident = await daemon.wait_incident("vm", ending="restarted")
        (told,) = daemon.logged("panic line", incident=incident.id)
        assert told["panic_line"] == r"Kernel panic - not syncing: VFS\x07"
        record: Any = await daemon.call("incident", incident=incident.id)
        assert record["panic_line"] == told["panic_line"]
        facts = record["evidence"]["facts"]
        assert facts["payload"]["summary"].startswith("s390 core 1 has crashed")
        assert facts["decision"]["reason"] == "on-crash"
        assert "/proc/pressure/memory" in record["evidence"]["host"]
