"""People's tools open the dumps of a Linux guest that panicked, each format with each tool.

crash, and drgn for most, need the kernel's symbols, which are too large to be fetched for a test:
``$PANICD_TEST_VMLINUX``, from Debian's linux-image-…-dbg of the same version.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from panicd.cli.filtering import leaves_out, write_filtered
from panicd.dumps.coredump import DumpProgress, dump_guest_memory
from panicd.dumps.facts import dump_facts
from panicd.dumps.reader import open_dump, read_dumped_log
from panicd.evidence.bundle_store import allocated
from panicd.qemu.monitor import event_loop
from panicd.rules.guest_memory.dump_file import DumpFile
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import panic_line
from panicd.rules.qapi import RunState
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.dumps.test_coredump import elf_of, session_with
from tests.parts.linux import Kernel, Trouble, linux_guest
from tests.parts.patience import fail_after, patience

pytestmark = [pytest.mark.real, pytest.mark.linux]

PANIC = "Kernel panic - not syncing: sysrq triggered crash"
READ_BY_DRGN = """
information = prog["VMCOREINFO"].string_().decode()
(symbol,) = [line for line in information.splitlines() if line.startswith("SYMBOL(init_uts_ns)=")]
print(prog.read(int(symbol.partition("=")[2], 16), 390).replace(bytes(1), b" "))
"""
"""Needs no symbols: guest memory, by its virtual address, through the guest's page tables."""

QUESTIONS = ("sys | grep PANIC", "log", "bt -a", "ps", "kmem -i", "mod", "kmem -S dentry", "quit")
FOUND_BY_DRGN = """
from drgn.helpers.linux import *
print(get_dmesg(prog).decode())
for task in for_each_task(prog):
    print("task", task.pid.value_(), task.comm.string_().decode())
    for frame in prog.stack_trace(task):
        if frame.name is None or not frame.pc >> 63:  # a program's: its memory is left out
            break
        print("   ", hex(frame.pc), frame.name)
for module in for_each_module(prog):
    print("module", module.name.string_().decode(), module.taints.value_())
for cache in for_each_slab_cache(prog):
    objects = [each.value_() for each in slab_cache_for_each_allocated_object(cache, "void")]
    print("slab", cache.name.string_().decode(), len(objects), hash(tuple(objects)))
"""


def tool(name: str) -> str:
    """A tool's command; skips where there is none."""
    beside_python = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {name} here")
    return found


class Variant(NamedTuple):
    """What is made of one and the same guest."""

    kind: DumpFormat
    level: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.level}"


