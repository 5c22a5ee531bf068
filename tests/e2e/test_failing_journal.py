"""A journal that can't be written or read is loud, and stops what it is there to secure."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from panicd.incident import adoption
from panicd.journal.journal import Journal, JournalError
from panicd.rules.incident import AnyEntry, Closed, State
from panicd.rules.machine import resting
from panicd.service.control_client import RefusedError
from tests.journal.journals import change
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState
from tests.parts.small_disk import fill, small_disk

RESTART = {"on_crash": "restart"}
Done = Callable[[BaseException | None], None]


@pytest.fixture(name="disk")
def small_disk_of_a_test(socket_dir: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(socket_dir, "1m") as disk:
        yield disk


async def check_unwritable(daemon: RunningDaemon) -> None:
    """Check that log, status and metric say that the journal can't be written."""
    await daemon.wait_log("the journal can't be written", level="error")
    status = await daemon.call("status")
    assert status["journal_fault"]
    assert await daemon.metric("panicd_journal_healthy") == 0


async def test_nothing_is_done_while_the_disk_is_full(socket_dir: Path, disk: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with (
        RunningDaemon.start(socket_dir, RESTART, state_directory=str(disk)) as daemon,
        fake.running(),
        FakeQemu(socket_dir / "idle.qmp", name="idle").running(),
    ):
        for name in ("vm", "idle"):
            await daemon.wait_armed(name)
        filler = fill(disk)
        fake.panic()
        await check_unwritable(daemon)
        assert await daemon.foreseen("idle") == ("preserve", "journal")
        # Connected anew, it tries again, and again finds that it can't.
        await daemon.wait_log("the journal can't be written", count=3)
        assert fake.acting_commands == []
        assert fake.machine.state is RunState.GUEST_PANICKED

        filler.unlink()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("restart", "on-crash")]
        assert fake.acting_commands == ["system_reset", "cont"]
        assert await daemon.metric("panicd_journal_healthy") == 1
        assert len(daemon.journal()) == 1


@pytest.mark.parametrize("on_failure", ["preserve", "act"])
async def test_journal_that_cannot_be_written_stops_actions_unless_told_otherwise(
    socket_dir: Path, on_failure: str
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    journal = {"on_failure": on_failure, "before_action": "disk"}
    async with (
        RunningDaemon.start(socket_dir, RESTART, journal=journal) as daemon,
        fake.running(),
    ):
        await daemon.wait_armed("vm")
        # No file may grow beyond this any more: setrlimit(2), RLIMIT_FSIZE.
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        fake.panic()
        await check_unwritable(daemon)
        if on_failure == "act":
            assert await daemon.foreseen("vm") == ("restart", "on-crash")
            await fake.wait_command("cont")
            await daemon.wait_incident("vm", ending="restarted")
        else:
            await daemon.wait_log("the journal can't be written", count=2)
        assert fake.acting_commands == (["system_reset", "cont"] if on_failure == "act" else [])

        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, unlimited)
        await daemon.wait_incident("vm", ending="restarted")
        assert fake.acting_commands == ["system_reset", "cont"]
        await daemon.terminate()
        (kept,) = daemon.journal()
        assert kept.closed is not None


