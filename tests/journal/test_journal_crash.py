"""The journal when its process is killed, its disk full, its file as large as it may be.

The process that is killed is this module, run by its name.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from math import ceil
from pathlib import Path

import pytest
import trio

from panicd.journal.journal import Journal, JournalError
from panicd.journal.totals import DomainTotals
from panicd.rules.incident import AnyEntry, Opened, Repeated, Source
from tests.parts.patience import fail_after, patience

PATIENCE = 60.0  # seconds after which a test has failed instead of hanging
WRITERS = 8  # tasks that append at the same time, each to an incident of its own
PADDING = "x" * 2000  # makes an entry fill a disk sooner


def entry(number: int) -> AnyEntry:
    """The entries of an incident, by number: each tells which it is."""
    if number == 0:
        return Opened(0.0, PADDING, "", "", "", Source.EVENT)
    return Repeated(float(number), 1)


async def append_for_ever(path: Path) -> None:
    """Append, and say so of each entry once it is durable: a line of incident and number."""

    async def write(journal: Journal, incident_id: str) -> None:
        for number in count():
            await journal.append(incident_id, entry(number))
            os.write(1, f"{incident_id} {number}\n".encode())  # shorter than PIPE_BUF: whole

    with Journal.open(path) as journal:
        async with trio.open_nursery() as nursery:
            for writer in range(WRITERS):
                nursery.start_soon(write, journal, f"i{writer}")


async def append_up_to_a_limit(path: Path) -> None:
    """Append until no file may grow, then once more without the limit."""
    with Journal.open(path) as journal:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        acknowledged, why = await fill(journal, 0)
        assert acknowledged > 1
        assert "SQLITE_" in why
        assert journal.fault == why
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await journal.append("i0", entry(acknowledged))
        os.write(1, f"{acknowledged + 1}\n".encode())


async def fill(journal: Journal, number: int) -> tuple[int, str]:
    """Append entries from a number on until one is refused; return its number, and why."""
    while True:
        try:
            await journal.append("i0", entry(number))
        except JournalError as error:
            return number, str(error)
        number += 1


@contextmanager
def running(what: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", __name__, what, str(path)], stdout=subprocess.PIPE
    ) as process:
        timer = signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(ceil(patience(PATIENCE)))
        try:
            yield process
        finally:
            process.kill()
            signal.alarm(0)
            signal.signal(signal.SIGALRM, timer)


@pytest.mark.parametrize("kill_after", [1, 2, 9, 40, 150, 600, 2000])
def test_what_was_acknowledged_outlives_sigkill(tmp_path: Path, kill_after: int) -> None:
    path = tmp_path / "journal.sqlite"
    acknowledged: Counter[str] = Counter()
    with running("append_for_ever", path) as process:
        assert process.stdout is not None
        for line_number, line in enumerate(process.stdout, 1):  # to the end: after the kill too
            incident_id, number = line.decode().split()
            assert acknowledged[incident_id] == int(number)
            acknowledged[incident_id] += 1
            if line_number == kill_after:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert acknowledged.total() >= kill_after

    with Journal.open(path) as journal:
        written = {f"i{writer}": journal.history(f"i{writer}") for writer in range(WRITERS)}
        for incident_id, history in written.items():
            assert history == [entry(number) for number in range(len(history))]
            # At most the one that was under way is more than what was acknowledged.
            assert len(history) - acknowledged[incident_id] in {0, 1}
        panics = sum(len(history) for history in written.values())
        assert journal.totals().domains == {PADDING: DomainTotals(panics=panics)}


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with running("append_up_to_a_limit", path) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    with Journal.open(path) as journal:
        assert journal.history("i0") == [entry(number) for number in range(int(out))]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    directory = tmp_path / "disk"
    directory.mkdir()
    if mount is None or umount is None:
        pytest.skip("no mount(8)")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs may be mounted: {made.stderr.strip()}")
    yield directory
    subprocess.run([umount, str(directory)], check=True)


async def test_a_full_disk_is_a_fault_until_there_is_space(small_disk: Path) -> None:
    ballast = trio.Path(small_disk / "ballast")
    await ballast.write_bytes(bytes(64 * 1024))
    path = small_disk / "journal.sqlite"
    with fail_after(PATIENCE):
        with closing(Journal.open(path)) as journal:
            acknowledged, why = await fill(journal, 0)
            assert acknowledged > 1
            assert "SQLITE_FULL" in why
            assert why == (journal.fault or "")
            await ballast.unlink()
            await journal.append("i0", entry(acknowledged))
            assert journal.fault is None
            written, why = await fill(journal, acknowledged + 1)
            assert "SQLITE_FULL" in why
            assert written > acknowledged + 1
        with closing(Journal.open(path)) as journal:
            assert journal.history("i0") == [entry(number) for number in range(written)]


if __name__ == "__main__":
    programs = {f.__name__: f for f in (append_for_ever, append_up_to_a_limit)}
    trio.run(programs[sys.argv[1]], Path(sys.argv[2]))
