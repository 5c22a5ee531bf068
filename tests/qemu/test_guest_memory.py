"""The kernel log of a guest, read from its memory: of a real Linux, and where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.event_outlet import Heard
from panicd.qemu.guest_memory import (
    BEGINNING,
    FIRST,
    beginning_of_dump,
    memory_file,
    monitor_reader,
    read_words,
)
from panicd.qemu.monitor import SessionLostError, event_loop, open_monitor
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from panicd.rules.kernel_log import KernelLog, panic_line
from panicd.rules.qapi import DumpCompletedEvent, RunState
from tests.parts.fake import FakeQemu
from tests.parts.linux import BUSY_HOST, Kernel, linux_guest
from tests.parts.machines import ARM, RISCV, S390, Machine
from tests.parts.patience import fail_after
from tests.parts.profile import QEMU_2_8, QEMU_7_2, Profile
from tests.parts.profile import RunState as State
from tests.parts.qemu import RealQemu
from tests.parts.sessions import nobody

TIME_LIMIT = 20.0
LINUX_TIME_LIMIT = 180.0
PANIC = "Kernel panic - not syncing: sysrq triggered crash"


@asynccontextmanager
async def session_at(path: Path, heard: list[Heard] | None = None) -> AsyncIterator[Session]:
    def listen(entry: Heard) -> None:
        if heard is not None:
            heard.append(entry)

    async with event_loop():
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.connect(str(path))
        with Peer.of(sock) as peer:
            async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
                answers = await probe(monitor, None, timeout=TIME_LIMIT, arm=False)
                session = Session.from_probe(monitor, peer, answers)
                session.listen(listen, nobody)
                yield session


@asynccontextmanager
async def fake_session(fake: FakeQemu) -> AsyncIterator[Session]:
    with fail_after(TIME_LIMIT):
        async with fake.running(), session_at(fake.socket) as session:
            yield session


@pytest.mark.linux
@pytest.mark.real
@pytest.mark.parametrize(
    ("extra", "commands"),
    [
        ((), 14),
        # Buffers that the kernel allocated, and are found by page tables of five levels.
        (
            ("-cpu", "max,la57=on", "-append", f"console=ttyS0 panic=0 {BUSY_HOST} log_buf_len=4M"),
            24,
        ),
    ],
    ids=["static", "allocated"],
)
async def test_reads_the_log_of_a_panicked_linux(
    socket_dir: Path, linux_kernel: Kernel, extra: tuple[str, ...], commands: int
) -> None:
    heard: list[Heard] = []
    with fail_after(LINUX_TIME_LIMIT):
        async with linux_guest(
            socket_dir, linux_kernel, proxied=True, extra=("-action", "panic=pause", *extra)
        ) as guest:
            await guest.vm.wait_status("guest-panicked")
            async with session_at(guest.vm.socket, heard) as session:
                before = len(guest.vm.proxy.commands)
                log = await read_words(monitor_reader(session, TIME_LIMIT), 60)
                assert isinstance(log, KernelLog)
                sent = guest.vm.proxy.commands[before:]

                assert panic_line(log.lines) == PANIC
                assert len(log.lines) == 60
                assert not log.complete
                numbers = [line.seq for line in log.lines]
                assert numbers == list(range(numbers[0], numbers[0] + 60))
                assert log.release in str(linux_kernel.image)
                console = await trio.Path(guest.console).read_text(errors="replace")
                for line in log.lines:
                    assert line.text in console or line.level == 7  # debug isn't shown there

                assert set(sent) == {"getfd", "dump-guest-memory"}
                assert len(sent) <= commands
                assert len(heard) == len(sent) / 2
                assert all(isinstance(entry.event, DumpCompletedEvent) for entry in heard)
                assert await session.query_status() is RunState.GUEST_PANICKED

                whole = await read_words(monitor_reader(session, TIME_LIMIT), 10_000)
                assert isinstance(whole, KernelLog)
                assert whole.complete
                assert whole.lines[0].text.startswith("Linux version ")
                assert whole.lines[-60:] == log.lines


@pytest.mark.real
async def test_a_guest_that_is_no_linux(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            RealQemu.start(socket_dir, paused=True) as vm,
            session_at(vm.socket) as session,
        ):
            with pytest.raises(NotReadableError, match=r"a guest of 32-bit x86|no VMCOREINFO"):
                await read_words(monitor_reader(session, TIME_LIMIT), 60)
            assert await session.query_status() is RunState.PRELAUNCH


@pytest.mark.real
@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (ARM, "no VMCOREINFO"),
        (RISCV, "a guest of RISC-V: neither 64-bit x86 nor 64-bit Arm"),
        (S390, "a guest of s390: neither 64-bit x86 nor 64-bit Arm"),
    ],
    ids=["arm", "riscv", "s390"],
)
async def test_a_machine_that_is_no_pc(socket_dir: Path, machine: Machine, reason: str) -> None:
    if shutil.which(machine.qemu) is None:
        pytest.skip(f"no {machine.qemu} here")
    with fail_after(TIME_LIMIT):
        async with (
            RealQemu.start(socket_dir, machine=machine, devices=(), paused=True) as vm,
            session_at(vm.socket) as session,
        ):
            with pytest.raises(NotReadableError, match=reason):
                await read_words(monitor_reader(session, TIME_LIMIT), 60)


@pytest.mark.parametrize(
    ("state", "profile", "reason"),
    [
        (State.RUNNING, QEMU_7_2, "the guest is running"),
        (State.GUEST_PANICKED, QEMU_2_8, "this QEMU has no vmcoreinfo device"),
    ],
)
async def test_such_a_guest_s_memory_is_left_alone(
    socket_dir: Path, state: State, profile: Profile, reason: str
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", state=state, profile=profile)
    async with fake_session(fake) as session:
        before = fake.commands.copy()
        with pytest.raises(NotReadableError, match=reason):
            await read_words(monitor_reader(session, TIME_LIMIT), 60)
        assert fake.commands == before


async def test_the_time_is_over(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", state=State.GUEST_PANICKED)
    async with fake_session(fake) as session:
        fake.hold_dumps()
        with pytest.raises(NotReadableError, match="the time is over"):
            await read_words(monitor_reader(session, 0.2), 60)
        fake.release_dumps()


async def test_there_is_no_note(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", state=State.GUEST_PANICKED)
    async with fake_session(fake) as session:
        with pytest.raises(NotReadableError, match="no VMCOREINFO"):
            await read_words(monitor_reader(session, TIME_LIMIT), 60)


async def test_qemu_refuses(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", state=State.GUEST_PANICKED)
    async with fake_session(fake) as session:
        fake.refuse("dump-guest-memory", "no block there", times=len(FIRST))
        with pytest.raises(NotReadableError, match="QEMU gives no memory: no block there"):
            await read_words(monitor_reader(session, TIME_LIMIT), 60)


def test_qemu_can_t_write_without_bound() -> None:
    with memory_file(4096) as file:
        assert os.pwrite(file, b"xx", 4096 - 1) == 1
        with pytest.raises(PermissionError):
            os.pwrite(file, b"x", 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(file, 4096 + 1)


async def test_qemu_dies(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", state=State.GUEST_PANICKED)
    async with fake_session(fake) as session:
        fake.cut_before("dump-guest-memory")
        with pytest.raises(SessionLostError):
            await read_words(monitor_reader(session, TIME_LIMIT), 60)


async def test_the_notes_are_those_of_a_dump_that_another_makes_and_it_is_given_up() -> None:
    written = 0

    async def dump(path: Path, kind: str, _timeout: float) -> None:
        nonlocal written
        assert kind == "elf"
        async with await trio.open_file(path, "wb", buffering=0) as file:
            try:
                for part in (DUMP_HEAD, *[bytes(65536)] * 1000):
                    written += await file.write(part)
            except BrokenPipeError as error:
                raise DumpError(DumpFailure.REFUSED, "an error occurred") from error

    beginning = await beginning_of_dump(dump, TIME_LIMIT)
    assert beginning.notes == NOTE
    assert written < 1 << 20


async def test_no_dump_no_notes() -> None:
    async def refused(_path: Path, _kind: str, _timeout: float) -> None:
        raise DumpError(DumpFailure.REFUSED, "domain is not running")

    async def short(path: Path, _kind: str, _timeout: float) -> None:
        await trio.Path(path).write_bytes(DUMP_HEAD)

    async def garbage(path: Path, _kind: str, _timeout: float) -> None:
        await trio.Path(path).write_bytes(bytes(BEGINNING))

    async def silent(_path: Path, _kind: str, _timeout: float) -> None:
        await trio.sleep_forever()

    for dump, limit, why in (
        (refused, TIME_LIMIT, "no dump's notes: refused: domain is not running"),
        (short, TIME_LIMIT, "no dump's notes: it ended early"),
        (garbage, TIME_LIMIT, "no dump's notes: .*ELF"),
        (silent, 0.05, "no dump's notes: the time is over"),
    ):
        with pytest.raises(NotReadableError, match=why):
            await beginning_of_dump(dump, limit)


async def test_a_session_that_ends_meanwhile_has_ended() -> None:
    async def lost(_path: Path, _kind: str, _timeout: float) -> None:
        await trio.lowlevel.checkpoint()
        raise SessionLostError("libvirtd has ended the connection")

    with pytest.raises(SessionLostError, match="libvirtd has ended"):
        await beginning_of_dump(lost, TIME_LIMIT)


NOTE = struct.pack("<III8s", 5, 0, 1, b"CORE")
DUMP_HEAD = (
    struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    + struct.pack("<IIQQQQQQ", 4, 0, 176, 0, 0, len(NOTE), len(NOTE), 0)
    + struct.pack("<IIQQQQQQ", 1, 0, 176 + len(NOTE), 0, 0, 1 << 20, 1 << 20, 0)
    + NOTE
)


async def not_asked(_path: Path, _kind: str, _timeout: float) -> None:
    raise AssertionError


@pytest.mark.real
async def test_the_human_monitor_shows_what_is_there(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            RealQemu.start(socket_dir, paused=True) as vm,
            session_at(vm.socket) as session,
        ):
            reader = monitor_reader(session, TIME_LIMIT, by_other=not_asked)
            for request in (ReadRequest(0xF0000, 64 * 1024), ReadRequest(0, 4096)):
                saved = trio.Path(socket_dir) / f"{request.physical:x}"
                where = {"val": request.physical, "size": request.length, "filename": str(saved)}
                await session.execute("pmemsave", where)
                assert await saved.read_bytes() == await reader.read(request)
            with pytest.raises(NotReadableError, match="no guest memory at"):
                await reader.read(ReadRequest(1 << 51, 4096))
