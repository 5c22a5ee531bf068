"""What a program makes of an ELF core: kdumps of all kinds of memory, copies of what is none."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.dumps.facts import dump_facts
from panicd.dumps.filter.page_filter import filter_core
from panicd.dumps.reader import open_dump
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError

GIB = 1 << 30
HIGH = 4 * GIB  # where a PC has memory again
NOTE = b"OSRELEASE=6.1.0-test\nNUMBER(phys_base)=-4096\n"
ABOUT = b'{"level": 31, "left_out": {"free": 7, "user": "x"}, "reason": "why"}'


def core(*pieces: tuple[int, bytes], machine: int = 62, note: bytes = NOTE) -> bytes:
    """An ELF core with pieces of memory, each at its physical address."""
    contents = struct.pack("<III", 11, len(note), 0) + b"VMCOREINFO\0\0" + note
    contents += bytes(-len(contents) % 4)
    count = len(pieces) + 1
    at = 64 + 56 * count
    segments = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(contents), 0, 0)]
    at += len(contents)
    for physical, data in pieces:
        size = len(data)
        segments.append(struct.pack("<IIQQQQQQ", 1, 0, at, 0, physical, size, size, 0))
        at += size
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identity, 4, machine, 1, 0, 64, 0, 0, 64, 56, count, *[0] * 3
    )
    return b"".join((header, *segments, contents, *(data for _, data in pieces)))


def filtered(
    directory: Path, data: bytes, kept: bytes | None = None, *, framed: bool = False
) -> Path:
    source, target = directory / "core", directory / "dump.kdump"
    source.write_bytes(data)
    target.unlink(missing_ok=True)
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, os.O_RDWR | os.O_CREAT)
    try:
        filter_core(reading, writing, level=31, about=ABOUT, kept=kept, at=1e9, framed=framed)
    finally:
        os.close(reading)
        os.close(writing)
    return target


def page(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE // 8)


def test_pages_come_out_as_they_went_in(tmp_path: Path) -> None:
    noise, empty = os.urandom(PAGE), bytes(PAGE)
    low = page(1) + empty + noise + page(4)
    high = empty + page(6)
    path = filtered(tmp_path, core((0, low), (5 * PAGE, page(9)), (4 * GIB + PAGE, high)))
    with open_dump(path) as dump:
        assert dump.vmcoreinfo == NOTE
        assert dump.memory(0, 4 * PAGE) == low
        assert dump.memory(5 * PAGE, PAGE) == page(9)
        assert dump.memory(4 * GIB + PAGE, 2 * PAGE) == high
        for hole in (4, 6, 4 * GIB // PAGE):
            with pytest.raises(NotReadableError):
                dump.memory(hole * PAGE, PAGE)


def test_only_what_is_kept_comes_out(tmp_path: Path) -> None:
    memory = b"".join(page(number + 1) for number in range(24))
    path = filtered(tmp_path, core((0, memory)), kept=bytes([0b10100101, 0b0]))
    with open_dump(path) as dump:
        for number in (0, 2, 5, 7, *range(16, 24)):  # what the bitmap does not reach is kept
            assert dump.memory(number * PAGE, PAGE) == page(number + 1)
        for number in (1, 3, 4, 6, *range(8, 16)):
            with pytest.raises(NotReadableError):
                dump.memory(number * PAGE, PAGE)


def test_parts_are_enough_that_have_what_is_kept(tmp_path: Path) -> None:
    whole = core((0, bytes(16 * PAGE)), (HIGH, bytes(8 * PAGE)))
    beginning = whole[: -24 * PAGE]
    kept = bytearray(-(-(HIGH // PAGE + 8) // 8))
    kept[0], kept[-1] = 0b0110, 0b1
    parts = ((PAGE, page(1) + page(2)), (HIGH, page(7)))
    frames = [struct.pack("<QQ", place, len(data)) + data for place, data in parts]
    path = filtered(tmp_path, beginning + b"".join(frames), bytes(kept), framed=True)
    with open_dump(path) as dump:
        assert dump.memory(PAGE, 2 * PAGE) == page(1) + page(2)
        assert dump.memory(HIGH, PAGE) == page(7)
        for left_out in (0, 3 * PAGE, HIGH + PAGE):
            with pytest.raises(NotReadableError):
                dump.memory(left_out, PAGE)
    for cut in (beginning + frames[0], beginning + b"".join(frames)[:-1]):
        with pytest.raises(OSError, match="core") as caught:
            filtered(tmp_path, cut, bytes(kept), framed=True)
        assert caught.value.errno == errno.ENODATA
    with pytest.raises(NotReadableError):
        filtered(tmp_path, b"no core", bytes(kept), framed=True)


def test_a_whole_memory_is_packed_in_less_time_and_not_as_small(tmp_path: Path) -> None:
    text = b"".join(b"%d bottles of beer on the wall\n" % number for number in range(10**4))
    memory = core((0, text[: len(text) // PAGE * PAGE]))
    whole = filtered(tmp_path, memory).stat().st_size
    assert whole > 1.1 * filtered(tmp_path, memory, b"").stat().st_size


def test_empty_memory_takes_next_to_nothing(tmp_path: Path) -> None:
    path = filtered(tmp_path, core((0, bytes(64 << 20))))
    assert path.stat().st_size < (64 << 20) // 100


def test_devices_memory_at_the_end_is_left_out(tmp_path: Path) -> None:
    rom = page(7) * 64
    firmware, video = (4 * GIB - len(rom), rom), (4 * GIB - (64 << 20), page(8) * 64)
    low = (0, page(1)), (1 << 20, page(3))
    path = filtered(tmp_path, core(*low, video, firmware))
    assert path.stat().st_size < 8 * PAGE
    with open_dump(path) as dump:
        assert dump.memory(1 << 20, PAGE) == page(3)
    path = filtered(tmp_path, core((0, page(1)), (GIB, page(2)), machine=183))
    with open_dump(path) as dump:
        assert dump.memory(GIB, PAGE) == page(2)
    path = filtered(tmp_path, core((0, page(1)), (4 * GIB - len(rom), rom), (4 * GIB, page(2))))
    with open_dump(path) as dump:
        assert dump.memory(4 * GIB - PAGE, 2 * PAGE) == page(7) + page(2)


def test_the_dump_says_what_it_is(tmp_path: Path) -> None:
    facts = dump_facts(filtered(tmp_path, core((0, page(1)))))
    assert (facts.level, facts.left_out, facts.reason) == (31, {"free": 7}, "why")
    assert facts.open[0].startswith("crash /usr/lib/debug/boot/vmlinux-6.1.0-test ")


@pytest.mark.parametrize(
    "data",
    [
        core((0, page(1)), machine=243),
        core((0, page(1)[:-1])),
        core((0, page(1)), (0, page(2))),
        core(),
        b"nothing of the kind",
        b"",
    ],
    ids=["another machine", "half a page", "twice the same", "no memory", "no core", "nothing"],
)
def test_what_is_no_such_core_is_copied(tmp_path: Path, data: bytes) -> None:
    assert filtered(tmp_path, data).read_bytes() == data


def test_a_library_that_does_not_load_costs_the_filter_and_not_the_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "panicd.dumps.filter.kdump_writer", None)
    data = core((0, page(1)))
    assert filtered(tmp_path, data).read_bytes() == data


@pytest.mark.parametrize("missing", [1, PAGE, PAGE + 1])
def test_core_that_is_cut_off_is_an_error(tmp_path: Path, missing: int) -> None:
    with pytest.raises(OSError, match="cut off") as caught:
        filtered(tmp_path, core((0, page(1) * 2))[:-missing])
    assert caught.value.errno == errno.ENODATA


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_comes_ends_well(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(core((0, page(1) * 3), (8 * PAGE, page(2))))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    try:
        path = filtered(tmp_path_factory.mktemp("core"), bytes(content))
        assert path.stat().st_blocks * 512 < 1 << 20
        dump_facts(path)
        with open_dump(path) as dump:
            dump.memory(0, PAGE)
    except (OSError, NotReadableError):
        pass
