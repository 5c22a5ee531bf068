"""Bundles are written while the actions go on, within limits."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from panicd.evidence import bundle as evidence
from panicd.evidence import bundle_writer
from panicd.evidence.bundle import Bundle, read_manifest
from panicd.evidence.bundle_writer import BundleWriter
from panicd.host.timers import Timers
from tests.parts.background import background
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after

A_TEST = 20.0


class Due:
    """Whether other domains' first commands are due."""

    def __init__(self) -> None:
        self.is_due = False


@pytest.fixture
async def timers() -> AsyncIterator[Timers]:
    timers = Timers()
    async with background() as nursery:
        nursery.start_soon(timers.run)
        yield timers


def writer(timers: Timers, due: Due) -> BundleWriter:
    return BundleWriter(timers, lambda: due.is_due)


def bundle(place: Path, content: bytes = b"oops") -> Bundle:
    made = Bundle(place)
    made.keep("kernel.log", content, "the log")
    return made


def ignore(_problem: str) -> None:
    """Hear how writing a bundle ended."""


async def test_bundles_wait_for_first_commands_unless_somebody_waits_for_them(
    tmp_path: Path, timers: Timers
) -> None:
    due, ended = Due(), list[str]()
    written = writer(timers, due)
    due.is_due = True
    for name in ("a", "b"):
        written.write_soon(bundle(tmp_path / name), dict, 0, ended.append)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == []
    with fail_after(A_TEST):
        await written.written(tmp_path / "a")
        assert (tmp_path / "a" / "bundle.json").exists()
        await written.all_written()
        assert ended == ["", ""]  # who waits has them written
        written.write_soon(bundle(tmp_path / "c"), dict, 0, ended.append)
        due.is_due = False
        while len(ended) < 3:
            await trio.lowlevel.checkpoint()
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert manifest["files"] == {"kernel.log": "the log"}
    assert "/proc/loadavg" in manifest["host"]


async def test_writer_stops_for_first_commands(
    tmp_path: Path, timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    due, ended = Due(), list[str]()
    written = writer(timers, due)
    write = Bundle.write

    def writing(this: Bundle, *arguments: Any) -> None:
        write(this, *arguments)
        due.is_due = True

    monkeypatch.setattr(Bundle, "write", writing)
    told = trio.Event()

    def done(problem: str) -> None:
        ended.append(problem)
        told.set()

    for name in ("a", "b"):
        written.write_soon(bundle(tmp_path / name), dict, 0, done)
    with fail_after(A_TEST):
        await told.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [""]
        due.is_due = False
        while len(ended) < 2:
            await trio.lowlevel.checkpoint()
    assert ended == ["", ""]


async def test_what_waits_is_limited(
    tmp_path: Path, timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_writer, "MOST", 2)
    monkeypatch.setattr(bundle_writer, "MOST_BYTES", 100)
    due = Due()
    due.is_due = True
    written = writer(timers, due)
    room = [written.has_room]
    written.write_soon(bundle(tmp_path / "a"), dict, 0, ignore)
    room.append(written.has_room)
    written.write_soon(bundle(tmp_path / "b"), dict, 0, ignore)
    room.append(written.has_room)
    with fail_after(A_TEST):
        await written.all_written()
        room.append(written.has_room)
        written.write_soon(bundle(tmp_path / "c", b"x" * 100), dict, 0, ignore)
        room.append(written.has_room)
        await written.all_written()
    assert [*room, written.has_room] == [True, True, False, True, False, True]


async def test_bundle_that_cannot_be_written_is_told_of(tmp_path: Path, timers: Timers) -> None:
    due, ended = Due(), list[str]()
    written = writer(timers, due)
    (tmp_path / "a").write_text("no directory")
    written.write_soon(bundle(tmp_path / "a"), dict, 0, ended.append)
    with fail_after(A_TEST):
        await written.written(tmp_path / "a")
    assert "File exists" in ended[0]


@pytest.mark.parametrize("action", ["restart", "destroy"])
async def test_command_does_not_wait_for_the_disk_and_the_daemon_s_end_does(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """The bundle is written when panicd is told to end, however late that is."""
    let_go, make = threading.Event(), evidence._make

    def slow(directory: Path) -> None:
        let_go.wait()
        make(directory)

    monkeypatch.setattr(evidence, "_make", slow)
    policy = {"on_crash": action, "evidence": {"budget": "10s"}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    try:
        async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
            await daemon.wait_armed("vm")
            vm.panic()
            ending = {"restart": "restarted", "destroy": "destroyed"}[action]
            incident = await daemon.wait_incident("vm", ending=ending)
            place = socket_dir / "state" / "incidents" / incident.id
            assert not place.exists()
            threading.Timer(0.2, let_go.set).start()
    finally:
        let_go.set()
    assert (place / "bundle.json").exists()


async def test_evidence_that_cannot_be_written_is_a_problem_until_it_can(socket_dir: Path) -> None:
    policy = {"on_crash": "restart", "evidence": {"budget": "3s"}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    bundles = socket_dir / "state" / "incidents"
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        bundles.write_text("no directory")
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        await daemon.wait_log("the evidence could not be written")
        problem = await daemon.wait_log("there is a problem", where="evidence")
        assert "Not a directory" in problem["what"]
        bundles.unlink()
        vm.panic()
        await daemon.wait_log("the problem is over", where="evidence")


async def test_lost_evidence_is_taken_again_while_the_guest_still_shows_it(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if panicd had been killed: the journal says that there is some, and the disk has none."""
    migrating, vm = [True], FakeQemu(socket_dir / "vm.qmp")
    execute = vm.machine.execute

    def migrate(name: str, arguments: dict[str, Any]) -> Any:
        waits = name == "query-migrate" and migrating[0]
        return {"status": "active"} if waits else execute(name, arguments)

    monkeypatch.setattr(vm.machine, "execute", migrate)
    policy = {"on_crash": "restart", "evidence": {"budget": "10s"}}
    async with vm.running():
        async with DaemonInside.start(socket_dir, policy) as daemon:
            await daemon.wait_armed("vm")
            vm.panic()
            await daemon.wait_log("waiting", until_the_end_of="a migration")
        (place,) = (socket_dir / "state" / "incidents").iterdir()
        assert read_manifest(place)
        shutil.rmtree(place)
        async with DaemonInside.start(socket_dir, policy) as daemon:
            await daemon.wait_log("waiting", until_the_end_of="a migration")
            migrating[0] = False
            await daemon.wait_incident("vm", ending="restarted")
    assert read_manifest(place)