VARIANTS = [
    Variant(DumpFormat.ELF, 0),
    Variant(DumpFormat.ELF, 1),
    Variant(DumpFormat.ELF_ZSTD, 1),
    *(Variant(DumpFormat.KDUMP_ZLIB, level) for level in (0, 1, 2, 4, 8, 16, 31)),
]
FULL = VARIANTS[0]
each = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@pytest.fixture(scope="module")
def dumps(linux_kernel: Kernel) -> Iterator[dict[Variant, Path]]:
    """A dump in each format of one guest, which has panicked. What is compressed, is unpacked."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        yield trio.run(make_dumps, Path(directory), linux_kernel)


async def make_dumps(directory: Path, kernel: Kernel) -> dict[Variant, Path]:
    settings = CoredumpSettings(directory / "coredumps", min_free=FreeSpaceFloor())
    unpacked = directory / "unpacked.elf"
    made = {}
    with fail_after(300):
        async with (
            event_loop(),
            linux_guest(
                directory, kernel, paused=True, trouble=Trouble(cpus=2), extra=("-device", "VGA")
            ) as guest,
            session_with(guest.vm) as session,
        ):
            await session.execute("cont")
            await session.observe(lambda: session.run_state is RunState.GUEST_PANICKED, 300)
            for variant in VARIANTS:
                kind, level = variant
                progress = DumpProgress()
                at_level = replace(settings, level=level)
                finished = await dump_guest_memory(
                    session, at_level, "linux", str(variant), kind, progress=progress
                )
                assert progress.expected is not None
                if kind is DumpFormat.KDUMP_ZLIB:
                    assert 1 / 2 < progress.expected / allocated(finished.path.stat()) < 2
                assert finished.selection is not None
                assert (finished.selection.level, finished.selection.reason) == (level, "")
                made[variant] = finished.path
                if kind is DumpFormat.ELF_ZSTD:
                    unpacked.write_bytes(elf_of(finished))
                    made[variant] = unpacked
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


@each
def test_makedumpfile_prints_the_kernel_log(
    dumps: dict[Variant, Path], variant: Variant, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run(tool("makedumpfile"), "--dump-dmesg", str(dumps[variant]), str(log))
    assert PANIC in log.read_text(errors="replace")


@each
def test_makedumpfile_makes_a_smaller_one(
    dumps: dict[Variant, Path], variant: Variant, tmp_path: Path
) -> None:
    smaller = tmp_path / "smaller"
    run(tool("makedumpfile"), "-l", "-d", "31", str(dumps[variant]), str(smaller))
    assert 0 < smaller.stat().st_size < dumps[FULL].stat().st_size


@each
def test_drgn_reads_memory(dumps: dict[Variant, Path], variant: Variant, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(READ_BY_DRGN)
    drgn = tool("drgn")
    printed = run(
        drgn, "--quiet", "--core", str(dumps[variant]), "--no-default-symbols", str(script)
    )
    assert "Linux" in printed
    assert "SMP" in printed  # of the kernel's version, which no header holds


@pytest.fixture(scope="module")
def symbols() -> str:
    """The symbols of the guest's kernel."""
    path = os.environ.get("PANICD_TEST_VMLINUX")
    if path is None:
        pytest.skip("no symbols of the guest's kernel: $PANICD_TEST_VMLINUX")
    return path


@cache
def asked_of_crash(symbols: str, dump: Path) -> str:
    """What crash answers to the questions that people ask first."""
    return run(tool("crash"), "-s", symbols, str(dump), into="".join(f"{q}\n" for q in QUESTIONS))


@each
def test_crash_answers_as_of_the_full_dump(
    dumps: dict[Variant, Path], variant: Variant, symbols: str
) -> None:
    answers = asked_of_crash(symbols, dumps[variant])
    for seen in (PANIC, "sysrq_handle_crash", "busybox", "TOTAL MEM", "pvpanic"):
        assert seen in answers
    # Of a kdump it shows the registers of a stopped processor, of an ELF core it does not.
    full = variant._replace(level=0) if variant.kind is DumpFormat.KDUMP_ZLIB else FULL
    assert answers == asked_of_crash(symbols, dumps[full])


@cache
def asked_of_drgn(symbols: str, dump: Path) -> str:
    """What drgn finds: the log, tasks and their stacks, modules, the objects of slab caches."""
    script = dump.with_name(f"questions-{dump.stem}.py")
    script.write_text(FOUND_BY_DRGN)
    options = ("--quiet", "--no-default-symbols", "-s", symbols)
    return run(tool("drgn"), "--core", str(dump), *options, str(script))


@each
def test_drgn_answers_as_of_the_full_dump(
    dumps: dict[Variant, Path], variant: Variant, symbols: str
) -> None:
    answers = asked_of_drgn(symbols, dumps[variant])
    for seen in (PANIC, "sysrq_handle_crash", "kthreadd", "module pvpanic", "slab dentry"):
        assert seen in answers
    assert answers == asked_of_drgn(symbols, dumps[FULL])


@each
def test_panicd_reads_the_kernel_log(dumps: dict[Variant, Path], variant: Variant) -> None:
    for path in {dumps[variant], *dumps[variant].parent.glob(f"coredumps/linux/{variant}.*")}:
        log = read_dumped_log(path)
        assert panic_line(log.lines) == PANIC
        assert log.lines[0].text.startswith("Linux version ")
        assert log.complete


