"""The dump of a guest that stands for a Windows: as QEMU's own, and as others' tools read it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from panicd.dumps.coredump import FinishedDump, dump_guest_memory
from panicd.dumps.facts import dump_facts
from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.session import Session
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu
from tests.parts.windows import windows_guest
from tests.qemu.test_guest_memory import session_at
from tests.rules.windows_memory import WindowsMemory

TIME_LIMIT = 60.0


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
    memory = WindowsMemory(levels=levels, encoded=encoded, processors=3)
    async with panicked(socket_dir, memory, processors=2) as (vm, session):
        made = await dump(session, socket_dir, DumpFormat.WIN_DMP)
        assert made.path.suffix == ".dmp"
        written = made.path.read_bytes()
        assert len(written) == made.size
        assert made.path.stat().st_blocks * 512 < made.size  # what is empty is a hole
        assert written == await qemus_own(vm, socket_dir / "own.dmp")
