"""Whose dump comes when, and how far one is."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import asdict

import pytest

from panicd.cli.render_dumps import dumps
from panicd.dumps.queue import DumpQueue, DumpState, DumpTurn, dump_status
from panicd.host.terminal import Terminal
from panicd.rules.settings import DumpFormat

ELF, KDUMP = DumpFormat.ELF_ZSTD, DumpFormat.KDUMP_LZO
GIB = 1 << 30


class Queue:
    """A queue, its clock, and the turns that were woken, in order."""

    def __init__(self, at_once: int) -> None:
        self.now = 1000.0
        self.woken: list[str] = []
        self.queue = DumpQueue(at_once, lambda: self.now)
        self.places: dict[str, ExitStack] = {}

    def come(self, name: str, owner: int = 0) -> DumpTurn:
        self.places[name] = ExitStack()
        turn = self.queue.turn(lambda: self.woken.append(name), ELF, owner)
        return self.places[name].enter_context(turn)

    def leave(self, name: str) -> None:
        self.places.pop(name).close()


def test_first_come_first_served() -> None:
    queue = Queue(2)
    turns = {name: queue.come(name) for name in "abcd"}
    assert queue.woken == ["a", "b"]
    assert [turn.has_come for turn in turns.values()] == [True, True, False, False]
    assert [turns[name].ahead for name in "cd"] == [0, 1]
    queue.now += 5
    queue.leave("b")
    assert queue.woken == ["a", "b", "c"]
    assert turns["c"].since == queue.now
    assert turns["d"].ahead == 0


def test_user_who_has_many_lets_another_go_first() -> None:
    queue = Queue(2)
    many = [queue.come(f"a{number}", owner=1) for number in range(10)]
    other = queue.come("b", owner=2)
    assert (other.ahead, many[2].ahead) == (0, 1)
    queue.leave("a0")
    assert queue.woken == ["a0", "a1", "b"]
    queue.come("c", owner=3)
    queue.leave("b")
    assert queue.woken[-1] == "c"
    queue.leave("c")
    queue.leave("a1")
    assert queue.woken[-2:] == ["a2", "a3"]


def test_who_leaves_the_queue_makes_room_for_those_behind() -> None:
    queue = Queue(1)
    queue.come("a")
    queue.come("b")
    last = queue.come("c")
    queue.leave("b")
    assert last.ahead == 0
    assert queue.woken == ["a"]
    queue.leave("a")
    assert queue.woken == ["a", "c"]


def test_reload_changes_how_many_are_made_at_once() -> None:
    queue = Queue(1)
    turns = [queue.come(name) for name in "abc"]
    queue.queue.allow(3)
    assert queue.woken == ["a", "b", "c"]
    queue.queue.allow(1)
    assert all(turn.has_come for turn in turns)
    queue.leave("a")
    waiting = queue.come("d")
    queue.leave("b")
    assert not waiting.has_come
    queue.leave("c")
    assert waiting.has_come


@pytest.mark.parametrize(
    ("kind", "completed", "received", "done"),
    [
        (ELF, 0, GIB, GIB),  # QEMU tells nothing yet, or never
        (ELF, 2 * GIB, GIB, 2 * GIB),
        (KDUMP, GIB, 3 * GIB, GIB),  # what comes is compressed
        (ELF, GIB, 9 * GIB, 4 * GIB),  # headers come too
    ],
)
def test_how_far_a_dump_is(kind: DumpFormat, completed: int, received: int, done: int) -> None:
    turn = DumpTurn(lambda: None, kind, 0, 100.0, has_come=True)
    turn.progress.total = 4 * GIB
    turn.progress.completed, turn.progress.received = completed, received
    status = dump_status(turn, 110.0)
    assert (status.state, status.done, status.rate) == (DumpState.DUMPING, done, done / 10)
    assert status.left == pytest.approx((4 * GIB - done) / (done / 10))


def test_nothing_is_foretold_of_a_dump_of_which_nothing_is_known() -> None:
    turn = DumpTurn(lambda: None, ELF, 0, 100.0, has_come=True)
    status = dump_status(turn, 100.0)
    assert (status.total, status.rate, status.left) == (None, None, None)
    turn.progress.received = GIB
    assert dump_status(turn, 90.0).rate is None  # somebody has set the clock back
    status = dump_status(turn, 104.0)
    assert (status.total, status.rate, status.left) == (None, GIB / 4, None)


def shown(*turns: DumpTurn, now: float) -> list[str]:
    domains = [
        {"domain": f"[red]vm-{index}", "dump": asdict(dump_status(turn, now))}
        for index, turn in enumerate(turns)
    ]
    out = io.StringIO()
    quiet = {"domain": "quiet", "dump": None}
    Terminal(out, 140, colours=False).print(*dumps([*domains, quiet], now))
    return out.getvalue().splitlines()


def test_what_people_see() -> None:
    dumped = DumpTurn(lambda: None, ELF, 0, 100.0, has_come=True)
    dumped.progress.total, dumped.progress.received = 4 * GIB, GIB
    dumped.progress.left_out = 3 * GIB
    dumped.progress.written, dumped.progress.expected = 40 << 20, 80 << 20
    done = DumpTurn(lambda: None, ELF, 0, 101.0, has_come=True)
    done.progress.total = done.progress.completed = GIB
    done.progress.written = done.progress.expected = 1 << 20
    unknown = DumpTurn(lambda: None, KDUMP, 0, 102.0, has_come=True)
    waiting = DumpTurn(lambda: None, ELF, 0, 103.0, ahead=1)
    first, second, third, fourth = shown(dumped, done, unknown, waiting, now=110.0)
    assert first.split() == [
        *("dump", "of", "[red]vm-0", "━" * 6 + "╌" * 18, "40", "of", "about", "100", "MiB"),
        *("written,", "3.00", "GiB", "left", "out", "102", "MiB/s", "read", "0:00:30", "left"),
    ]
    assert tuple(second.split("━")[-1].split()) == (
        *("1", "of", "about", "1", "MiB", "written", "114", "MiB/s", "read"),
        *("being", "made", "durable"),
    )
    assert third.split()[2:] == [
        *("[red]vm-2", "0", "MiB", "written", "(of", "a", "total", "not", "known", "yet)"),
        *("for", "0:00:08"),
    ]
    assert "waits for 0:00:07, 1 before it" in fourth
    assert list(dumps([{"domain": "quiet", "dump": None}], 1.0)) == []
