"""The kernel's log from a finished dump, of a made-up guest and in every format."""

from __future__ import annotations

import shlex
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panicd.dumps import reader as dump_reader
from panicd.dumps.facts import dump_facts
from panicd.dumps.reader import BLOCK, KEPT, read_dumped_log
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import panic_line
from tests.rules.linux_memory import LinuxMemory, messages

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PANIC = "Kernel panic - not syncing: a made-up guest"
TEXTS = [*(f"message {n}" for n in range(30)), PANIC]


def guest(*, allocated: bool = False) -> LinuxMemory:
    memory = LinuxMemory(allocated=allocated, large=12)
    for message in messages(*TEXTS):
        memory.log(message)
    memory.finish()
    return memory


def note(contents: bytes, name: bytes = b"VMCOREINFO\0") -> bytes:
    padded = [part + bytes(-len(part) % 4) for part in (name, contents)]
    return struct.pack("<III", len(name), len(contents), 0) + b"".join(padded)


def elf(memory: LinuxMemory, *, backwards: bool = False, skip: int = 0) -> bytes:
    """A core with a segment a page, as panicd leaves it; it lies if ``skip`` is not 0."""
    notes = note(b"", b"CORE\0") + note(memory.note())
    pages = sorted(memory.pages, reverse=backwards)
    count = 1 + len(pages)
    at = 64 + 56 * count
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0),
    )
    segments = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)]
    at += len(notes) + skip
    for page in pages:
        segments.append(struct.pack("<IIQQQQQQ", 1, 0, at, 0, page, PAGE, PAGE, 0))
        at += PAGE
    return b"".join((header, *segments, notes, *(memory.pages[page] for page in pages)))


