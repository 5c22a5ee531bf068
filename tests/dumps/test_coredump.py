"""Memory dumps of real QEMUs: what they hold, and what is left of those that can't be made."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from panicd.dumps import checks as dump_checks
from panicd.dumps import coredump
from panicd.dumps import writer as dump_writer
from panicd.dumps.checks import GuestMemory
from panicd.dumps.coredump import (
    DumpError,
    DumpFailure,
    DumpProgress,
    FinishedDump,
    dump_guest_memory,
)
from panicd.dumps.directory import Space
from panicd.dumps.facts import dump_facts
from panicd.dumps.page_selection import PageSelection, selected_pages
from panicd.dumps.standby import DumpHost
from panicd.qemu.monitor import (
    Command,
    CommandError,
    Monitor,
    SessionLostError,
    event_loop,
    open_monitor,
)
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer, is_qemu_program
from panicd.qemu.session import Session
from panicd.rules.capability import Version
from panicd.rules.machine.vm import with_capability
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.parts.patience import fail_after, patience
from tests.parts.qemu import RealQemu
from tests.parts.sessions import ignore, nobody
from tests.parts.small_disk import small_disk

pytestmark = pytest.mark.real

MIB = 1 << 20
MEMORY = 16 * MIB
NOISE = os.urandom(12 * MIB)
"""What most of a guest's memory is filled with, so that it does not compress."""

INCIDENT = "20260101T000000-abcd"
MAGIC = {
    DumpFormat.ELF: b"\x7fELF",
    DumpFormat.ELF_ZSTD: b"\x28\xb5\x2f\xfd",
    DumpFormat.KDUMP_ZLIB: b"KDUMP   ",
}
OFFERED = tuple(MAGIC)
"""The formats that every QEMU from 2.0 on can write."""


@asynccontextmanager
async def session_with(vm: RealQemu) -> AsyncIterator[Session]:
    """A session as the daemon has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.connect(str(vm.socket))
    with Peer(sock, is_qemu_program) as peer:
        async with open_monitor(sock, timeout=10) as monitor:
            answers = await probe(monitor, None, timeout=10)
            session = Session.from_probe(monitor, peer, answers)
            session.listen(ignore, nobody)
            yield session


@asynccontextmanager
async def stopped_vm(socket_dir: Path, name: str = "vm") -> AsyncIterator[RealQemu]:
    """A VM whose guest does not run, its memory full of noise. Inside ``event_loop()``."""
    noise = socket_dir / "noise"
    noise.write_bytes(NOISE)
    loaded = ("-device", f"loader,file={noise},addr={MIB:#x},force-raw=on")
    with fail_after(60):
        async with (
            event_loop(),
            RealQemu.start(socket_dir, paused=True, name=name, extra=loaded) as vm,
        ):
            yield vm


@asynccontextmanager
async def stopped_guest(socket_dir: Path) -> AsyncIterator[Session]:
    """A session with such a VM."""
    async with stopped_vm(socket_dir) as vm, session_with(vm) as session:
        yield session


@pytest.fixture
def settings(socket_dir: Path) -> CoredumpSettings:
    return CoredumpSettings(socket_dir / "coredumps", min_free=FreeSpaceFloor())


@pytest.fixture(autouse=True)
def taken_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guests here are none; a kdump is made of them all the same, of level 1."""

    @asynccontextmanager
    async def select(*_: object) -> AsyncIterator[PageSelection]:
        yield PageSelection(1)

    monkeypatch.setattr(coredump, "selected_pages", select)


