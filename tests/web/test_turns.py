"""Turns at what one may do at a time."""

import pytest
import trio
import trio.testing

from panicd.web.turns import TooManyError, Turns


async def test_each_client_has_its_turn() -> None:
    turns, order = Turns(limit=8, of_one=3), list[str]()

    async def ask(client: str) -> None:
        async with turns.take(client):
            await trio.lowlevel.checkpoint()
            order.append(client)

    async with trio.open_nursery() as nursery, turns.take("a"):
        for client in "aaabcb":
            nursery.start_soon(ask, client)
            await trio.testing.wait_all_tasks_blocked()
    assert "".join(order) == "abcaba"


async def test_who_gives_up_waiting_keeps_nobody_from_his_turn() -> None:
    turns, order = Turns(limit=2, of_one=1), list[str]()

    async def ask(client: str) -> None:
        async with turns.take(client):
            order.append(client)

    async with trio.open_nursery() as nursery, turns.take("a"):
        async with trio.open_nursery() as gives_up:
            gives_up.start_soon(ask, "b")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooManyError):
                await ask("b")
            gives_up.cancel_scope.cancel()
        for client in "bc":
            nursery.start_soon(ask, client)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyError):
            await ask("d")
    assert order == ["b", "c"]
    await ask("d")