def kdump(memory: LinuxMemory, *, flags: int = 1) -> bytes:
    """A kdump, its pages packed by zlib unless they don't get smaller by it."""
    information = memory.note()
    last = max(memory.pages) // PAGE
    bitmap = bytearray(-(-(last + 1) // 8 // PAGE) * PAGE)
    for page in memory.pages:
        bitmap[page // PAGE // 8] |= 1 << page // PAGE % 8
    blocks = len(bitmap) // PAGE * 2
    disk = struct.pack("<8sI", b"KDUMP   ", 6) + bytes(4 * 65) + b"x86_64".ljust(2 * 65, b"\0")
    disk = disk.ljust(424, b"\0") + struct.pack("<IIIII", 1, PAGE, 2, blocks, last + 1)
    sub = bytes(32) + struct.pack("<QQ", PAGE + 104, len(information))
    head = disk.ljust(PAGE, b"\0") + (sub.ljust(104, b"\0") + information).ljust(2 * PAGE, b"\0")
    head += bytes(len(bitmap)) + bitmap  # the first tells which pages there are: it is not asked
    at = len(head) + 24 * len(memory.pages)
    descriptors, contents = b"", b""
    for page in sorted(memory.pages):
        content = bytes(memory.pages[page])
        packed = zlib.compress(content)
        kind = flags
        if len(packed) >= PAGE:
            packed, kind = content, 0
        descriptors += struct.pack("<QIIQ", at + len(contents), len(packed), kind, 0)
        contents += packed
    return head + descriptors + contents


def elf_zstd(memory: LinuxMemory) -> bytes:
    return zstd.compress(elf(memory))


FORMATS: list[Callable[[LinuxMemory], bytes]] = [elf, elf_zstd, kdump]


@pytest.mark.parametrize("allocated", [False, True])
@pytest.mark.parametrize("make", FORMATS)
def test_whole_log_is_read(
    tmp_path: Path, make: Callable[[LinuxMemory], bytes], allocated: bool
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(make(guest(allocated=allocated)))
    log = read_dumped_log(path)
    assert [line.text for line in log.lines] == TEXTS
    assert (log.complete, log.release) == (True, "6.1.0-test")
    assert panic_line(log.lines) == PANIC


def test_packed_dump_is_begun_again_for_what_lies_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump_reader, "BLOCK", PAGE)
    monkeypatch.setattr(dump_reader, "KEPT", 1)
    path = tmp_path / "dump"
    path.write_bytes(zstd.compress(elf(guest(allocated=True), backwards=True)))
    assert [line.text for line in read_dumped_log(path).lines] == TEXTS
    monkeypatch.setattr(dump_reader, "MAX_PASSES", 2)
    with pytest.raises(NotReadableError, match="in too many places"):
        read_dumped_log(path)


def test_packed_dump_is_read_once_where_all_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump_reader, "MAX_PASSES", 1)
    path = tmp_path / "dump"
    path.write_bytes(zstd.compress(elf(guest(allocated=True), backwards=True)))
    assert len(read_dumped_log(path).lines) == len(TEXTS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither an ELF core nor a kdump"),
        (b"\x7fELF", "no program headers"),
        (b"\x28\xb5\x2f\xfd", "cut off"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 64, "damaged"),
        (b"KDUMP   ", "cut off"),
        (b"KDUMP   ".ljust(4096, b"\0"), "a kdump of a guest of neither 64-bit x86 nor 64-bit Arm"),
        (elf(guest())[:300], "program headers"),
        (elf(guest())[:600], "no VMCOREINFO"),
        (zstd.compress(elf(guest())[:-5000]), "no guest memory"),
        (elf(guest(), skip=1 << 62), "no guest memory"),
        (zstd.compress(elf(guest(), skip=1 << 62)), "no guest memory"),
        (zstd.compress(elf(guest()))[:-100], "cut off"),
        (kdump(guest())[:-100], "cut off"),
        (kdump(guest(), flags=2), "packed by lzo"),
        (kdump(guest(), flags=4), "packed by snappy"),
    ],
)
def test_what_is_no_whole_dump_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(content)
    with pytest.raises(NotReadableError, match=reason):
        read_dumped_log(path)


def test_a_packed_dump_that_unpacks_without_end_costs_no_memory(tmp_path: Path) -> None:
    frame = zstd.compress(bytes(64 << 20))  # 2 KB; frames follow each other
    core = elf(guest(allocated=True), skip=1 << 30)  # all of it lies behind a gigabyte of them
    path = tmp_path / "bomb.elf.zst"
    path.write_bytes(zstd.compress(core[: 8 * PAGE]) + frame * 32)
    tracemalloc.start()
    try:
        with pytest.raises(NotReadableError, match="no kernel address"):
            read_dumped_log(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (KEPT + 8) * BLOCK


def test_file_that_cant_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match="No such file"):
        read_dumped_log(tmp_path / "gone")
    with pytest.raises(NotReadableError, match="Is a directory"):
        read_dumped_log(tmp_path)


WHOLE = {make: make(guest(allocated=True)) for make in FORMATS}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), make=st.sampled_from(FORMATS))
def test_damaged_file_ends_in_a_log_or_a_refusal(
    tmp_path: Path, data: st.DataObject, make: Callable[[LinuxMemory], bytes]
) -> None:
    content = bytearray(WHOLE[make])
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the damage is where the tables are.
        at = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(content) - 9)))
        content[at : at + 8] = data.draw(
            st.one_of(st.binary(min_size=8, max_size=8), st.just(b"\xff" * 8), st.just(bytes(8)))
        )
    path = tmp_path / "dump"
    path.write_bytes(content)
    try:
        log = read_dumped_log(path)
    except NotReadableError:
        return
    assert all(line.text.isprintable() for line in log.lines)


@pytest.mark.parametrize("suffix", [".elf", ".elf.zst", ".dmp", ".kdump"])
def test_commands_that_open_it_can_be_copied_whatever_the_directory_is_called(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "dumps of $HOME" / f"x{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"")
    for command in dump_facts(path).open:
        assert str(path).removesuffix(".zst") in {
            word.removesuffix(".zst") for word in shlex.split(command)
        }
