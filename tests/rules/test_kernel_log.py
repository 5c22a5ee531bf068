import itertools
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.rules.guest_memory.memory import MAX_REQUEST, PAGE, Limits
from panicd.rules.guest_memory.printk import MAX_TEXT
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.vmcoreinfo import MAX_SIZE, Vmcoreinfo
from panicd.rules.kernel_log import KernelLog, LogLine, panic_line, read_log
from tests.rules.linux_memory import (
    COMMITTED,
    DESCRIPTORS,
    FAILED,
    FINALIZED,
    INFOS,
    LAYOUT,
    OTHER_LAYOUT,
    RESERVED,
    RING,
    RING_POINTER,
    TABLES,
    TEXTS,
    TOP_TABLE,
    U64,
    LinuxMemory,
    Message,
    Served,
    messages,
    serve,
)

LIMITS = Limits(lines=60)
PANIC = "Kernel panic - not syncing: sysrq triggered crash"


def guest(*texts: str, **properties: object) -> LinuxMemory:
    memory = LinuxMemory(**properties)  # type: ignore[arg-type]  # whichever the test is about
    for message in messages(*texts):
        memory.log(message)
    memory.finish()
    return memory


def read(memory: LinuxMemory, limits: Limits = LIMITS, served: Served | None = None) -> KernelLog:
    return serve(read_log(memory.info(), limits), memory, served)


def texts(log: KernelLog) -> list[str]:
    return [line.text for line in log.lines]


# -- what is read


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


# -- limits


def many() -> LinuxMemory:
    return guest(*(f"{n:4}" * 50 for n in range(1000)), count_bits=10, size_bits=20)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(lines=1000, requests=12),
        Limits(lines=1000, size=200_000),
        Limits(lines=1000, records=300),
    ],
    ids=str,
)
def test_what_was_read_before_a_limit_is_returned(limits: Limits) -> None:
    served = Served()
    log = read(many(), limits, served)
    assert 256 <= len(log.lines) < 1000
    assert texts(log) == [f"{n:4}" * 50 for n in range(1000)][-len(log.lines) :]
    assert not log.complete
    assert len(served.requests) <= limits.requests
    assert served.size <= limits.size


@pytest.mark.parametrize(
    "limits", [Limits(lines=1000, requests=4), Limits(lines=1000, size=30_000)], ids=str
)
def test_nothing_was_read_before_a_limit(limits: Limits) -> None:
    with pytest.raises(NotReadableError, match="more memory to read than the limit allows"):
        read(many(), limits)


def test_requests_are_whole_pages_and_small() -> None:
    served = Served()
    read(many(), Limits(lines=1000), served)
    assert max(request.length for request in served.requests) <= MAX_REQUEST
    seen = [
        page
        for request in served.requests
        for page in range(request.physical, request.physical + request.length, PAGE)
    ]
    assert len(seen) == len(set(seen))


def test_time_is_over() -> None:
    memory = many()
    reader = read_log(memory.info(), Limits(lines=1000))
    request = next(reader)
    for _ in range(7):
        request = reader.send(memory.read(request.physical, request.length))
    with pytest.raises(StopIteration) as end:
        reader.throw(NotReadableError("the time is over"))
    assert texts(end.value.value)[-1] == f"{999:4}" * 50


def test_one_page_for_all_addresses_ends_too() -> None:
    """Page tables that lead back to themselves: memory without end, and nothing more to read."""
    memory = guest(PANIC, allocated=True, large=12)
    for index in range(512):
        memory.write_number(TOP_TABLE + 8 * index, TOP_TABLE | 1)
    loop = memory.buffer_address(0)
    count_bits, descs, infos, head_id, tail_id = 31, loop, loop, 1 << 30, 0
    for index, number in enumerate([count_bits, descs, infos, head_id, tail_id]):
        memory.write_number(RING + 8 * index, number)
    served = Served()
    with pytest.raises(NotReadableError, match="no record was written whole"):
        read(memory, LIMITS, served)
    assert len(served.requests) == 3


# -- malformed memory


Break = Callable[[LinuxMemory], object]