def kernel_version(kdump: Path) -> tuple[int, ...]:
    """The kernel's version, as a kdump's header has it."""
    release = kdump.read_bytes()[12 + 2 * 65 :][:65].partition(b"\0")[0].decode()
    return tuple(int(part) for part in release.split(".")[:2])


def tool_version() -> tuple[int, ...]:
    """The version of makedumpfile."""
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", run(tool("makedumpfile"), "-v"))
    assert found is not None
    return tuple(map(int, found.groups()))


def pages_of(kdump: Path) -> list[bool]:
    """Which pages a kdump has."""
    head = kdump.read_bytes()
    block, sub_blocks, bitmap_blocks = struct.unpack_from("<iiI", head, 428)
    size = bitmap_blocks // 2 * block
    start = block * (1 + sub_blocks) + size
    return [bool(byte >> bit & 1) for byte in head[start : start + size] for bit in range(8)]


@pytest.mark.parametrize("level", [2, 4, 8, 16, 31])
def test_the_pages_are_those_that_makedumpfile_keeps(
    dumps: dict[Variant, Path], level: int, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    run(tool("makedumpfile"), "-c", "-d", str(level), str(dumps[FULL]), str(theirs))
    ours = dumps[Variant(DumpFormat.KDUMP_ZLIB, level)]
    made, wanted = pages_of(ours), pages_of(theirs)
    all_there = sum(pages_of(dumps[Variant(DumpFormat.KDUMP_ZLIB, 0)]))
    assert 1000 < sum(made) < all_there
    # 1.7.2 and 1.7.6 miss users' pages of Linux 6.6 and later, and find none that is free in 6.12.
    # 1.7.8 does not know 7.2, whose page structure calls compound_head compound_info.
    known_below = (6, 6) if tool_version() <= (1, 7, 6) else (7, 0)
    if (level & 8 and kernel_version(ours) >= known_below) or sum(wanted) == all_there:
        pytest.skip("this makedumpfile does not know this kernel's types of pages")
    assert made == wanted


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
def test_what_is_there_is_what_was_in_memory(dumps: dict[Variant, Path], variant: Variant) -> None:
    full = DumpFile.parse(dumps[FULL].read_bytes()[:65536])
    with open_dump(dumps[FULL]) as one, open_dump(dumps[variant]) as other:
        compared = 0
        pages = (range(each.physical // PAGE, each.end // PAGE, 7) for each in full.kernels())
        for page in chain.from_iterable(pages):
            try:
                there = other.memory(page * PAGE, PAGE)
            except NotReadableError:
                continue
            assert there == one.memory(page * PAGE, PAGE)
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("variant", [FULL, Variant(DumpFormat.ELF_ZSTD, 1)], ids=str)
def test_a_full_dump_is_filtered_afterwards_as_it_would_have_been_before(
    dumps: dict[Variant, Path], variant: Variant, tmp_path: Path
) -> None:
    (path,) = dumps[FULL].parent.glob(f"{variant}.*")
    target = tmp_path / "filtered.kdump"
    with target.open("w+b") as file:
        write_filtered(path, 31, file)
    assert pages_of(target) == pages_of(dumps[Variant(DumpFormat.KDUMP_ZLIB, 31)])
    facts = dump_facts(target)
    made = dump_facts(dumps[Variant(DumpFormat.KDUMP_ZLIB, 31)])
    # Its pages are packed anew, not always to the same number of bytes.
    assert facts == replace(made, path=str(target), open=facts.open, size=facts.size)
    assert facts.size == pytest.approx(made.size, rel=0.01)
    assert (dump_facts(path).level, dump_facts(path).reason) == (
        (None, "") if variant is FULL else (1, "")
    )
    assert leaves_out(target, 31)
    assert not leaves_out(path, 31)
    assert panic_line(read_dumped_log(target).lines) == PANIC
