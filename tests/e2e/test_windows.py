"""A guest that stands for a Windows panics: its bug check, who it is the same as, and its dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.windows import windows_guest
from tests.rules.windows_memory import WindowsMemory

TIME_LIMIT = 60.0
LINE = (
    "Windows bug check 0x0000007E SYSTEM_THREAD_EXCEPTION_NOT_HANDLED"
    " (0xFFFFFFFFC0000005, 0xFFFFF8021A201234, 0x0000000000000011, 0x0000000000000022)"
)


@pytest.mark.real
async def test_bug_check_and_dump_of_a_real_guest(socket_dir: Path) -> None:
    policy: dict[str, Any] = {
        "on_crash": "coredump-preserve",
        "evidence": {"budget": "20s"},
        "coredump": {"directory": str(socket_dir / "dumps"), "min_free": "1MiB", "level": 1},
    }
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=TIME_LIMIT) as daemon,
        windows_guest(socket_dir, WindowsMemory(), paused=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.start_guest()
        found = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(found)
        incident: Any = await daemon.call("incident", incident=found.id)
        assert incident["panic_line"] == LINE
        assert incident["signature"]["title"].startswith("bug check 0x7e SYSTEM_THREAD_EXCEPTION")
        assert incident["same"]["count"] == 1
        (dump,) = incident["dumps"]
        assert dump.endswith(f"{found.id}.dmp.zst")
        assert await trio.Path(dump).exists()
        told = await daemon.wait_log("panic line", incident=found.id)
        assert told["panic_line"] == LINE
        assert told["signature"] == incident["signature"]["hash"]
        assert await vm.status() == "guest-panicked"


async def test_the_same_of_hyper_v_s_crash_registers(socket_dir: Path) -> None:
    numbers = dict(
        zip(("arg1", "arg2", "arg3", "arg4", "arg5"), WindowsMemory().bug_check, strict=True)
    )
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "preserve"}) as daemon,
        FakeQemu(socket_dir / "vm.qmp", devices=()).running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic({"type": "hyper-v", **numbers})
        found = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(found)
        incident: Any = await daemon.call("incident", incident=found.id)
        assert incident["panic_line"] == LINE
        told = await daemon.wait_log("panic line", incident=found.id)
        assert (told["panic_line"], told["signature"]) == (LINE, incident["signature"]["hash"])
