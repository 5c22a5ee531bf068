"""A host without a thread left."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.qemu.threads import NoThreadError, in_thread
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu


async def test_bug_in_the_work_is_no_lack_of_threads() -> None:
    def work() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await in_thread(work)


async def test_lack_of_threads_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_arguments: Any, **_keywords: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    with pytest.raises(NoThreadError, match="no thread is left"):
        await in_thread(lambda: None)


async def test_guest_is_restarted_without_evidence_and_dump_where_no_thread_is_left(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"on_crash": "coredump-restart", "evidence": {"budget": "3s"}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        with monkeypatch.context() as patched:

            async def refuse_evidence(*arguments: Any, **keywords: Any) -> Any:
                if "limiter" in keywords:  # panicd's, and not the fake's own
                    await trio.lowlevel.checkpoint()
                    raise RuntimeError("can't start new thread")
                return await run_sync(*arguments, **keywords)

            def refuse(_thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            run_sync = trio.to_thread.run_sync
            patched.setattr(trio.to_thread, "run_sync", refuse_evidence)
            patched.setattr(threading.Thread, "start", refuse)
            vm.panic()
            incident = await daemon.wait_incident("vm", ending="restarted")
        assert ("Collect", "done") in incident.steps
        assert ("Dump", "failed") in incident.steps
        assert "no thread is left" in str(incident.details)
