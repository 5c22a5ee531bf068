"""Lines of a socket, however they are cut up."""

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from panicd.qemu.line_reader import AT_ONCE, LINES, Stream, streams
from panicd.qemu.other_end import show_senders
from panicd.qemu.pace import Pace
from tests.parts.patience import fail_after

LIMIT = 1000


async def read_lines(
    sock: socket.socket, take: Callable[[bytes], bool], pace: Pace | None = None
) -> bytes:
    """Have a stream's lines handed over to the end, and return what is left."""
    async with streams():
        stream = Stream(sock, LIMIT, pace or Pace())
        over = trio.Event()
        bugs: list[BaseException | None] = []

        def end(bug: BaseException | None) -> None:
            bugs.append(bug)
            over.set()

        stream.hand_over(take, end)
        await over.wait()
        assert bugs == [None]
        stream.close()
        return bytes(stream._read)


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

    def take(line: bytes) -> bool:
        taken.append(line)
        return True

    with fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            rest = await read_lines(ours, take)
    assert taken == [b"o\r", b"two", b"three"]
    assert rest == b"fo"


async def test_a_line_that_is_not_taken_is_left_with_what_follows(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"good\nbad\ngood\npart")
    with fail_after(10):
        rest = await read_lines(ours, lambda line: line == b"good")
    assert rest == b"bad\ngood\npart"


async def test_a_line_without_an_end_is_given_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"x" * (LIMIT + 1))
    with fail_after(10):
        assert await read_lines(ours, lambda _line: True) == b"x" * (LIMIT + 1)


async def test_lines_that_are_beyond_their_share_have_the_next_wait(
    pair: tuple[socket.socket, socket.socket], autojump_clock: MockClock
) -> None:
    class Beyond(Pace):
        def pause(self, began: float, now: float, messages: int = 1) -> float | None:
            assert began <= now
            return 60.0 if messages == LINES else None

    ours, theirs = pair
    theirs.send((LINES + 1) * b"line\n")
    taken: list[float] = []

    def take(_line: bytes) -> bool:
        taken.append(autojump_clock.current_time())
        return True

    with trio.move_on_after(1000):
        await read_lines(ours, take, Beyond())
    assert taken[LINES] - taken[LINES - 1] == 60.0


