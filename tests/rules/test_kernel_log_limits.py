from typing import cast

import pytest

from panicd.rules.guest_memory.memory import MAX_REQUEST, PAGE, Limits
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.kernel_log import KernelLog, read_log
from tests.rules.kernel_logs import LIMITS, PANIC, guest, read, texts
from tests.rules.linux_memory import RING, TOP_TABLE, LinuxMemory, Served, serve


def many() -> LinuxMemory:
    return guest(*(f"{n:4}" * 50 for n in range(1000)), count_bits=10, size_bits=20)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(lines=1000, requests=7),
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


def test_the_newest_are_read_where_what_is_older_can_not_be() -> None:
    def refused() -> Reading[KernelLog]:
        reader = read_log(memory.info(), Limits(lines=1000))
        request = next(reader)
        try:
            while True:
                data = yield request
                if old in data:
                    request = reader.throw(NotReadableError("no guest memory there"))
                else:
                    request = reader.send(data)
        except StopIteration as end:
            return cast("KernelLog", end.value)

    memory, old = many(), f"{700:4}".encode() * 50
    log = serve(refused(), memory)
    assert texts(log) == [f"{n:4}" * 50 for n in range(1000 - len(log.lines), 1000)]
    assert 150 <= len(log.lines) < 300
    assert not log.complete


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
