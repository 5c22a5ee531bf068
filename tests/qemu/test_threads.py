"""A host without a thread left."""

from __future__ import annotations

import base64
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.incident.relaunch import run_relaunch
from panicd.qemu.threads import NoThreadError, in_thread
from panicd.rules.incident import Outcome
from panicd.rules.plan import RunRelaunch
from panicd.service.control_client import RefusedError
from panicd.web.web import OPEN, Request, WebApp
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu


async def test_bug_in_the_work_is_no_lack_of_threads() -> None:
    def work() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await in_thread(work)


@pytest.mark.usefixtures("none_left")
async def test_lack_of_threads_is_a_fault() -> None:
    with pytest.raises(NoThreadError, match="no thread is left"):
        await in_thread(lambda: None)


@pytest.fixture
def none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio gets no thread."""

    async def refuse(*_arguments: Any, **_keywords: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)


async def test_whoever_asks_where_no_thread_is_left_is_refused_with_the_reason(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        ask = daemon.call
        with monkeypatch.context() as patched:
            run_sync = trio.to_thread.run_sync

            async def refuse(work: Any, *arguments: Any, **keywords: Any) -> Any:
                if getattr(work, "func", work).__module__.startswith("panicd.service.control"):
                    return await run_sync(work, *arguments, **keywords)  # the test's own
                await trio.lowlevel.checkpoint()
                raise RuntimeError("can't start new thread")

            patched.setattr(trio.to_thread, "run_sync", refuse)
            for command in ("incidents", "panics", "audit", "reload"):
                with pytest.raises(RefusedError, match="no thread is left"):
                    await ask(command)
        assert await ask("incidents") == []


@pytest.mark.usefixtures("none_left")
async def test_a_relaunch_where_no_thread_is_left_is_a_failure() -> None:
    result = await run_relaunch(RunRelaunch(5.0, command=("/bin/true",)), {})
    assert (result.outcome, "no thread is left" in result.detail) == (Outcome.FAILED, True)


@pytest.mark.usefixtures("none_left")
async def test_a_login_where_no_thread_is_left_is_an_error_of_its_own() -> None:
    users = {"alice": b"$2b$04$" + b"." * 53}
    app = WebApp(render=bytes, healthy=lambda: True, web=lambda: replace(OPEN, users=users))
    app.start()
    authorization = "Basic " + base64.b64encode(b"alice:secret").decode()
    answer = await app.answer(Request("/", headers={"authorization": authorization}))
    assert answer.status == 500


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
