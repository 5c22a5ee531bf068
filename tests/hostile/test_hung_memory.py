"""A process that keeps its memory locked: who reads its /proc/PID/cmdline hangs, as ps(1) does.

Any user can have one: by /proc/self/mem he reads a page that his own file system (FUSE) never gives
and has another thread map something meanwhile. So does a QEMU whose storage hangs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from panicd.qemu import process, process_arguments, process_list
from panicd.qemu.process_identity import read_of, uids_of
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.nobody import NOBODY, needs_root
from tests.parts.patience import patience
from tests.parts.qemu import RealQemu


@pytest.fixture
def read() -> list[int]:
    """Whose command lines were read."""
    return []


@pytest.fixture
def begun() -> list[int]:
    """Whose command lines a thread has begun to read."""
    return []


@pytest.fixture(autouse=True)
def hung(
    monkeypatch: pytest.MonkeyPatch, read: list[int], begun: list[int]
) -> Iterator[threading.Event]:
    """Have this process's command line, the fakes' that is, not be read."""
    let_go = threading.Event()

    def read_without_end(pid: int, name: str, limit: int) -> bytes | None:
        begun.append(pid)
        if (pid, name) == (os.getpid(), "cmdline"):
            assert threading.current_thread() is not threading.main_thread(), "all would hang"
            let_go.wait()
        read.append(pid)
        return read_of(pid, name, limit)

    monkeypatch.setattr(process_arguments, "read_of", read_without_end)
    monkeypatch.setattr(process_arguments, "READ_WITHIN", patience(0.5))
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
    def owner(pid: int) -> set[int] | None:
        return {NOBODY} if pid == os.getpid() else uids_of(pid)

    monkeypatch.setattr(process_arguments, "READERS", 1)
    monkeypatch.setattr(
        process, "read_arguments", lambda pid, _: process_arguments.read_arguments(pid, owner(pid))
    )
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


@pytest.mark.real
async def test_audit_names_it_and_goes_on(
    socket_dir: Path, hung: threading.Event, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def executed_by(pid: int) -> str:
        if pid == os.getpid():
            return "qemu-system-x86_64"
        return process.executed_by(pid)

    monkeypatch.setattr(process_list, "executed_by", executed_by)
    elsewhere = socket_dir / "e"
    elsewhere.mkdir()
    async with (
        DaemonInside.start(socket_dir) as daemon,
        RealQemu.start(elsewhere, name="good") as good,
    ):
        for _ in range(2):
            told = {each["pid"]: each for each in (await daemon.call("audit"))["exposed"]}
            assert "ps ax" in told[os.getpid()]["reasons"]["no-monitor"]
            assert str(good.socket) in told[good.pid]["reasons"]["no-monitor"]
        assert not hung.is_set()
        assert begun.count(os.getpid()) == 1, "it is not read again"
        hung.set()
        while os.getpid() in {each["pid"] for each in (await daemon.call("audit"))["exposed"]}:
            pass


async def test_one_user_s_processes_hold_a_few_threads(
    hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []

    def read_without_end(pid: int, _name: str, _limit: int) -> bytes | None:
        began.append(pid)
        hung.wait()
        return None

    def owner(pid: int) -> set[int]:
        return {0} if pid == 1 else {NOBODY}

    monkeypatch.setattr(process_arguments, "read_of", read_without_end)
    monkeypatch.setattr(process_arguments, "READ_WITHIN", 0.01)
    monkeypatch.setattr(process_arguments, "uids_of", owner)
    most = process_arguments.READERS

    async def ask(pid: int) -> None:
        with pytest.raises(process_arguments.ArgumentsHangError):
            await process_arguments.read_arguments(pid)

    pids = count(1000)
    while len(began) < most:
        await ask(next(pids))
    of_user = list(began)
    for pid in [*of_user, next(pids), next(pids)]:
        await ask(pid)
    assert began == of_user
    while 1 not in began:
        await ask(1)
    assert began == [*of_user, 1]