class Hold:
    """Holds every writer of a dump where it looks at the free space in the middle of it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._release = threading.Event()
        self._looked: set[int] = set()

    def look(self, _file: int) -> Space:
        """What is called in the place of ``space``; its first call is the look beforehand."""
        if threading.get_ident() in self._looked:
            self._reached.set()
            self._release.wait(patience(60))
        self._looked.add(threading.get_ident())
        return Space(1 << 40, 1 << 40)

    async def reached(self) -> None:
        """Return when a writer is held."""
        await trio.to_thread.run_sync(self._reached.wait, 60)
        assert self._reached.is_set()

    def release(self) -> None:
        """Let them go on."""
        self._release.set()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    hold = Hold()
    monkeypatch.setattr(dump_writer, "space", hold.look)
    monkeypatch.setattr(dump_writer, "SPACE_CHECK", MIB)
    yield hold
    hold.release()


async def dump(
    session: Session,
    settings: CoredumpSettings,
    kind: DumpFormat = DumpFormat.ELF,
    *,
    progress: DumpProgress | None = None,
    give_way: Callable[[], None] = lambda: None,
) -> FinishedDump:
    return await dump_guest_memory(
        session, settings, "vm", INCIDENT, kind, progress=progress, host=DumpHost(give_way)
    )


def slowly() -> None:
    """Wait before each part of a dump, of which there are sixteen or more: 0.8 s in all."""
    time.sleep(0.05)


async def dump_fails(
    session: Session,
    settings: CoredumpSettings,
    kind: DumpFormat = DumpFormat.ELF,
    give_way: Callable[[], None] = lambda: None,
) -> DumpError:
    """Try a dump; see that nothing is left of it, and that QEMU does as it is told again."""
    with pytest.raises(DumpError) as caught:
        await dump(session, settings, kind, give_way=give_way)
    assert files(settings.directory) == []
    await session.execute("cont")
    return caught.value


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def elf_of(dump: FinishedDump) -> bytes:
    """The ELF core in a dump, by the command that the documentation names."""
    if dump.path.suffix != ".zst":
        return dump.path.read_bytes()
    unpack = ["zstd", "--decompress", "--stdout", str(dump.path)]
    return subprocess.run(unpack, stdout=subprocess.PIPE, check=True).stdout


# -- what is made


@pytest.mark.parametrize("kind", [DumpFormat.ELF, DumpFormat.ELF_ZSTD])
async def test_dump_is_whole_and_nobody_elses_to_read(
    socket_dir: Path, settings: CoredumpSettings, kind: DumpFormat
) -> None:
    progress = DumpProgress()
    async with stopped_guest(socket_dir) as session:
        finished = await dump_guest_memory(
            session, settings, "../vm", INCIDENT, kind, progress=progress
        )
    assert files(settings.directory) == [finished.path]
    assert finished.path.parent.parent == settings.directory / str(os.geteuid())
    assert finished.path.read_bytes().startswith(MAGIC[kind])
    assert finished.size == finished.path.stat().st_size > len(NOISE)
    assert stat.S_IMODE(finished.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(finished.path.parent.stat().st_mode) == 0o700
    assert progress.received > len(NOISE)


@pytest.mark.parametrize("kind", [DumpFormat.ELF, DumpFormat.ELF_ZSTD])
async def test_elf_holds_the_memory(
    socket_dir: Path, settings: CoredumpSettings, kind: DumpFormat
) -> None:
    async with stopped_guest(socket_dir) as session:
        content = elf_of(await dump(session, settings, kind))
    assert len(content) > MEMORY
    assert NOISE in content


async def test_progress_is_seen_while_it_goes_on(
    socket_dir: Path, settings: CoredumpSettings, hold: Hold
) -> None:
    progress = DumpProgress()
    async with stopped_guest(socket_dir) as session, trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(dump, session, settings, DumpFormat.KDUMP_ZLIB, progress=progress)
        )
        await hold.reached()
        while progress.completed == 0:
            await trio.lowlevel.checkpoint()
        assert progress.began is not None
        assert progress.total is not None
        assert 0 < progress.completed < MEMORY <= progress.total
        assert 0 < progress.received < MEMORY
        hold.release()
    assert files(settings.directory) != []


async def test_end_of_an_earlier_dump_is_not_taken_for_its_own(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    async with stopped_guest(socket_dir) as session:
        full = os.open("/dev/full", os.O_WRONLY)
        await session.qmp.send_fd(full, "full", timeout=5)
        os.close(full)
        arguments = {"paging": False, "protocol": "fd:full", "begin": 0, "length": 4096}
        with pytest.raises(CommandError, match="No space left"):
            await session.execute("dump-guest-memory", arguments)
        assert (await dump(session, settings)).size > MEMORY


async def test_two_guests_are_dumped_at_once(socket_dir: Path, settings: CoredumpSettings) -> None:
    async with (
        stopped_vm(socket_dir, "a") as a,
        RealQemu.start(socket_dir, paused=True, name="b") as b,
        session_with(a) as first,
        session_with(b) as second,
        trio.open_nursery() as nursery,
    ):
        for name, session in (("a", first), ("b", second)):
            nursery.start_soon(
                dump_guest_memory, session, settings, name, INCIDENT, DumpFormat.ELF_ZSTD
            )
    finished = {
        path.relative_to(settings.directory).as_posix() for path in files(settings.directory)
    }
    assert finished == {f"{os.geteuid()}/{name}/{INCIDENT}.elf.zst" for name in "ab"}


async def test_what_a_killed_daemon_left_is_removed(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    left = settings.directory / "other" / f"{INCIDENT}.elf.partial"
    left.parent.mkdir(parents=True)
    left.touch()
    async with stopped_guest(socket_dir) as session:
        finished = await dump(session, settings)
    assert files(settings.directory) == [finished.path]


# -- what can't be made


@pytest.fixture(name="disk")
def small_disk_of_a_test(socket_dir: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with small_disk(socket_dir, "8m") as disk:
        yield disk


@pytest.mark.parametrize("kind", OFFERED)
async def test_disk_that_fills_up(
    socket_dir: Path,
    disk: Path,
    settings: CoredumpSettings,
    kind: DumpFormat,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dump_writer, "space", lambda _file: Space(1 << 40, 1 << 40))
    async with stopped_guest(socket_dir) as session:
        error = await dump_fails(session, replace(settings, directory=disk), kind)
    assert error.failure is DumpFailure.NO_SPACE
    assert "No space left on device" in str(error)
    assert files(disk) == []


async def test_floor_that_is_reached(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = iter([Space(1 << 40, 1 << 40), Space(1 << 40, 5000)])
    monkeypatch.setattr(dump_writer, "space", lambda _file: next(spaces))
    monkeypatch.setattr(dump_writer, "SPACE_CHECK", 4 * MIB)
    settings = replace(settings, min_free=FreeSpaceFloor(size=6000))
    async with stopped_guest(socket_dir) as session:
        error = await dump_fails(session, settings)
    assert str(error) == "no-space: 1000 bytes below min_free"


async def test_too_little_space_is_seen_beforehand(
    socket_dir: Path, disk: Path, settings: CoredumpSettings
) -> None:
    progress = DumpProgress()
    settings = replace(settings, directory=disk, level=0)
    async with stopped_guest(socket_dir) as session:
        with pytest.raises(DumpError, match=f"of the {MEMORY} bytes that it takes") as caught:
            await dump(session, settings, progress=progress)
    assert caught.value.failure is DumpFailure.NO_SPACE
    assert progress.received == 0
    assert files(disk) == []


async def test_space_that_cant_be_told_is_not_taken_for_enough(
    socket_dir: Path, settings: CoredumpSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: int) -> Space:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(dump_writer, "space", fail)
    async with stopped_guest(socket_dir) as session:
        error = await dump_fails(session, settings)
    assert error.failure is DumpFailure.UNWRITABLE


async def test_directory_that_cant_be_written(socket_dir: Path, settings: CoredumpSettings) -> None:
    file = socket_dir / "not-a-directory"
    file.touch()
    async with stopped_guest(socket_dir) as session:
        error = await dump_fails(session, replace(settings, directory=file / "coredumps"))
    assert error.failure is DumpFailure.UNWRITABLE


@pytest.mark.parametrize("kind", OFFERED)
async def test_dump_that_takes_too_long(
    socket_dir: Path, settings: CoredumpSettings, kind: DumpFormat
) -> None:
    async with stopped_guest(socket_dir) as session:
        error = await dump_fails(session, replace(settings, timeout=0.2), kind, slowly)
    assert error.failure is DumpFailure.TIMEOUT


@pytest.mark.parametrize("version", [(2, 0, 0), (7, 2, 0)])
async def test_dump_that_was_out_of_time_before_it_began(
    socket_dir: Path, settings: CoredumpSettings, version: Version
) -> None:
    async with stopped_guest(socket_dir) as session:
        session.vm = with_capability(session.vm, replace(session.capability, version=version))
        error = await dump_fails(session, replace(settings, timeout=1e-9))
    assert error.failure is DumpFailure.TIMEOUT


async def test_blocking_dump_that_takes_too_long(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    async with stopped_guest(socket_dir) as session:
        # Dumps as panicd has those dump that are older than 2.6.
        old = replace(session.capability, version=(2, 0, 0))
        session.vm = with_capability(session.vm, old)
        error = await dump_fails(session, replace(settings, timeout=0.2), DumpFormat.ELF, slowly)
        assert error.failure is DumpFailure.TIMEOUT


@pytest.mark.parametrize(
    ("status", "failure"),
    [(1, DumpFailure.UNWRITABLE), (errno.EDQUOT, DumpFailure.NO_SPACE)],
)
async def test_compressor_that_fails(
    socket_dir: Path,
    settings: CoredumpSettings,
    status: int,
    failure: DumpFailure,
    *,
    own_program: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = own_program(f"import os\n\ndef main(_):\n    os.read(0, 1)\n    return {status}\n")
    monkeypatch.setattr(dump_writer, "ELF_FILTER", program)
    async with stopped_guest(socket_dir) as session:
        error = await dump_fails(session, settings, DumpFormat.ELF_ZSTD)
    assert error.failure is failure


@pytest.mark.parametrize("kind", OFFERED)
async def test_qemu_that_is_killed_in_the_middle(
    socket_dir: Path, settings: CoredumpSettings, kind: DumpFormat, hold: Hold
) -> None:
    async def is_lost() -> None:
        with pytest.raises(SessionLostError):
            await dump(session, settings, kind)

    async with (
        stopped_vm(socket_dir) as vm,
        session_with(vm) as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(is_lost)
        await hold.reached()
        assert len(files(settings.directory)) == 1
        vm.kill()
        await vm.wait_exit()
        hold.release()
    assert files(settings.directory) == []


@pytest.mark.parametrize("required", [False, True])
async def test_guest_of_which_nothing_can_be_left_out(
    socket_dir: Path, settings: CoredumpSettings, required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coredump, "selected_pages", selected_pages)
    settings = replace(settings, level_required=required)
    async with stopped_guest(socket_dir) as session:
        if required:
            error = await dump_fails(session, settings, DumpFormat.KDUMP_ZLIB)
            assert error.failure is DumpFailure.UNFILTERED
            return
        finished = await dump(session, settings, DumpFormat.KDUMP_ZLIB)
    assert NOISE in elf_of(finished)
    facts = dump_facts(finished.path)
    assert (facts.level, facts.left_out) == (1, {})
    assert finished.selection is not None
    assert (
        facts.reason
        == finished.selection.reason
        == "a guest of 32-bit x86: neither 64-bit x86 nor 64-bit Arm"
    )
    assert facts.open[0] == f"zstd -d {finished.path}"


@pytest.mark.parametrize("act", ["system_reset", "cont"])
async def test_guest_that_others_let_go_meanwhile_is_not_dumped(
    socket_dir: Path, settings: CoredumpSettings, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stopped_vm(socket_dir) as vm, session_with(vm) as session:

        @asynccontextmanager
        async def select(*_: object) -> AsyncIterator[PageSelection]:
            await vm.witness.execute(act)
            await session.execute("query-status")  # what was sent before its answer is there
            yield PageSelection(1)

        monkeypatch.setattr(coredump, "selected_pages", select)
        with pytest.raises(DumpError) as caught:
            await dump(session, settings, DumpFormat.KDUMP_ZLIB)
    assert caught.value.failure is DumpFailure.OVERTAKEN
    assert files(settings.directory) == []


async def test_second_dump_of_one_guest_is_refused(
    socket_dir: Path, settings: CoredumpSettings
) -> None:
    reading, writing = os.pipe()
    async with stopped_vm(socket_dir) as vm, session_with(vm) as session:
        await vm.witness.execute("getfd", {"fdname": "other"}, fds=[writing])
        arguments = {"paging": False, "protocol": "fd:other", "detach": True}
        await vm.witness.execute("dump-guest-memory", arguments)
        with pytest.raises(DumpError) as caught:
            await dump(session, settings)
        assert str(caught.value) == "refused: There is a dump in process, please wait."
        os.close(reading)
        os.close(writing)
    assert files(settings.directory) == []


async def test_dump_that_is_cancelled(
    socket_dir: Path, settings: CoredumpSettings, hold: Hold
) -> None:
    async with stopped_guest(socket_dir) as session, trio.open_nursery() as nursery:
        nursery.start_soon(dump, session, settings)
        await hold.reached()
        hold.release()
        nursery.cancel_scope.cancel()
    assert files(settings.directory) == []


# -- what is not tried


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of one's own."""
    monkeypatch.setattr(dump_checks, "PROC", tmp_path)
    return tmp_path


