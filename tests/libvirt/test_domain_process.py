"""The QEMU of a domain: the one that libvirt's own file names, if it is that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from panicd.libvirt.domain_process import DomainProcess
from panicd.libvirt.protocol import DomainRef
from panicd.qemu import process_arguments
from tests.parts.background import background

DOMAIN = DomainRef("vm", "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51", 1)
WAITS = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[int]:
    """A process that is told the domain's UUID, and that libvirt's file tells of."""
    place = tmp_path / "libvirt" / "qemu" / "run"
    place.mkdir(parents=True)
    command = [sys.executable, "-c", WAITS, "-uuid", DOMAIN.uuid]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()  # right after execve(2) the kernel shows no arguments yet
        (place / "vm.pid").write_text(f"{process.pid}\n")
        yield process.pid
        process.communicate()


async def find(runtime_directory: Path, domain: DomainRef = DOMAIN) -> DomainProcess:
    environment = {"XDG_RUNTIME_DIR": str(runtime_directory)}
    return await DomainProcess.find("qemu:///session", domain, os.getuid(), 0, environment)


async def test_the_file_s_process_is_the_domain_s_by_its_uuid(tmp_path: Path, qemu: int) -> None:
    with await find(tmp_path) as process:
        assert process.pid == qemu
    with await find(tmp_path, replace(DOMAIN, uuid=DOMAIN.uuid.replace("5", "6"))) as other:
        assert (other.pid, other.identity) == (0, None)


async def test_one_whose_memory_is_locked_is_not_known_and_holds_up_nobody(
    tmp_path: Path, qemu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def read_without_end(pid: int, _name: str, _limit: int) -> bytes | None:
        assert pid == qemu
        let_go.wait()
        return None

    monkeypatch.setattr(process_arguments, "read_of", read_without_end)
    monkeypatch.setattr(process_arguments, "READ_WITHIN", 0.01)
    before = threading.active_count()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with background() as nursery:
        nursery.start_soon(turn)
        for _ in range(4):
            with await find(tmp_path) as process:
                assert (process.pid, process.identity) == (0, None)
                assert not process.is_qemu()
        assert turns > 0
    assert threading.active_count() <= before + 1
    let_go.set()
