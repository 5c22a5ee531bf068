from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.guest_memory.memory import PAGE, Limits
from panicd.rules.guest_memory.printk import MAX_TEXT
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import KernelLog, LogLine
from tests.rules.kernel_logs import LIMITS, PANIC, guest, read, texts
from tests.rules.linux_memory import (
    COMMITTED,
    FAILED,
    FINALIZED,
    INFOS,
    LAYOUT,
    OTHER_LAYOUT,
    RESERVED,
    TEXTS,
    U64,
    LinuxMemory,
    Message,
    Served,
)


@pytest.mark.parametrize("layout", [LAYOUT, OTHER_LAYOUT], ids=["6.1", "other"])
@pytest.mark.parametrize(
    ("allocated", "levels", "large"),
    [
        (False, 4, 21),
        *((True, levels, large) for levels in (4, 5) for large in (12, 21, 30)),
    ],
)
def test_reads_the_log(
    layout: Mapping[str, object], *, allocated: bool, levels: int, large: int
) -> None:
    memory = guest(
        "Linux version 6.1", "sysrq: Trigger a crash", PANIC,
        layout=layout, allocated=allocated, levels=levels, large=large,
    )  # fmt: skip
    log = read(memory)
    assert log == KernelLog(
        (
            LogLine(0, 0.0, 6, "T1", "Linux version 6.1"),
            LogLine(1, 1.5, 6, "T1", "sysrq: Trigger a crash"),
            LogLine(2, 3.0, 6, "T1", PANIC),
        ),
        complete=True,
        release="6.1.0-test",
    )


def test_pages_need_not_follow_each_other() -> None:
    memory = LinuxMemory(allocated=True, large=12, size_bits=14)
    for number in range(60):
        memory.log(Message(f"{number:3}".encode() * 60))
    memory.finish()
    contents = [memory.pages[page] for page in range(TEXTS, TEXTS + (1 << 14), PAGE)]
    elsewhere = [0x7000_0000, 0x6000_9000, 0x6000_1000, 0x6000_2000]
    for page, (place, content) in enumerate(zip(elsewhere, contents, strict=True)):
        memory.pages[place] = content
        del memory.pages[TEXTS + page * PAGE]
        memory.map(memory.buffer_address(TEXTS + page * PAGE), place)
    assert texts(read(memory)) == [f"{number:3}" * 60 for number in range(60)]


@pytest.mark.parametrize(
    ("allocated", "large", "requests"), [(False, 21, 6), (True, 21, 9), (True, 12, 10)]
)
def test_reads_the_last_lines_in_few_requests(
    *, allocated: bool, large: int, requests: int
) -> None:
    memory = guest(
        *(f"message number {n:5}" for n in range(1000)),
        count_bits=10,
        size_bits=16,
        allocated=allocated,
        large=large,
    )
    served = Served()
    log = read(memory, LIMITS, served)
    assert texts(log) == [f"message number {n:5}" for n in range(940, 1000)]
    assert not log.complete
    assert len(served.requests) <= requests
    assert served.size <= 13 * PAGE


def test_a_record_may_have_several_lines() -> None:
    log = read(guest("first", "one\ntwo\n\nfour"), Limits(lines=3))
    assert [(line.seq, line.text) for line in log.lines] == [(1, "two"), (1, ""), (1, "four")]
    assert not log.complete


def test_level_caller_and_who_said_it() -> None:
    memory = LinuxMemory()
    memory.log(Message(b"kernel", level=0, caller=1 << 31 | 3))
    memory.log(Message(b"somebody", level=7, facility=3, caller=4711))
    memory.finish()
    assert [(x.level, x.caller, x.by_kernel) for x in read(memory).lines] == [
        (0, "C3", True),
        (7, "T4711", False),
    ]


def test_what_a_guest_writes_is_printable() -> None:
    memory = LinuxMemory()
    memory.log(Message("a\tb \x1b[31m\r\x00 \u202eevil é".encode() + b"\xff\xfe"))
    memory.log(Message(b"x" * 3000))
    memory.finish()
    first, second = texts(read(memory))
    assert first == "a       b \\x1b[31m\\r\\x00 \\u202eevil é\\xff\\xfe"
    assert second == "x" * MAX_TEXT


@given(
    # An empty record has no text that could be overwritten: it stays when older ones are gone.
    lengths=st.lists(st.integers(1, 300), max_size=120),
    count_bits=st.integers(1, 6),
    fills_to_the_end=st.booleans(),
)
def test_what_is_still_in_the_ring_is_read(
    lengths: list[int], count_bits: int, *, fills_to_the_end: bool
) -> None:
    """The buffer wraps around, soon after boot past 2^64; what is left are the newest."""
    written = [f"{number}".rjust(length, "-")[:length] for number, length in enumerate(lengths)]
    memory = guest(*written, count_bits=count_bits, size_bits=11, fills_to_the_end=fills_to_the_end)
    if not lengths:
        with pytest.raises(NotReadableError, match="no record was written whole"):
            read(memory)
        return
    log = read(memory, Limits(lines=1000))
    left = texts(log)
    assert left
    assert left == written[-len(left) :]
    assert log.complete
    # Two texts of 300 and the rest of a wrapped one always fit.
    assert len(left) >= min(len(written), 3, (1 << count_bits) - 1)


@pytest.mark.parametrize("fills_to_the_end", [False, True])
@pytest.mark.parametrize("count", [32, 33, 40, 70])
def test_texts_that_fill_the_buffer(count: int, *, fills_to_the_end: bool) -> None:
    """32 blocks of 64 bytes each; older kernels leave the last place of the buffer empty."""
    written = [f"{number}".rjust(56) for number in range(count)]
    log = read(guest(*written, size_bits=11, fills_to_the_end=fills_to_the_end))
    left = texts(log)
    assert left == written[-len(left) :]
    assert len(left) == 32 if fills_to_the_end else len(left) in {30, 31}
    assert log.complete


@pytest.mark.parametrize("state", [RESERVED, COMMITTED, FINALIZED])
def test_a_record_that_is_being_written_is_left_out(state: int) -> None:
    memory = guest("before", PANIC)
    memory.log(Message(b"after"), state)
    log = read(memory)
    assert texts(log) == ["before", PANIC] + ["after"] * (state != RESERVED)
    assert log.complete == (state != RESERVED)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (FAILED, FAILED),
        (0, 0),
        (64, 0),
        (0, U64),
        (0, 8),
        (0, 1 << 40),
        (1 << 40, 0),
        (4096 - 8, 4096),
        (24, 48),
    ],
)
def test_a_record_without_a_text_of_its_own_is_left_out(begin: int, end: int) -> None:
    memory = guest("before", "broken", PANIC)
    memory.set_descriptor(memory.last_id() - 1, FINALIZED, begin, end)
    log = read(memory)
    assert texts(log) == ["before", PANIC]
    assert not log.complete


def test_a_text_longer_than_its_block_is_left_out() -> None:
    memory = guest("before", "broken", PANIC)
    size, at = LAYOUT["printk_info"]
    info = INFOS + (memory.last_id() - 1) % memory.count * size
    memory.write_number(info + at["text_len"], 9, 2)
    assert texts(read(memory)) == ["before", PANIC]
