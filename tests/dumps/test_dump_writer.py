"""What becomes of a dump's bytes: of all of them, of some, and of nonsense."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from panicd.dumps import writer as dump_writer
from panicd.dumps.page_selection import PageSelection
from panicd.dumps.repair import ElfHead, repaired_kdump
from panicd.dumps.standby import DumpHost
from panicd.dumps.writer import DumpProgress, DumpWriter
from panicd.qemu.dump_error import DumpFailure
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.dumps.test_dump_repair import MEMORY, NOTE, elf, kdump
from tests.parts.patience import fail_after
from tests.parts.small_disk import small_disk

TIME_LIMIT = 30
ALL = PageSelection(0)
ELF_HEAD = elf()
ELF = ELF_HEAD + bytes(NOTE) + os.urandom(MEMORY)
FLAT_HEADER = struct.pack(">16sQQ", b"makedumpfile", 1, 1).ljust(4096, b"\0")
END = struct.pack(">qq", -1, -1)


def piece(place: int, content: bytes) -> bytes:
    return struct.pack(">qq", place, len(content)) + content


KDUMP_HEAD = kdump()
PAGES = os.urandom(3 << 20)
KDUMP = b"".join(
    (
        FLAT_HEADER,
        piece(len(KDUMP_HEAD), PAGES[: 1 << 20]),
        piece(4096, KDUMP_HEAD[4096:]),  # out of order
        piece(0, KDUMP_HEAD[:4096]),
        piece(len(KDUMP_HEAD) + (1 << 20), PAGES[1 << 20 :]),
        END,
    )
)


def writer_into(
    directory: Path,
    reading: int,
    kind: DumpFormat,
    give_way: Callable[[], None] = lambda: None,
    *,
    selection: PageSelection = ALL,
    most: int | None = None,
) -> DumpWriter:
    return DumpWriter(
        *(reading, directory / "vm" / "dump", kind),
        settings=CoredumpSettings(directory, min_free=FreeSpaceFloor()),
        selection=selection,
        least=0,
        most=most,
        progress=DumpProgress(),
        host=DumpHost(give_way),
    )


async def written(
    directory: Path,
    kind: DumpFormat,
    data: bytes,
    selection: PageSelection = ALL,
    most: int | None = None,
) -> DumpWriter:
    """A writer that has come to its end, QEMU having written so much."""
    reading, writing = os.pipe()
    with fail_after(TIME_LIMIT):
        writer = writer_into(directory, reading, kind, selection=selection, most=most)
        await writer.ready.wait()
        async with await trio.open_file(writing, "wb", buffering=0) as pipe:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[await pipe.write(rest) :]
            except BrokenPipeError:
                pass  # the writer has seen enough
        await writer.ended.wait()
    return writer


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def content(directory: Path) -> bytes:
    (file,) = files(directory)
    assert file.name == "dump"
    return file.read_bytes()


async def test_elf_is_the_same_but_for_its_head(tmp_path: Path) -> None:
    writer = await written(tmp_path, DumpFormat.ELF, ELF)
    assert writer.error is None
    made = content(tmp_path)
    assert writer.size == len(made) == len(ELF)
    head = ElfHead.read(ELF)
    assert head is not None
    assert made[: head.size] == head.repaired(ELF_HEAD) != ELF_HEAD
    assert made[head.size :] == ELF[head.size :]


async def test_compressed_elf_is_the_plain_one(tmp_path: Path) -> None:
    await written(tmp_path / "plain", DumpFormat.ELF, ELF)
    await written(tmp_path / "compressed", DumpFormat.ELF_ZSTD, ELF)
    unpack = ["zstd", "--decompress", "--stdout"]
    unpacked = await trio.run_process(
        unpack, stdin=content(tmp_path / "compressed"), capture_stdout=True
    )
    assert unpacked.stdout == content(tmp_path / "plain")


async def test_pieces_of_a_kdump_come_to_their_places(tmp_path: Path) -> None:
    writer = await written(tmp_path, DumpFormat.KDUMP_LZO, KDUMP)
    assert writer.error is None
    made = content(tmp_path)
    assert made == repaired_kdump(KDUMP_HEAD) + PAGES
    assert not made.startswith(KDUMP_HEAD)


@pytest.mark.parametrize("missing", [1, MEMORY - 1, MEMORY + NOTE + 1, len(ELF) - 63, len(ELF)])
@pytest.mark.parametrize("kind", [DumpFormat.ELF, DumpFormat.ELF_ZSTD])
async def test_elf_that_is_cut_short_is_none(
    tmp_path: Path, kind: DumpFormat, missing: int
) -> None:
    writer = await written(tmp_path, kind, ELF[: len(ELF) - missing])
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.INCOMPLETE
    assert files(tmp_path) == []


@pytest.mark.parametrize("missing", [1, len(END), len(END) + 1, len(PAGES), len(KDUMP) - 1])
async def test_kdump_that_is_cut_short_is_none(tmp_path: Path, missing: int) -> None:
    writer = await written(tmp_path, DumpFormat.KDUMP_LZO, KDUMP[: len(KDUMP) - missing])
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.INCOMPLETE
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "data", "failure"),
    [
        (DumpFormat.ELF, KDUMP, DumpFailure.QEMU),
        (DumpFormat.ELF_ZSTD, bytes(1 << 20), DumpFailure.QEMU),
        (DumpFormat.KDUMP_LZO, ELF, DumpFailure.QEMU),
        (DumpFormat.KDUMP_LZO, FLAT_HEADER + piece(-2, b"x") + END, DumpFailure.QEMU),
        (DumpFormat.KDUMP_LZO, FLAT_HEADER + struct.pack(">qq", 0, 1 << 62), DumpFailure.QEMU),
        (DumpFormat.KDUMP_LZO, FLAT_HEADER + struct.pack(">qq", 0, -9), DumpFailure.QEMU),
        (DumpFormat.KDUMP_LZO, FLAT_HEADER + piece(1 << 40, b"x") + END, DumpFailure.INCOMPLETE),
    ],
)
async def test_nonsense_is_no_dump(
    tmp_path: Path, kind: DumpFormat, data: bytes, failure: DumpFailure
) -> None:
    writer = await written(tmp_path, kind, data)
    assert writer.error is not None
    assert writer.error.failure is failure
    assert files(tmp_path) == []


EMPTY_RUNS = (0, 1, 100_000, 1 << 20, (1 << 20) + 1, 40 << 20)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("empty", EMPTY_RUNS)
@pytest.mark.parametrize("kind", [DumpFormat.ELF, DumpFormat.ELF_ZSTD])
async def test_empty_memory_comes_out_as_such(
    tmp_path: Path, kind: DumpFormat, level: int, empty: int
) -> None:
    inside = bytes(empty) + b"x" * 5000 + bytes(empty)
    writer = await written(tmp_path, kind, ELF + inside, PageSelection(level))
    assert writer.error is None
    made = content(tmp_path)
    if kind is DumpFormat.ELF_ZSTD:
        unpack = ["zstd", "--decompress", "--stdout"]
        made = (await trio.run_process(unpack, stdin=made, capture_stdout=True)).stdout
    head = ElfHead.read(ELF)
    assert head is not None
    assert made[head.size :] == ELF[head.size :] + inside


@pytest.mark.parametrize("kind", [DumpFormat.ELF, DumpFormat.ELF_ZSTD])
async def test_empty_memory_takes_no_disk(tmp_path: Path, kind: DumpFormat) -> None:
    data = ELF + bytes(64 << 20)
    await written(tmp_path, kind, data, PageSelection(1))
    (file,) = files(tmp_path)
    assert file.stat().st_blocks * 512 < len(ELF) + (1 << 20)


@pytest.mark.parametrize("missing", [1, MEMORY, MEMORY + NOTE])
async def test_core_that_is_cut_short_makes_no_kdump(tmp_path: Path, missing: int) -> None:
    writer = await written(tmp_path, DumpFormat.KDUMP_ZLIB, ELF[: len(ELF) - missing])
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.INCOMPLETE
    assert files(tmp_path) == []


async def test_kdump_on_a_disk_that_fills_up_is_none(socket_dir: Path) -> None:
    with small_disk(socket_dir, "1m") as disk:
        writer = await written(disk, DumpFormat.KDUMP_ZLIB, ELF)
        assert writer.error is not None
        assert writer.error.failure is DumpFailure.NO_SPACE
        assert files(disk) == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (DumpFormat.ELF, ELF),
        (DumpFormat.ELF_ZSTD, ELF),
        (DumpFormat.ELF_ZSTD, ELF_HEAD + bytes(64 << 20)),  # and takes next to nothing packed
        (DumpFormat.KDUMP_LZO, KDUMP),
        (DumpFormat.KDUMP_LZO, FLAT_HEADER + piece(1 << 40, b"x") + END),
    ],
)
async def test_more_than_a_guest_has_is_no_dump(
    tmp_path: Path, kind: DumpFormat, data: bytes
) -> None:
    writer = await written(tmp_path, kind, data, most=len(data) - 1)
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.TOO_LARGE
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "data"), [(DumpFormat.ELF, ELF[:100]), (DumpFormat.KDUMP_LZO, KDUMP[:5000])]
)
async def test_dump_that_comes_too_slowly_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DumpFormat, data: bytes
) -> None:
    monkeypatch.setattr(dump_writer, "PATIENCE", 0.05)
    reading, writing = os.pipe()
    with fail_after(TIME_LIMIT):
        writer = writer_into(tmp_path, reading, kind)
        os.write(writing, data)
        await writer.ended.wait()
    os.close(writing)
    assert writer.error is not None
    assert writer.error.failure is DumpFailure.TOO_SLOW
    assert files(tmp_path) == []


async def drip(directory: Path, kind: DumpFormat, data: bytes, *, slowly: int) -> DumpWriter:
    """A writer that has come to its end: of QEMU's bytes so many come one by one, then the rest."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
            for byte in data[:slowly]:
                pipe.write(bytes([byte]))
                threading.Event().wait(0.02)  # nothing is waited for: it is how slow it is
            rest = memoryview(data)[slowly:]
            while rest:
                rest = rest[pipe.write(rest) :]

    with fail_after(TIME_LIMIT):
        writer = writer_into(directory, reading, kind)
        await trio.to_thread.run_sync(write)
        await writer.ended.wait()
    return writer


