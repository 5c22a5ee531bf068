"""The dump of a guest that stands for a Windows: as QEMU's own, and as others' tools read it."""

import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.cli.filtering import write_filtered
from panicd.demo.qmp import QmpCommandError
from panicd.dumps.coredump import ALL_OF_WINDOWS, NO_WINDOWS, FinishedDump, dump_guest_memory
from panicd.dumps.facts import dump_facts
from panicd.dumps.reader import read_dumped_log
from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.guest_memory import monitor_reader, read_words
from panicd.qemu.monitor_error import CommandError
from panicd.qemu.session import Session
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows import HEADER_SIZE, WindowsCrash
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu
from tests.parts.windows import windows_guest
from tests.qemu.test_guest_memory import session_at
from tests.rules.windows_memory import BUG_CHECK, KDBG_AT, RUNS, WindowsMemory

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TIME_LIMIT = 60.0
BY_VOLATILITY = """
import sys
from volatility3.framework import contexts
from volatility3.framework.layers import crash, physical
context = contexts.Context()
context.config["file.location"] = sys.argv[1]
context.add_layer(physical.FileLayer(context, "file", "file"))
context.config["dump.base_layer"] = "file"
dump = crash.WindowsCrashDump64Layer(context, "dump", "dump")
print(hex(dump.get_header().BugCheckCode), dump.read(int(sys.argv[2]), 4096).hex())
"""
"""Its plugins want the kernel's symbols, which nobody has of this one: the layer below is read."""


@asynccontextmanager
async def panicked(
    directory: Path, memory: WindowsMemory, processors: int = 1
) -> AsyncIterator[tuple[RealQemu, Session]]:
    with fail_after(TIME_LIMIT):
        async with windows_guest(directory, memory, processors=processors) as vm:
            await vm.wait_status("guest-panicked")
            async with session_at(vm.socket) as session:
                yield vm, session


async def dump(
    session: Session, directory: Path, kind: DumpFormat, *, level: int = 1, required: bool = False
) -> FinishedDump:
    settings = CoredumpSettings(
        directory=directory / "dumps",
        level=level,
        level_required=required,
        min_free=FreeSpaceFloor(),
    )
    return await dump_guest_memory(session, settings, "vm", "20260101T000000-00000000", kind)


async def qemus_own(vm: RealQemu, path: Path) -> bytes:
    await vm.witness.execute(
        "dump-guest-memory", {"paging": False, "protocol": f"file:{path}", "format": "win-dmp"}
    )
    return await trio.Path(path).read_bytes()


@pytest.mark.real
@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("encoded", [False, True])
async def test_as_qemu_writes_it(socket_dir: Path, levels: int, *, encoded: bool) -> None:
    memory = WindowsMemory(levels=levels, encoded=encoded, processors=2)
    async with panicked(socket_dir, memory, processors=2) as (vm, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
        assert made.path.suffix == ".dmp"
        written = made.path.read_bytes()
        assert len(written) == made.size
        assert made.path.stat().st_blocks * 512 < made.size  # what is empty is a hole
        assert written == await qemus_own(vm, socket_dir / "own.dmp")


@pytest.mark.real
async def test_fewer_processors_in_the_header_than_qemu_has(socket_dir: Path) -> None:
    async with panicked(socket_dir, WindowsMemory(processors=1), processors=2) as (vm, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
        assert made.path.read_bytes() == await qemus_own(vm, socket_dir / "own.dmp")


@pytest.mark.real
async def test_a_guest_that_noted_no_bug_check(socket_dir: Path) -> None:
    memory = WindowsMemory(bug_check=(0, 0, 0, 0, 0))
    async with panicked(socket_dir, memory) as (vm, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
        assert made.path.read_bytes() == await qemus_own(vm, socket_dir / "own.dmp")
        assert made.path.read_bytes()[0x38:0x3C] == b"\x61\x01\0\0"


@pytest.mark.real
async def test_chosen_by_itself_and_packed(socket_dir: Path) -> None:
    async with panicked(socket_dir, WindowsMemory()) as (vm, session):
        made = await dump(session, socket_dir, DumpFormat.KDUMP_ZLIB, level=31)
        assert made.selection is not None
        assert (made.selection.level, made.selection.reason) == (1, ALL_OF_WINDOWS)
        with zstd.open(made.path) as unpacked:
            assert unpacked.read() == await qemus_own(vm, socket_dir / "own.dmp")
    facts = dump_facts(made.path)
    assert (facts.level, facts.reason) == (1, ALL_OF_WINDOWS)
    core = str(made.path).removesuffix(".zst")
    assert facts.open == (
        f"zstd -d {made.path}",
        f"windbg -z {core}",
        f"vol -f {core} windows.crashinfo",
    )
    with pytest.raises(NotReadableError, match="the guest is a Windows"):
        read_dumped_log(made.path)
    with (
        (socket_dir / "filtered").open("wb") as target,
        pytest.raises(NotReadableError, match="the guest is a Windows"),
    ):
        write_filtered(made.path, 31, target)


@pytest.mark.real
async def test_an_elf_core_where_one_is_asked_for(socket_dir: Path) -> None:
    async with panicked(socket_dir, WindowsMemory()) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.ELF)
    assert made.path.suffix == ".elf"
    with pytest.raises(NotReadableError, match="the guest is a Windows"):
        read_dumped_log(made.path)


@pytest.mark.real
async def test_all_of_a_windows_is_more_than_a_level_allows(socket_dir: Path) -> None:
    async with panicked(socket_dir, WindowsMemory()) as (_, session):
        with pytest.raises(DumpError, match="of a Windows all pages") as raised:
            await dump(session, socket_dir, DumpFormat.KDUMP_ZLIB, level=31, required=True)
    assert raised.value.failure is DumpFailure.UNFILTERED


@pytest.mark.real
async def test_no_windows(socket_dir: Path) -> None:
    memory = WindowsMemory(edits={0: b"LINU"})
    async with panicked(socket_dir, memory) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
    assert made.path.name.endswith(".elf.zst")
    assert made.selection is not None
    assert made.selection.reason == NO_WINDOWS


@pytest.mark.real
@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({0x88: struct.pack("<I", 500)}, "a Windows with 500 runs of memory"),
        (
            {0x90: struct.pack("<Q", 3742 + (1 << 30)), 0xC0: struct.pack("<Q", 1 << 30)},
            "more than it has",
        ),
        ({0x40: bytes(8), 0x80: bytes(8)}, "no debugger data block"),
        ({0x30: struct.pack("<I", 0xAA64)}, "a Windows of 64-bit Arm: not of 64-bit x86"),
    ],
    ids=["runs beyond the header", "runs without end", "no KDBG", "another machine"],
)
async def test_a_header_that_is_not_to_be_used(
    socket_dir: Path, edits: dict[int, bytes], reason: str
) -> None:
    async with panicked(socket_dir, WindowsMemory(edits=edits)) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.KDUMP_ZLIB)
    assert made.path.name.endswith(".elf.zst")
    assert made.selection is not None
    assert reason in made.selection.reason


