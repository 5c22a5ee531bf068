"""A process that keeps its memory locked: who reads its /proc/PID/cmdline hangs, as ps(1) does.

Any user can have one: by /proc/self/mem he reads a page that his own file system (FUSE) never gives
and has another thread map something meanwhile. So does a QEMU whose storage hangs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from panicd.fleet import audit, connector
from panicd.qemu import process
from panicd.qemu.process_identity import read_of
from panicd.qemu.process_list import RunningQemu
from panicd.service import api
from panicd.service.control_client import RefusedError
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.nobody import NOBODY, needs_root
from tests.parts.patience import patience
from tests.parts.qemu import RealQemu


@pytest.fixture
def read() -> list[int]:
    """Whose command lines were read."""
    return []


@pytest.fixture(autouse=True)
def hung(monkeypatch: pytest.MonkeyPatch, read: list[int]) -> Iterator[threading.Event]:
    """Have this process's command line, the fakes' that is, not be read."""
    let_go = threading.Event()

    def read_without_end(pid: int, name: str, limit: int) -> bytes | None:
        if (pid, name) == (os.getpid(), "cmdline"):
            assert threading.current_thread() is not threading.main_thread(), "all would hang"
            let_go.wait()
        read.append(pid)
        return read_of(pid, name, limit)

    monkeypatch.setattr(process, "read_of", read_without_end)
    monkeypatch.setattr(process, "COMMAND_LINE_WITHIN", 0.2)
    yield let_go
    let_go.set()


@pytest.mark.real
@pytest.mark.parametrize("dials_in", [False, True], ids=["dialled", "dials in"])
async def test_it_holds_up_nobody(socket_dir: Path, hung: threading.Event, dials_in: bool) -> None:
    listening = socket_dir / "in.sock"
    monitors = [{"glob": f"{socket_dir}/*.qmp"}, {"listen": str(listening)}]
    hostile = [
        FakeQemu(
            socket_dir / f"{name}.qmp",
            name=name,
            dial=listening if dials_in else None,
            reconnect=0.01,
        )
        for name in ("one", "other")
    ]
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "restart"}, monitors=monitors) as daemon,
        hostile[0].running(),
        hostile[1].running(),
        RealQemu.start(socket_dir, name="good") as good,
    ):
        await daemon.wait_armed("good")
        await good.panic()
        await daemon.wait_incident("good", ending="restarted")
        for name in ("one", "other"):
            await daemon.wait_armed(name)  # what it was started with is not known, and that is all
        assert not hung.is_set()
        hostile[0].panic()
        await daemon.wait_incident("one", ending="restarted")


@pytest.mark.real
@needs_root
async def test_other_users_processes_are_read_meanwhile(
    socket_dir: Path, hung: threading.Event, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "READERS", 1)
    hostile = FakeQemu(socket_dir / "hostile.qmp", name="hostile", uid=NOBODY)
    async with (
        hostile.running(),
        DaemonInside.start(socket_dir) as daemon,
    ):
        await daemon.wait_armed("hostile")
        async with RealQemu.start(socket_dir, name="good") as good:
            await daemon.wait_armed("good")
            assert good.pid in read
        assert not hung.is_set()


async def test_audit_does_not_wait_for_it(
    socket_dir: Path, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_without_end() -> list[RunningQemu]:
        hung.wait()
        return []

    monkeypatch.setattr(audit, "running_qemus", look_without_end)
    monkeypatch.setattr(api, "LOOKED_AT_WITHIN", 0.1)
    async with DaemonInside.start(socket_dir) as daemon:
        for _ in range(2):
            with pytest.raises(RefusedError, match="hangs at it"):
                await daemon.call("audit")
        hung.set()
        monkeypatch.setattr(api, "LOOKED_AT_WITHIN", patience(5))
        assert (await daemon.call("audit"))["exposed"] == []