OTHER_RATE = {DumpFormat.ELF: "LEAST_KDUMP_RATE", DumpFormat.KDUMP_LZO: "LEAST_RATE"}


@pytest.mark.parametrize(
    ("kind", "rate", "data"),
    [
        (DumpFormat.ELF, "LEAST_RATE", ELF),
        (DumpFormat.KDUMP_LZO, "LEAST_KDUMP_RATE", KDUMP),
    ],
)
async def test_dump_is_to_come_at_a_rate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DumpFormat, rate: str, data: bytes
) -> None:
    """Each byte that comes gives QEMU no more than its own time."""
    monkeypatch.setattr(dump_writer, "PATIENCE", 0.2)
    monkeypatch.setattr(dump_writer, OTHER_RATE[kind], 1)
    slow = await drip(tmp_path / "slow", kind, data, slowly=100)
    assert slow.error is not None
    assert slow.error.failure is DumpFailure.TOO_SLOW
    assert files(tmp_path) == []
    monkeypatch.setattr(dump_writer, rate, 1)
    monkeypatch.setattr(dump_writer, OTHER_RATE[kind], 1 << 40)
    good = await drip(tmp_path / "good", kind, data, slowly=30)
    assert (good.error, good.size) == (None, len(content(tmp_path)))


async def test_who_is_not_read_is_not_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_writer, "PATIENCE", 0.5)
    reading, writing = os.pipe()
    ways = iter([1.0])  # panicd itself lets others go first, for longer than QEMU may take

    def give_way() -> None:
        threading.Event().wait(next(ways, 0.0))

    with fail_after(TIME_LIMIT):
        writer = writer_into(tmp_path, reading, DumpFormat.ELF, give_way)
        async with await trio.open_file(writing, "wb") as pipe:
            await pipe.write(ELF)
        await writer.ended.wait()
    assert writer.error is None