@pytest.mark.real
async def test_without_registers_the_guest_s_own_contexts_stay(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = WindowsMemory()
    asked = Session.execute

    async def execute(session: Session, command: str, *arguments: Any) -> Any:
        if command == "human-monitor-command":
            raise CommandError("CommandNotFound", "not by libvirt")
        return await asked(session, command, *arguments)

    monkeypatch.setattr(Session, "execute", execute)
    async with panicked(socket_dir, memory) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
    assert made.path.suffix == ".dmp"
    assert b"old old old" in made.path.read_bytes()


@pytest.mark.real
async def test_memory_that_is_not_there_reads_as_zeros(socket_dir: Path) -> None:
    memory = WindowsMemory(runs=((0x1, 0xF00),))  # with a VGA's in the midst
    async with panicked(socket_dir, memory) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
    written = made.path.read_bytes()
    assert made.size == HEADER_SIZE + 0xF00 * PAGE
    assert not any(written[HEADER_SIZE + 0x9F * PAGE : HEADER_SIZE + 0xBF * PAGE])
    place = HEADER_SIZE + BUG_CHECK - PAGE
    assert written[place : place + PAGE] == memory.pages[BUG_CHECK]


@pytest.mark.real
async def test_kdmp_parser_opens_it(socket_dir: Path) -> None:
    kdmp_parser = pytest.importorskip("kdmp_parser")
    memory = WindowsMemory(processors=2)
    async with panicked(socket_dir, memory, processors=2) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
    found = kdmp_parser.KernelDumpParser(str(made.path))
    assert found.type == kdmp_parser.DumpType.FullDump
    assert found.directory_table_base == memory.top
    assert len(found.pages) == sum(pages for _, pages in RUNS)
    assert found.header.BugCheckCode == memory.bug_check[0]
    shown = found.read_virtual_page(KDBG_AT & -PAGE)
    assert bytes(shown)[KDBG_AT % PAGE :][:0x340] == memory.kdbg()


@pytest.mark.real
async def test_volatility_opens_it(socket_dir: Path) -> None:
    pytest.importorskip("volatility3")
    memory = WindowsMemory()
    async with panicked(socket_dir, memory) as (_, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
    command = [sys.executable, "-c", BY_VOLATILITY, made.path.as_uri(), str(BUG_CHECK)]
    done = await trio.run_process(command, capture_stdout=True)
    shown = done.stdout.decode().split()
    assert shown == [hex(memory.bug_check[0]), memory.pages[BUG_CHECK].hex()]


@pytest.mark.real
async def test_of_a_vm_that_libvirt_has_dump(socket_dir: Path) -> None:
    memory = WindowsMemory(processors=2)
    async with panicked(socket_dir, memory, processors=2) as (vm, session):

        async def by_libvirt(path: Path, kind: str, _timeout: float) -> None:
            where = {"paging": False, "protocol": f"file:{path}", "format": kind}
            try:
                await vm.witness.execute("dump-guest-memory", where)
            except QmpCommandError as error:  # what was looked for had come
                raise DumpError(DumpFailure.REFUSED, str(error)) from error

        found = await read_words(monitor_reader(session, TIME_LIMIT, by_other=by_libvirt), 1)
        assert isinstance(found, WindowsCrash)
        assert found.bug_check.code == memory.bug_check[0]
        settings = CoredumpSettings(socket_dir / "dumps", level=1, min_free=FreeSpaceFloor())
        made = await dump_guest_memory(
            session, settings, "vm", "20260101T000000-0", DumpFormat.WIN_DMP, by_other=by_libvirt
        )
        assert made.path.read_bytes() == await qemus_own(vm, socket_dir / "own.dmp")