def says(proc: Path, pid: int, *, resident: int, available: int) -> None:
    """Have it tell, in kB, what QEMU holds, and what the host has left."""
    (proc / str(pid)).mkdir()
    status = f"Name:\tqemu\nVmRSS:\t{resident} kB\nHugetlbPages:\t       0 kB\n"
    (proc / str(pid) / "status").write_text(status)
    meminfo = f"MemTotal:       9 kB\nMemFree:        1 kB\nMemAvailable:   {available} kB\n"
    (proc / "meminfo").write_text(meminfo)


async def test_host_with_too_little_memory(
    socket_dir: Path, settings: CoredumpSettings, proc: Path
) -> None:
    async with stopped_guest(socket_dir) as session:
        says(proc, session.peer.pid, resident=4 * 1024, available=12 * 1024 - 1)
        error = await dump_fails(session, settings)
    assert error.failure is DumpFailure.NO_MEMORY
    assert str(12 * MIB) in str(error)
    assert not settings.directory.exists()


@pytest.mark.parametrize(
    ("resident", "available"), [(4 * 1024, 12 * 1024), (64 * 1024, 0)], ids=["enough", "resident"]
)
async def test_host_with_memory_enough(
    socket_dir: Path, settings: CoredumpSettings, proc: Path, resident: int, available: int
) -> None:
    async with stopped_guest(socket_dir) as session:
        says(proc, session.peer.pid, resident=resident, available=available)
        await dump(session, settings)


