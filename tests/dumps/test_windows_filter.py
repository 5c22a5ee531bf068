"""What a program makes of a Windows' ELF core: the memory in the header's order, with patches."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from panicd.dumps.filter.core_stream import BLOCK
from panicd.dumps.filter.windows_filter import filter_core, main
from panicd.dumps.page_selection import PageSelection
from panicd.qemu.dump_error import DumpFailure
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows_dump import WindowsDump
from panicd.rules.settings import DumpFormat
from tests.dumps.test_dump_writer import ELF, files, written
from tests.dumps.test_page_filter import core, page
from tests.parts.small_disk import small_disk

HEAD = b"PAGEDU64" * 1024
MANY = BLOCK // PAGE + 3  # pages: more than are looked at together


def made(
    directory: Path,
    data: bytes,
    runs: list[tuple[int, int]],
    patches: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    source, target = directory / "core", directory / "dump.dmp"
    source.write_bytes(data)
    ranges = tuple(range(first, first + count) for first, count in runs)
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        filter_core(reading.fileno(), writing.fileno(), json.loads(parts(ranges, patches)))
    return target.read_bytes()


def parts(runs: tuple[range, ...], patches: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    return WindowsDump(HEAD, runs, patches).written()


def test_pages_follow_the_header_in_the_order_of_its_runs(tmp_path: Path) -> None:
    low, high = page(1) + page(2) + page(3), page(4) + page(5)
    data = core((0, low), (8 * PAGE, high))
    assert made(tmp_path, data, [(1, 1), (8, 2)]) == HEAD + page(2) + high
    assert made(tmp_path, data, [(0, 3), (9, 1)]) == HEAD + low + page(5)


def test_what_qemu_does_not_have_reads_as_zeros(tmp_path: Path) -> None:
    data = core((PAGE, page(1)), (4 * PAGE, page(4)))
    zeros = bytes(PAGE)
    whole = zeros + page(1) + 2 * zeros + page(4) + zeros
    assert made(tmp_path, data, [(0, 6)]) == HEAD + whole
    assert made(tmp_path, data, [(2, 1), (4, 1), (1 << 30, 1)]) == HEAD + zeros + page(4) + zeros


def test_patches_lie_across_pages_and_blocks(tmp_path: Path) -> None:
    memory = os.urandom(MANY * PAGE)
    expected = bytearray(memory)
    places = (1, PAGE - 3, BLOCK - 5, MANY * PAGE - 8)
    for place in places:
        expected[place : place + 8] = b"patched!"
    patches = tuple((place, b"patched!") for place in (*places, MANY * PAGE, 1 << 40))
    assert made(tmp_path, core((0, memory)), [(0, MANY)], patches) == HEAD + expected


@hypothesis.given(
    runs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=4),
    pieces=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=4),
)
def test_any_runs_of_any_memory(
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[tuple[int, int]],
    pieces: list[tuple[int, int]],
) -> None:
    memory: dict[int, bytes] = {}
    at = 0
    laid: list[tuple[int, bytes]] = []
    for gap, count in pieces:
        at += gap
        laid.append((at * PAGE, b"".join(page(number + 1) for number in range(at, at + count))))
        memory |= {number: page(number + 1) for number in range(at, at + count)}
        at += count
    ascending, end = [], 0
    for gap, count in runs:
        ascending.append((end + gap, count))
        end += gap + count
    numbers = [number for first, c in ascending for number in range(first, first + c)]
    expected = [memory.get(number, bytes(PAGE)) for number in numbers]
    directory = tmp_path_factory.mktemp("core")
    assert made(directory, core(*laid), ascending) == HEAD + b"".join(expected)


def test_a_core_that_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cut off") as raised:
        made(tmp_path, core((0, page(1) + page(2)))[:-1], [(0, 2)])
    assert raised.value.errno == errno.ENODATA


def test_a_core_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(
        NotReadableError, match="a guest of 32-bit x86: neither 64-bit x86 nor 64-bit Arm"
    ):
        made(tmp_path, core((0, page(1)), machine=3), [(0, 1)])


def test_the_program_says_what_went_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file_of_parts = tmp_path / "parts"
    file_of_parts.write_bytes(parts((range(1),)))
    with file_of_parts.open("rb") as file, (tmp_path / "none").open("wb+") as nothing:
        kept = os.dup(0)
        os.dup2(nothing.fileno(), 0)
        try:
            assert main([str(file.fileno())]) == 1
        finally:
            os.dup2(kept, 0)
            os.close(kept)
    assert "no dump can be made of this" in capfd.readouterr().err


# -- in the writer's chain of programs


def given(content: bytes) -> PageSelection:
    file = os.memfd_create("parts")
    os.pwrite(file, content, 0)
    return PageSelection(1, windows=file)


@pytest.mark.parametrize("kind", [DumpFormat.WIN_DMP, DumpFormat.WIN_DMP_ZSTD])
async def test_a_core_that_is_cut_short_makes_no_dump(tmp_path: Path, kind: DumpFormat) -> None:
    selection = given(parts((range(16, 32),)))
    writer = await written(tmp_path, kind, ELF[:-1], selection)
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.INCOMPLETE
    assert files(tmp_path) == []


@pytest.mark.parametrize("kind", [DumpFormat.WIN_DMP, DumpFormat.WIN_DMP_ZSTD])
async def test_a_disk_that_fills_up_is_said_to_be_full(socket_dir: Path, kind: DumpFormat) -> None:
    selection = given(parts((range(1 << 12),)))
    noise = core((0, os.urandom(PAGE << 12)))
    with small_disk(socket_dir, "1m") as disk:
        writer = await written(disk, kind, noise, selection)
        assert writer.error is not None
        assert writer.error.failure is DumpFailure.NO_SPACE
        assert files(disk) == []


async def test_what_the_first_program_can_t_do_makes_no_dump(tmp_path: Path) -> None:
    writer = await written(tmp_path, DumpFormat.WIN_DMP_ZSTD, ELF, given(b"{"))
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.UNWRITABLE
    assert files(tmp_path) == []
