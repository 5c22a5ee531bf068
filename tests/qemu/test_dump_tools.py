"""People's tools open the dumps of a Linux guest that panicked, each format with each tool.

crash needs the kernel's symbols, which are too large to be fetched for a test:
``$PANICD_TEST_VMLINUX``, from Debian's linux-image-…-dbg of the same version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from panicd.qemu.coredump import dump_guest_memory
from panicd.qemu.dump_reader import read_dumped_log
from panicd.qemu.monitor import event_loop
from panicd.rules.kernel_log import panic_line
from panicd.rules.qapi import RunState
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.parts.linux import Kernel, linux_guest
from tests.parts.patience import fail_after, patience
from tests.qemu.test_coredump import OFFERED, elf_of, session_with

pytestmark = [pytest.mark.real, pytest.mark.linux]

PANIC = "Kernel panic - not syncing: sysrq triggered crash"
READ_BY_DRGN = """
information = prog["VMCOREINFO"].string_().decode()
(symbol,) = [line for line in information.splitlines() if line.startswith("SYMBOL(init_uts_ns)=")]
print(prog.read(int(symbol.partition("=")[2], 16), 390).replace(bytes(1), b" "))
"""
"""Needs no symbols: guest memory, by its virtual address, through the guest's page tables."""


def tool(name: str) -> str:
    """A tool's command; skips where there is none."""
    beside_python = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {name} here")
    return found


@pytest.fixture(scope="module")
def dumps(linux_kernel: Kernel) -> Iterator[dict[DumpFormat, Path]]:
    """A dump in each format of one guest, which has panicked. What is compressed, is unpacked."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        yield trio.run(make_dumps, Path(directory), linux_kernel)


async def make_dumps(directory: Path, kernel: Kernel) -> dict[DumpFormat, Path]:
    settings = CoredumpSettings(directory / "coredumps", min_free=FreeSpaceFloor())
    unpacked = directory / "unpacked.elf"
    made = {}
    with fail_after(300):
        async with (
            event_loop(),
            linux_guest(directory, kernel, paused=True) as guest,
            session_with(guest.vm) as session,
        ):
            await session.execute("cont")
            await session.observe(lambda: session.run_state is RunState.GUEST_PANICKED, 300)
            for kind in OFFERED:
                finished = await dump_guest_memory(session, settings, "linux", kind, kind)
                made[kind] = finished.path
                if kind is DumpFormat.ELF_ZSTD:
                    unpacked.write_bytes(elf_of(finished))
                    made[kind] = unpacked
    return made


def run(*command: str, into: str = "") -> str:
    """Run a tool and return what it printed."""
    finished = subprocess.run(
        command,
        input=into,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.mark.parametrize("kind", OFFERED)
def test_makedumpfile_prints_the_kernel_log(
    dumps: dict[DumpFormat, Path], kind: DumpFormat, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run(tool("makedumpfile"), "--dump-dmesg", str(dumps[kind]), str(log))
    assert PANIC in log.read_text(errors="replace")


@pytest.mark.parametrize("kind", [DumpFormat.ELF, DumpFormat.ELF_ZSTD])
def test_makedumpfile_makes_a_smaller_one(
    dumps: dict[DumpFormat, Path], kind: DumpFormat, tmp_path: Path
) -> None:
    smaller = tmp_path / "smaller"
    run(tool("makedumpfile"), "-l", "-d", "31", str(dumps[kind]), str(smaller))
    assert 0 < smaller.stat().st_size < dumps[kind].stat().st_size


@pytest.mark.parametrize("kind", OFFERED)
def test_drgn_reads_memory(dumps: dict[DumpFormat, Path], kind: DumpFormat, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(READ_BY_DRGN)
    drgn = tool("drgn")
    printed = run(drgn, "--quiet", "--core", str(dumps[kind]), "--no-default-symbols", str(script))
    assert "Linux" in printed
    assert "SMP" in printed  # of the kernel's version, which no header holds


@pytest.mark.parametrize("kind", OFFERED)
def test_crash_shows_the_panic(dumps: dict[DumpFormat, Path], kind: DumpFormat) -> None:
    symbols = os.environ.get("PANICD_TEST_VMLINUX")
    if symbols is None:
        pytest.skip("no symbols of the guest's kernel: $PANICD_TEST_VMLINUX")
    printed = run(tool("crash"), "-s", symbols, str(dumps[kind]), into="sys\nlog\nquit\n")
    assert f'PANIC: "{PANIC}"' in printed


@pytest.mark.parametrize("kind", OFFERED)
def test_panicd_reads_the_kernel_log(dumps: dict[DumpFormat, Path], kind: DumpFormat) -> None:
    for path in {dumps[kind], *dumps[kind].parent.glob(f"coredumps/linux/{kind}.*")}:
        log = read_dumped_log(path)
        assert panic_line(log.lines) == PANIC
        assert log.lines[0].text.startswith("Linux version ")
        assert log.complete
