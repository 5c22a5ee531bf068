"""Intents outlive panicd, and nothing else; what a killed panicd intended goes into the journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing

from panicd.journal import intents as journal_intents
from panicd.journal.batch import Batch
from panicd.journal.chronicle import Keeping
from panicd.journal.codec import encode
from panicd.journal.database import fold
from panicd.journal.intent_keeping import keep_intents, open_chronicles
from panicd.journal.intents import SPACE, WAITS_AT_MOST, Intent, Intents, IntentsError
from panicd.journal.journal import Journal, JournalError
from panicd.journal.totals import DomainTotals
from panicd.rules.incident import AnyEntry, StepBegun
from panicd.rules.settings import JournalFailure, RecordFirst
from tests.journal.journals import decided, opened
from tests.parts.small_disk import small_disk

IN_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs on any Linux
JOURNAL = Path("/var/lib/panicd/journal.sqlite3")
FIRST: list[AnyEntry] = [opened(), decided(), StepBegun(2.0, 0)]
TEXTS = tuple(map(encode, FIRST))

NOTE_AND_DIE = f"""
import os, signal, sys
from pathlib import Path
from panicd.journal.intents import Intents
intents = Intents.open(Path(sys.argv[1]), Path(sys.argv[2]))
assert intents.take("i1", {TEXTS!r})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory in memory."""
    with tempfile.TemporaryDirectory(prefix="panicd-", dir=IN_MEMORY) as directory:
        yield Path(directory)


@pytest.fixture
def path(runtime: Path) -> Path:
    """Where the intents are to be."""
    return runtime / "control.sock.intents"


def begun(path: Path, journal: Path = JOURNAL) -> Intents:
    intents = Intents.open(path, journal)
    for intent in intents.left:
        intents.written(intent.incident_id)
    return intents


def no_space(_batch: Batch) -> None:
    raise JournalError("no space left on device")


def left(path: Path, journal: Path = JOURNAL) -> list[Intent]:
    intents = Intents.open(path, journal)
    intents.close()
    return list(intents.left)


def test_what_was_intended_outlives_sigkill(path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", NOTE_AND_DIE, path, JOURNAL], check=False)
    assert died.returncode == -signal.SIGKILL
    assert left(path) == [Intent("i1", TEXTS)]
    assert left(path) == [Intent("i1", TEXTS)], "whoever only looks forgets nothing"


def test_what_the_journal_has_is_forgotten_with_the_last_that_it_has_not(path: Path) -> None:
    intents = begun(path)
    assert intents.take("i1", TEXTS)
    assert intents.take("i2", TEXTS[:1])
    intents.written("i1")
    intents.written("unheard of")
    intents.close()
    assert left(path) == [Intent("i2", TEXTS[:1])], "the journal may lose the other, and be right"
    intents = begun(path)
    assert intents.take("i3", TEXTS)
    intents.written("i3")
    intents.close()
    assert left(path) == []


def test_an_intent_that_was_cut_off_is_none(path: Path) -> None:
    intents = begun(path)
    assert intents.take("i1", TEXTS)
    end = intents._end
    assert intents.take("i2", TEXTS)
    intents._memory[end + 30] ^= 1
    intents.close()
    assert left(path) == [Intent("i1", TEXTS)]


def test_text_that_is_no_utf8_comes_back_as_it_was(path: Path) -> None:
    texts = (encode(opened(domain="db\udcff\ud800\n")),)
    intents = begun(path)
    assert intents.take("i1", texts)
    intents.close()
    assert left(path) == [Intent("i1", texts)]


def test_there_is_room_for_a_storm_and_no_more(path: Path) -> None:
    intents = begun(path)
    count = 0
    while intents.take(f"i{count}", TEXTS):
        count += 1
    assert count > 2000
    intents.close()
    assert len(left(path)) == count
    assert path.stat().st_size == SPACE


def test_nothing_is_intended_while_an_intent_waits_for_too_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    intents = begun(path)
    assert intents.take("i1", TEXTS)
    now += WAITS_AT_MOST - 0.1
    assert intents.take("i2", TEXTS)
    intents.written("i1")
    now += 0.2  # the oldest is in the journal, and the other has not waited for long
    assert intents.take("i3", TEXTS)
    now += WAITS_AT_MOST
    assert not intents.take("i4", TEXTS)
    intents.written("i2")
    intents.written("i3")
    assert intents.take("i4", TEXTS)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o620), "another user may have written it"),
        (lambda path: (path.rename(f"{path}.1"), path.symlink_to(f"{path}.1")), "symbolic links"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: path.with_name("other").hardlink_to(path), "another name"),
        (lambda path: path.write_bytes(b"panicd intent 2\n"), "no file of this panicd's"),
        (
            lambda path: subprocess.run(["mkfifo", path.rename(f"{path}.1") and path], check=True),
            "no regular file",
        ),
    ],
)
def test_what_somebody_else_may_have_made_is_not_used(path: Path, spoil: object, why: str) -> None:
    begun(path).close()
    assert callable(spoil)
    spoil(path)
    with pytest.raises(IntentsError, match=why):
        Intents.open(path, JOURNAL)


def test_a_file_of_another_user_is_not_used(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    begun(path).close()
    os.chown(path, 65534, -1)
    with pytest.raises(IntentsError, match="another user"):
        Intents.open(path, JOURNAL)


def test_a_file_on_a_disk_would_outlive_the_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    device = tmp_path.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    mounts.write_text(f"21 1 {name} / / rw,relatime shared:1 - ext4 /dev/vda rw\n")
    monkeypatch.setattr(journal_intents, "MOUNTS", mounts)
    with pytest.raises(IntentsError, match="not on a tmpfs"):
        Intents.open(tmp_path / "control.sock.intents", JOURNAL)
    assert not (tmp_path / "control.sock.intents").exists()
    mounts.write_text(f"21 1 {name} / /run rw,nosuid shared:1 - tmpfs tmpfs rw\n")
    Intents.open(tmp_path / "control.sock.intents", JOURNAL).close()


def test_a_full_file_system_is_told_at_once(runtime: Path) -> None:
    with small_disk(runtime, "1m") as disk, pytest.raises(IntentsError, match="No space left"):
        Intents.open(disk / "control.sock.intents", JOURNAL)


def test_two_do_not_share_them(path: Path) -> None:
    intents = begun(path)
    with pytest.raises(IntentsError, match="another process has it open"):
        Intents.open(path, JOURNAL)
    assert intents.take("i1", TEXTS)
    intents.close()
    with pytest.raises(IntentsError, match=f"intents for {JOURNAL}"):
        Intents.open(path, Path("/elsewhere"))
    begun(path).close()
    begun(path, Path("/elsewhere")).close()  # there is nothing left


async def test_the_journal_gets_what_it_has_not(runtime: Path, tmp_path: Path) -> None:
    path, socket = runtime / "control.sock.intents", runtime / "control.sock"
    with Journal.open(tmp_path / "journal") as journal:
        await journal.append("i1", *FIRST, StepBegun(3.0, 1))
        intents = begun(path, journal.path)
        assert intents.take("i1", TEXTS)
        assert intents.take("i2", TEXTS)
        intents.close()
        journal.channels = ("hook",)
        with structlog.testing.capture_logs() as logs:
            taken = keep_intents(socket, journal, RecordFirst.MEMORY).intents
        assert [each["incident"] for each in logs] == ["i2"]
        assert journal.history("i1") == [*FIRST, StepBegun(3.0, 1)]
        assert journal.history("i2") == FIRST
        assert journal.totals().domains == {"web-1": DomainTotals(panics=2)}
        assert {each.incident for each in journal.pending("hook")} == {"i2"}
        assert taken is not None
        taken.close()
        assert left(path, journal.path) == []
        await journal.append("i2", StepBegun(3.0, 1))


@pytest.mark.parametrize("unreadable", [("{}",), TEXTS[1:], (*TEXTS, TEXTS[0])])
async def test_what_can_not_be_read_stays_and_does_not_hold_up_the_rest(
    runtime: Path, tmp_path: Path, unreadable: tuple[str, ...]
) -> None:
    path, socket = runtime / "control.sock.intents", runtime / "control.sock"
    with Journal.open(tmp_path / "journal") as journal:
        intents = begun(path, journal.path)
        assert intents.take("i1", unreadable)
        assert intents.take("i2", TEXTS)
        intents.close()
        with structlog.testing.capture_logs() as logs:
            taken, unwritten = keep_intents(socket, journal, RecordFirst.MEMORY)
        assert [(each["log_level"], each["incident"]) for each in logs] == [
            ("critical", "i1"),
            ("warning", "i2"),
        ]
        assert not unwritten
        assert [each.id for each in journal.incidents()] == ["i2"]
        assert taken is not None
        assert not taken.take("i3", TEXTS), "one that can read it may come"
        taken.close()
        assert left(path, journal.path) == [Intent("i1", unreadable)]
        await journal.append("i3", *FIRST)


@pytest.mark.parametrize("first", RecordFirst)
async def test_what_can_not_be_written_is_kept_until_it_can(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: RecordFirst
) -> None:
    path, socket = runtime / "control.sock.intents", runtime / "control.sock"
    with Journal.open(tmp_path / "journal") as journal:
        intents = begun(path, journal.path)
        assert intents.take("i1", TEXTS)
        intents.close()
        with monkeypatch.context() as full, structlog.testing.capture_logs() as logs:
            full.setattr(Batch, "write", no_space)
            kept = keep_intents(socket, journal, first)
        assert [each["log_level"] for each in logs] == ["critical"]
        assert kept.unwritten == {"i1": tuple(FIRST)}
        assert kept.intents is not None
        assert not kept.intents.take("i2", TEXTS)
        counters: Any = SimpleNamespace(count=lambda _before, _entry: None)
        keeping = Keeping(
            journal, counters, time.time, lambda: JournalFailure.PRESERVE, kept.intents
        )
        (chronicle,) = open_chronicles(journal, kept.unwritten, keeping)
        assert chronicle.incident == fold("i1", FIRST)
        await chronicle.commit()
        assert journal.history("i1") == FIRST
        assert kept.intents.take("i2", TEXTS) == (first is RecordFirst.MEMORY)
        kept.intents.written("i2")
        kept.intents.close()
        assert left(path, journal.path) == []


def test_with_the_disk_first_only_old_intents_count(runtime: Path, tmp_path: Path) -> None:
    path, socket = runtime / "control.sock.intents", runtime / "control.sock"
    with Journal.open(tmp_path / "journal") as journal:
        assert keep_intents(socket, journal, RecordFirst.DISK).intents is None
        assert not path.exists()
        intents = begun(path, journal.path)
        assert intents.take("i1", TEXTS)
        intents.close()
        assert keep_intents(socket, journal, RecordFirst.DISK).intents is None
        assert journal.history("i1") == FIRST
        assert not path.exists()


def test_where_nothing_can_be_intended_the_log_says_why(tmp_path: Path) -> None:
    with (
        Journal.open(tmp_path / "journal") as journal,
        structlog.testing.capture_logs() as logs,
    ):
        (tmp_path / "file").touch()
        assert (
            keep_intents(tmp_path / "file" / "x.sock", journal, RecordFirst.MEMORY).intents is None
        )
    assert [(each["log_level"], "waits for the disk" in each["event"]) for each in logs] == [
        ("warning", True)
    ]
