"""Lines of a socket, however they are cut up."""

import socket
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from panicd.qemu.line_reader import lines_read
from panicd.qemu.line_reader import read_lines as read_lines_of
from panicd.qemu.pace import Pace
from tests.parts.patience import fail_after

LIMIT = 1000


async def read_lines(
    sock: socket.socket,
    head: bytes,
    take: Callable[[bytes, int | None], bool],
    limit: int,
    pace: Pace,
) -> bytes:
    async with lines_read():
        return await read_lines_of(sock, head, take, limit, pace)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_lines_are_handed_over_however_they_come(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    taken: list[bytes] = []

    async def say() -> None:
        for byte in b"o\r\ntwo\nthree\nfo":
            theirs.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        theirs.close()

    def take(line: bytes, _sender: int | None) -> bool:
        taken.append(line)
        return True

    with fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            rest = await read_lines(ours, b"zero\n", take, LIMIT, Pace())
    assert taken == [b"zero", b"o\r", b"two", b"three"]
    assert rest == b"fo"


async def test_a_line_that_is_not_taken_is_left_with_what_follows(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"good\nbad\ngood\npart")
    with fail_after(10):
        rest = await read_lines(ours, b"", lambda line, _sender: line == b"good", LIMIT, Pace())
    assert rest == b"bad\ngood\npart"


async def test_a_line_without_an_end_is_given_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"x" * (LIMIT + 1))
    with fail_after(10):
        assert await read_lines(ours, b"", lambda _line, _sender: True, LIMIT, Pace()) == b"x" * (
            LIMIT + 1
        )


async def test_a_line_that_is_beyond_its_share_has_the_next_wait(
    pair: tuple[socket.socket, socket.socket], autojump_clock: MockClock
) -> None:
    class Beyond(Pace):
        def pause(self, began: float, now: float) -> float:
            assert began <= now
            return 60.0

    ours, theirs = pair
    theirs.send(b"one\ntwo\n")
    taken: list[float] = []

    def take(_line: bytes, _sender: int | None) -> bool:
        taken.append(autojump_clock.current_time())
        return True

    with trio.move_on_after(1000):
        await read_lines(ours, b"", take, LIMIT, Beyond())
    assert taken[1] - taken[0] == 60.0


async def test_line_that_drips_without_end_costs_its_share(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    # so small a share that no pause between two bytes, on however busy a host, pays for one
    pace, pauses = Pace(share=1e-6), list[float]()

    class Counted(Pace):
        def pause(self, _began: float, _now: float) -> float | None:
            read = float(len(pauses))  # each as if it had taken a second, and nothing else any time
            pauses.append(pace.pause(read, read + 1) or 0.0)
            return None

    async def drip() -> None:
        for _ in range(LIMIT + 1):
            theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked()

    with fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            await read_lines(ours, b"", lambda _line, _sender: True, LIMIT, Counted())
    assert len(pauses) == LIMIT + 1
    assert sum(pauses) > 0.0


async def test_a_connection_that_fails_is_at_its_end() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, fail_after(10):
        ours.send(b"never read")
        theirs.send(b"last\n")
        theirs.close()  # with unread data: ECONNRESET
        assert await read_lines(ours, b"", lambda _line, _sender: True, LIMIT, Pace()) == b""


async def test_a_bug_in_what_takes_a_line_is_its_reader_s(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"one\n")

    def take(_line: bytes, _sender: int | None) -> bool:
        raise ZeroDivisionError

    async with lines_read():
        with fail_after(10), pytest.raises(ZeroDivisionError):
            await read_lines_of(ours, b"", take, LIMIT, Pace())
