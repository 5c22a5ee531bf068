"""Few begin in a turn of the event loop, and each in its turn."""

from __future__ import annotations

import gc

import trio

from panicd.fleet.pacer import AT_ONCE, Pacer
from tests.parts.patience import fail_after

COUNT = 10 * AT_ONCE


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's
        self.count += 1


async def test_few_begin_in_a_turn_and_they_are_in_their_order() -> None:
    pacer, turns = Pacer(), Turns()
    begun: list[int] = []
    waiting: list[int] = []
    collects: list[bool] = []

    async def begin(number: int) -> None:
        waiting.append(number)
        await pacer.begin()
        assert waiting.index(number) < AT_ONCE
        waiting.remove(number)
        begun.append(turns.count)
        collects.append(gc.isenabled())

    trio.lowlevel.add_instrument(turns)
    with fail_after(10):
        for _ in range(2):  # the second time after a pause
            async with trio.open_nursery() as beginners:
                for number in range(COUNT):
                    beginners.start_soon(begin, number)
                    if number == COUNT // 2:
                        await trio.lowlevel.checkpoint()
    assert len(begun) == 2 * COUNT
    assert max(map(begun.count, begun)) <= AT_ONCE
    assert not all(collects)  # Python's collector waits
    assert gc.isenabled()


async def test_who_gives_up_waiting_takes_nobody_s_place() -> None:
    pacer = Pacer()
    with fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(COUNT):
                nursery.start_soon(pacer.begin)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for _ in range(COUNT):
            await pacer.begin()