BROKEN: dict[str, tuple[Break, str]] = {
    "wild pointer to the ring": (
        lambda m: m.write_number(RING_POINTER, 0x1234),
        "no kernel address: 0x1234",
    ),
    "ring beyond memory": (
        lambda m: m.write_number(RING_POINTER, m.image_address(0x2080_0000)),
        "nothing at",
    ),
    "descriptors beyond 64 bits": (
        lambda m: m.write_number(RING + 8, (1 << 64) - 8),
        "no kernel address|not mapped",
    ),
    "descriptors of a user": (lambda m: m.write_number(RING + 8, 0x7FFF_0000_0000), "no kernel"),
    "descriptors at a hole": (
        lambda m: m.write_number(RING + 8, 0xFFFF_8880_0000_0000 + (5 << 39)),
        "not mapped",
    ),
    "no records": (lambda m: m.write_number(RING, 0, 4), "a ring of 2\\^0 records"),
    "too many records": (lambda m: m.write_number(RING, 32, 4), "a ring of 2\\^32 records"),
    "no text": (lambda m: m.write_number(RING + 48, 0, 4), "2\\^0 bytes"),
    "too much text": (lambda m: m.write_number(RING + 48, 63, 4), "2\\^63 bytes"),
    "more records than fit": (
        lambda m: m.write_number(RING + 32, m.last_id() - 64),
        "a ring of 64 records holds 65",
    ),
    "zeroes": (lambda m: m.pages.update({p: bytearray(PAGE) for p in m.pages}), "no kernel"),
    "infos gone": (lambda m: m.pages.pop(INFOS // PAGE * PAGE), "nothing at"),
    "texts gone": (lambda m: m.pages.pop(TEXTS), "nothing at"),
    "page tables gone": (lambda m: m.pages.pop(TABLES + PAGE), "nothing at"),
    "page tables beyond physical memory": (
        lambda m: m.write_number(TABLES, 0xFFFFFFFFFF001),
        "not mapped|nothing at",
    ),
    "descriptors overwritten": (
        lambda m: m.write(DESCRIPTORS, b"\xff" * PAGE),
        "no record was written whole",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_memory_is_refused(broken: str) -> None:
    break_, reason = BROKEN[broken]
    memory = guest("before", PANIC, allocated=True, large=12)
    break_(memory)
    with pytest.raises(NotReadableError, match=reason):
        read(memory)


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({"SYMBOL(prb)": None}, r"VMCOREINFO has no SYMBOL\(prb\): not a kernel of 5.10 or later"),
        ({"SYMBOL(prb)": "ffffffff8162c2c8ff"}, r"malformed SYMBOL\(prb\)"),
        ({"SYMBOL(swapper_pg_dir)": "0"}, "no physical address"),
        ({"NUMBER(phys_base)": "9" * 20}, "no physical address"),
        ({"NUMBER(phys_base)": "-" + "9" * 20}, "no physical address"),
        ({"NUMBER(phys_base)": "9" * 5000}, "malformed"),
        ({"NUMBER(phys_base)": "٣"}, "malformed"),
        ({"NUMBER(phys_base)": "0x10"}, "malformed"),
        ({"PAGESIZE": "65536"}, "pages of 65536 bytes"),
        ({"NUMBER(sme_mask)": "140737488355328"}, "encrypted"),
        ({"NUMBER(pgtable_l5_enabled)": None}, "VMCOREINFO has no"),
        ({"SIZE(prb_desc)": "0"}, "a prb_desc of 0 bytes"),
        ({"SIZE(prb_desc)": "99999999999999999999"}, "a prb_desc of 9+ bytes"),
        ({"SIZE(printk_info)": "-88"}, "a printk_info of -88 bytes"),
        ({"OFFSET(printk_info.caller_id)": "85"}, "printk_info.caller_id lies outside"),
        ({"OFFSET(prb_desc.text_blk_lpos)": "-8"}, "prb_desc.text_blk_lpos lies outside"),
    ],
)
def test_a_note_that_makes_no_sense_is_refused(edits: dict[str, str | None], reason: str) -> None:
    memory = guest(PANIC, allocated=True, edits=edits)
    with pytest.raises(NotReadableError, match=reason):
        read(memory)


def test_a_note_that_is_no_note() -> None:
    assert Vmcoreinfo.parse(b"OSRELEASE=6.1\x1b[0m\n\xff\xff==\n=").release == ""
    with pytest.raises(NotReadableError, match="a VMCOREINFO of 65537 bytes"):
        Vmcoreinfo.parse(bytes(MAX_SIZE + 1))


INTERESTING = st.sampled_from(
    [
        *(0, 1, 8, 63, 0x7F, 0x1000, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1),
        *(0xFFFFFFFF80000000, 0xFFFF888000000000, 0xFFFF888040000000, TOP_TABLE | 1, TABLES | 0x81),
        *(DESCRIPTORS, INFOS, TEXTS, RING),
    ]
)
ENTRIES = [line.partition(b"=")[0].decode() for line in LinuxMemory().note().splitlines()]


@settings(max_examples=300)
@given(data=st.data(), allocated=st.booleans(), levels=st.sampled_from([4, 5]))
def test_hostile_memory_ends_in_a_log_or_a_refusal(
    data: st.DataObject, *, allocated: bool, levels: int
) -> None:
    memory = guest(
        *(f"message {n}" for n in range(40)), PANIC, allocated=allocated, large=12, levels=levels
    )
    for page in data.draw(st.lists(st.sampled_from(sorted(memory.pages)), max_size=6)):
        content = memory.pages[page]
        used = sorted({index // 8 for index, byte in enumerate(content) if byte}) or [0]
        place = data.draw(st.sampled_from(used))
        number = data.draw(st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1)))
        memory.write_number(page + 8 * place, number)
    memory.edits |= data.draw(
        st.dictionaries(
            st.sampled_from(ENTRIES),
            st.one_of(
                st.none(),
                st.integers(-(1 << 64), 1 << 64).map(str),
                INTERESTING.map("{:x}".format),
                st.text("0123456789abcdef-x ", max_size=8),
            ),
            max_size=2,
        )
    )
    limits = Limits(lines=data.draw(st.integers(1, 60)), size=64 * PAGE, requests=20)
    served = Served()
    try:
        log = read(memory, limits, served)
    except NotReadableError:
        log = None
    assert len(served.requests) <= limits.requests
    assert served.size <= limits.size
    assert all(request.physical + request.length <= 1 << 52 for request in served.requests)
    if log:
        assert 0 < len(log.lines) <= limits.lines
        assert all(line.text.isprintable() for line in log.lines)
        assert panic_line(log.lines).isprintable()


# -- the line that says why


def said(*lines: str, at: float = 0.0) -> list[LogLine]:
    return [LogLine(n, at + n / 100, 4, "T1", text) for n, text in enumerate(lines)]


OOPS = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "#PF: supervisor write access in kernel mode",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "RIP: 0010:do_something+0x12/0x40 [driver]",
]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["sysrq: Trigger a crash", PANIC, "CPU: 0 PID: 85"], PANIC),
        (
            [*OOPS, "Kernel panic - not syncing: Fatal exception", "Kernel Offset: 0x30c00000"],
            OOPS[0],
        ),
        (
            [*OOPS, "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009"],
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
        ),
        (
            [
                "kernel BUG at fs/ext4/inode.c:2721!",
                "Oops: invalid opcode: 0000 [#1] PREEMPT SMP",
                "Kernel panic - not syncing: Fatal exception in interrupt",
            ],
            "kernel BUG at fs/ext4/inode.c:2721!",
        ),
        (
            ["divide error: 0000 [#1] SMP", "Kernel panic - not syncing: Fatal exception"],
            "divide error: 0000 [#1] SMP",
        ),
        (
            [
                "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [stress:812]",
                "Kernel panic - not syncing: softlockup: hung tasks",
            ],
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [stress:812]",
        ),
        (
            [
                "INFO: task jbd2/vda1-8:133 blocked for more than 120 seconds.",
                "Kernel panic - not syncing: hung_task: blocked tasks",
            ],
            "INFO: task jbd2/vda1-8:133 blocked for more than 120 seconds.",
        ),
        (
            [
                "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "Kernel panic - not syncing: RCU Stall",
            ],
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        ),
        (
            [
                "WARNING: CPU: 0 PID: 1 at kernel/fork.c:1 copy_process+0x1/0x2",
                "Kernel panic - not syncing: kernel: panic_on_warn set ...",
            ],
            "WARNING: CPU: 0 PID: 1 at kernel/fork.c:1 copy_process+0x1/0x2",
        ),
        (
            [
                "BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
                "Kernel panic - not syncing: kasan.fault=panic set ...",
            ],
            "BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
        ),
        (
            ["Kernel panic - not syncing: Fatal exception"],
            "Kernel panic - not syncing: Fatal exception",
        ),
        (OOPS, OOPS[0]),
        (OOPS[1:], OOPS[2]),
        (["sysrq: Trigger a crash", "and nothing more"], "sysrq: Trigger a crash"),
        (["all is well", "---[ end Kernel panic - not syncing: Fatal exception ]---"], ""),
        ([], ""),
    ],
)
def test_panic_line(lines: list[str], why: str) -> None:
    assert panic_line(said(*lines)) == why


def test_an_earlier_trouble_is_not_the_cause() -> None:
    panic = "Kernel panic - not syncing: Fatal exception"
    assert panic_line([*said(*OOPS), *said(panic, at=3600.0)]) == panic


def test_a_panic_that_the_kernel_did_not_write_does_not_count() -> None:
    forged = LogLine(0, 0.0, 0, "T812", "Kernel panic - not syncing: buy now", by_kernel=False)
    assert panic_line([forged, *said(PANIC)]) == PANIC


def test_a_panic_line_is_bounded() -> None:
    assert len(panic_line(said(PANIC + "x" * 5000))) == 256


def test_every_line_counts_for_what_it_begins_with() -> None:
    for first, second in itertools.permutations(["Oops: 0002 [#1]", "BUG: unable to handle"]):
        assert panic_line(said(first, second)) == "BUG: unable to handle"