async def test_line_that_drips_without_end_costs_its_share(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    # so small a share that no pause between two bytes, on however busy a host, pays for one
    pace, pauses = Pace(share=1e-6), list[float]()

    class Counted(Pace):
        def pause(self, _began: float, _now: float, _messages: int = 1) -> float | None:
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
            await read_lines(ours, lambda _line: True, Counted())
    assert len(pauses) == LIMIT + 1
    assert sum(pauses) > 0.0


async def test_a_connection_that_fails_is_at_its_end() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, fail_after(10):
        ours.send(b"never read")
        theirs.send(b"last\n")
        theirs.close()  # with unread data: ECONNRESET
        assert await read_lines(ours, lambda _line: True) == b""


@asynccontextmanager
async def stream_of(sock: socket.socket) -> AsyncIterator[Stream]:
    with fail_after(10):
        async with streams():
            stream = Stream(sock, LIMIT, Pace())
            yield stream
            stream.close()


async def fetched(stream: Stream) -> bytes:
    """Return the next line, when it is there."""
    while (line := stream.fetch()) is None:
        there = trio.Event()
        stream.tell_readable(there.set)
        await there.wait()
    return line


def sent_by(stream: Stream) -> int | None:
    return stream.sender


async def test_lines_are_fetched_then_handed_over_then_fetched_again(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    taken: list[bytes] = []
    over = trio.Event()

    def take(line: bytes) -> bool:
        taken.append(line)
        return line != b"bad"

    async with stream_of(ours) as stream:
        assert stream.fetch() is None
        theirs.send(b"one\ntwo\nthr")
        assert await fetched(stream) == b"one\n"
        stream.hand_over(take, lambda _bug: over.set())
        theirs.send(b"ee\nbad\nmore\npart")
        theirs.close()
        await over.wait()
        assert taken == [b"two", b"three", b"bad"]
        assert [await fetched(stream) for _ in range(4)] == [b"bad\n", b"more\n", b"part", b""]


async def test_a_bug_in_the_taking_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    bugs: list[BaseException | None] = []
    over = trio.Event()

    def end(bug: BaseException | None) -> None:
        bugs.append(bug)
        over.set()

    async with stream_of(ours) as stream:
        stream.hand_over(lambda line: bool(1 // len(line)), end)
        theirs.send(b"\n")
        await over.wait()
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]


async def test_a_line_that_is_too_long_is_not_fetched(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"x" * (LIMIT + 1))
    async with stream_of(ours) as stream:
        with pytest.raises(ValueError, match="more than 1000 bytes"):
            await fetched(stream)


async def test_what_the_socket_does_not_take_is_sent_later(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    async with stream_of(ours) as stream:
        sent = b"".join(b"%07d\n" % number for number in range(100_000))
        for begin in range(0, len(sent), 100_000):
            stream.send(sent[begin : begin + 100_000])
        assert stream.unsent
        with pytest.raises(BlockingIOError):
            stream.send_fd(0, b"{}")  # it would come in the middle of a command
        received = b""
        while len(received) < len(sent):
            received += theirs.recv(1 << 20)
            await trio.testing.wait_all_tasks_blocked()
        assert received == sent
        assert (stream.unsent, stream.wanted) == (b"", 0)


async def test_what_waits_for_an_end_that_has_gone_is_dropped(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    async with stream_of(ours) as stream:
        stream.send(b"x" * (1 << 20))
        assert stream.wanted
        theirs.close()
        await trio.testing.wait_all_tasks_blocked()
        assert (stream.unsent, stream.wanted) == (b"", 0)
        with pytest.raises(BrokenPipeError):
            stream.send(b"x")


async def test_a_line_of_two_processes_has_no_sender(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    show_senders(ours)

    async def child_sends(text: str) -> None:
        code = f"import os; os.write({theirs.fileno()}, {text.encode()!r})"
        await trio.run_process([sys.executable, "-c", code], pass_fds=[theirs.fileno()])

    async with stream_of(ours) as stream:
        theirs.send(b"mine\nmi")
        assert await fetched(stream) == b"mine\n"
        assert sent_by(stream) == os.getpid()
        theirs.send(b"ne\n")
        assert await fetched(stream) == b"mine\n"
        assert sent_by(stream) == os.getpid()
        theirs.send(b"mine ")
        await child_sends("and the child's\n")
        assert await fetched(stream) == b"mine and the child's\n"
        assert sent_by(stream) is None
        await child_sends("the child's\n")
        assert await fetched(stream) == b"the child's\n"
        assert sent_by(stream) not in {None, os.getpid()}


async def test_a_closed_stream_waits_for_nothing(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    async with stream_of(ours) as stream:
        stream.close()
        stream.tell_readable(lambda: pytest.fail("it was closed"))
        theirs.send(b"line\n")
        await trio.testing.wait_all_tasks_blocked()
        assert not stream.wanted


async def test_a_stream_may_be_closed_by_what_takes_a_line(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    taken: list[bytes] = []

    async with stream_of(ours) as stream:

        def take(line: bytes) -> bool:
            taken.append(line)
            stream.close()
            return True

        stream.hand_over(take, lambda _bug: pytest.fail("it was closed"))
        theirs.send(b"one\ntwo\n")
        await trio.testing.wait_all_tasks_blocked()
        theirs.send(b"three\n")
        await trio.testing.wait_all_tasks_blocked()
    assert taken == [b"one"]


async def test_an_answer_is_read_before_others_events() -> None:
    """So a reaction that has begun is finished before the next one begins."""
    heard: list[bytes] = []
    all_heard = trio.Event()
    with ExitStack() as stack:

        def listen() -> socket.socket:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            stack.enter_context(ours)
            stack.enter_context(theirs)
            stream = Stream(ours, LIMIT, Pace())

            def take(line: bytes) -> bool:
                heard.append(line)
                if line == b"event":
                    stream.send(b"question")
                    theirs.send(b"answer\n")
                if len(heard) == 4 * AT_ONCE:
                    all_heard.set()
                return True

            stream.hand_over(take, lambda _bug: None)
            stack.callback(stream.close)
            return theirs

        with fail_after(10):
            async with streams():
                for theirs in [listen() for _ in range(2 * AT_ONCE)]:
                    theirs.send(b"event\n")
                await all_heard.wait()
                stack.close()
    assert heard == 2 * [*AT_ONCE * [b"event"], *AT_ONCE * [b"answer"]]