async def test_host_that_does_not_tell_is_no_reason_to_do_without(
    socket_dir: Path, settings: CoredumpSettings, proc: Path
) -> None:
    assert files(proc) == []
    async with stopped_guest(socket_dir) as session:
        await dump(session, settings)


SEV = {"query-sev": {"enabled": True, "state": "running", "policy": 3}}
TDX = {"qom-list": [{"name": "type", "type": "string"}, {"name": "t", "type": "child<tdx-guest>"}]}


@pytest.mark.parametrize("answers", [SEV, TDX], ids=["SEV", "TDX"])
async def test_encrypted_guest(
    socket_dir: Path,
    settings: CoredumpSettings,
    answers: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(_self: Monitor, commands: list[Command], *, timeout: float) -> list[object]:
        assert timeout > 0
        refused = CommandError("CommandNotFound", "not here")
        return [answers.get(name, refused) for name, _ in commands]

    async with stopped_guest(socket_dir) as session:
        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "execute_all", answer)
            with pytest.raises(DumpError) as caught:
                await dump(session, settings)
    assert caught.value.failure is DumpFailure.ENCRYPTED
    assert not settings.directory.exists()


async def test_host_and_qemu_tell_how_much_a_guest_may_write(socket_dir: Path) -> None:
    display = ("-device", "VGA,vgamem_mb=128")
    async with (
        event_loop(),
        RealQemu.start(socket_dir, paused=True, extra=display) as vm,
        session_with(vm) as session,
    ):
        memory = await dump_checks.check_guest(session)
    assert memory.size is not None
    assert memory.blocks is not None
    assert memory.size + 128 * MIB <= memory.blocks < memory.size + 132 * MIB
    assert memory.possible is not None
    most = memory.most_dump()
    assert most is not None
    assert memory.blocks < most < memory.blocks * 1.04 + 64 * MIB