async def test_what_was_done_without_the_journal_is_written_once_it_can_be(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    can_be_written = False
    append_soon = Journal.append_soon

    def append_if_it_can_be(
        journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
    ) -> None:
        if not can_be_written:
            raise JournalError("no space left on device")
        append_soon(journal, incident_id, entries, done)

    monkeypatch.setattr(Journal, "append_soon", append_if_it_can_be)
    monkeypatch.setattr(adoption, "RETRY_EVERY", 0.02)
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with (
        DaemonInside.start(socket_dir, RESTART, journal={"on_failure": "act"}) as daemon,
        fake.running(),
    ):
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        await daemon.wait_log("the journal can't be written", since=daemon.mark(), count=2)
        fake.close_session()  # whoever connects anew claims it too, and must not lose it either
        mark = daemon.mark()
        await daemon.wait_armed("vm", since=mark)
        await daemon.wait_log("the journal can't be written", since=daemon.mark(), count=2)
        can_be_written = True
        await daemon.wait_kept(incident)
        assert len(daemon.incidents()) == 1
        assert fake.acting_commands == ["system_reset", "cont"]


async def test_open_incident_is_written_once_it_can_be(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resting.LOOK_AFTER, State.PRESERVED, 0.05)
    journal = {"on_failure": "act"}
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, journal=journal) as daemon, fake.running():
        await daemon.wait_armed("vm")
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "append_soon", refuse)
            fake.panic()
            incident = await daemon.wait_incident("vm", state="preserved")
            await daemon.wait_log("the journal can't be written", since=daemon.mark())
        await daemon.wait_kept(incident)
        assert fake.sessions == 1


@pytest.mark.parametrize(
    ("on_failure", "ends_only", "acted"),
    [("act", False, True), ("preserve", False, False), ("preserve", True, True)],
)
async def test_an_operator_is_told_what_is_known_where_the_journal_can_t_be_written(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, on_failure: str, ends_only: bool, acted: bool
) -> None:
    append_soon = Journal.append_soon

    def refuse_some(
        journal: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
    ) -> None:
        if not ends_only or any(isinstance(entry, Closed) for entry in entries):
            refuse(journal)
        append_soon(journal, incident_id, entries, done)

    fake = FakeQemu(socket_dir / "vm.qmp")
    journal = {"on_failure": on_failure}
    async with DaemonInside.start(socket_dir, journal=journal) as daemon, fake.running():
        await daemon.wait_armed("vm")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(incident)
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "append_soon", refuse_some)
            restart = partial(daemon.call, "act", domain="vm", action="restart", why="looked at it")
            if on_failure == "act":
                answer = await restart()
                assert (answer["done"], answer["ending"]) == (True, "restarted")
            else:
                with pytest.raises(RefusedError, match="it is not known whether it was done"):
                    await restart()
            assert fake.acting_commands == (["system_reset", "cont"] if acted else [])


def refuse(_journal: Journal, *_: object) -> None:
    raise JournalError("no space left on device")


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO operation VALUES (1, 1.0, '{')",
        "INSERT INTO total VALUES ('of-nothing', '', 1)",
    ],
    ids=["operation", "total"],
)
async def test_a_journal_that_can_t_be_started_with_is_set_aside(
    socket_dir: Path, damage: str
) -> None:
    async with RunningDaemon.start(socket_dir) as daemon:
        await daemon.terminate()
        change(socket_dir / "state" / "journal.sqlite3", damage)
        await daemon.start_again()
        await daemon.wait_log("the journal is damaged", level="critical")


async def test_damaged_journal_is_set_aside_and_destructive_actions_wait_for_people(
    socket_dir: Path,
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp")
    async with RunningDaemon.start(socket_dir, RESTART) as daemon, fake.running():
        await daemon.wait_armed("vm")
        await daemon.terminate()
        journal = socket_dir / "state" / "journal.sqlite3"
        journal.write_bytes(b"not a database" * 1000)
        await daemon.start_again()

        said = await daemon.wait_log("the journal is damaged", level="critical")
        damaged = trio.Path(said["set_aside"])
        assert (await damaged.read_bytes()).startswith(b"not a database")
        assert (await daemon.call("status"))["journal_damaged"] is True
        assert await daemon.metric("panicd_journal_healthy") == 0

        await daemon.wait_armed("vm", since=daemon.began)
        assert await daemon.foreseen("vm") == ("preserve", "journal")
        fake.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "journal")]
        assert fake.acting_commands == []

        await damaged.unlink()
        assert await daemon.metric("panicd_journal_healthy") == 1
        await daemon.call("act", domain="vm", action="restart", why="the journal was looked at")
        fake.panic()
        second = await daemon.wait_incident("vm", ending="restarted", count=2)
        assert second.decisions == [("restart", "on-crash")]