@pytest.mark.parametrize("answer", [None, {}, {"human-readable-text": 1}, "", {"a": 1}])
def test_blocks_that_are_not_told_are_not_known(answer: object) -> None:
    assert dump_checks.blocks_of(answer) is None


@pytest.mark.parametrize(
    ("memory", "most"),
    [
        (GuestMemory(None, None), None),
        (GuestMemory(32 * MIB, None), 33 * MIB + 64 * MIB),
        (GuestMemory(32 * MIB, None, 64 * MIB), 66 * MIB + 64 * MIB),
        (GuestMemory(1 << 60, None, 1 << 62, 32 * MIB), 33 * MIB + 64 * MIB),
        (GuestMemory(None, None, None, 32 * MIB, 8), 33 * MIB + 64 * MIB + 8),
    ],
)
def test_most_that_a_dump_may_take(memory: GuestMemory, most: int | None) -> None:
    assert memory.most_dump() == most


@pytest.mark.parametrize(
    ("kind", "level", "left_out", "structures", "expected"),
    [
        (DumpFormat.ELF, 0, 0, 0, 1000),
        (DumpFormat.ELF, 1, 0, 0, 600),
        (DumpFormat.ELF_ZSTD, 1, 0, 0, 180),
        (DumpFormat.KDUMP_ZLIB, 31, 700, 0, 90),
        (DumpFormat.KDUMP_ZLIB, 31, 700, 100, 70),
        (DumpFormat.KDUMP_ZLIB, 31, 700, 1 << 60, 30),
        (DumpFormat.KDUMP_ZLIB, 31, 1 << 60, 100, 0),
    ],
)
def test_what_a_dump_is_expected_to_take(
    kind: DumpFormat, level: int, left_out: int, structures: int, expected: int
) -> None:
    memory = GuestMemory(1000, 600)
    assert memory.expected_dump(kind, level, left_out, structures) == expected
    assert GuestMemory(None, 600).expected_dump(kind, level, left_out, structures) is None
