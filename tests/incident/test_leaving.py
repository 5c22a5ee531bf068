"""What is left of a domain's driver when its session is over: nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from panicd.incident.driver import Driver
from panicd.rules.on_crash import OnCrash
from panicd.rules.settings import CoredumpSettings, Policy
from tests.model.life import Life
from tests.model.world import World
from tests.parts.profile import QEMU_7_2


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[Driver]]]:
    """Every driver that is made, in a Python that does not look for cycles."""
    made: list[weakref.ref[Driver]] = []
    begin = Driver.__init__

    def note(driver: Driver, *arguments: Any) -> None:
        begin(driver, *arguments)
        made.append(weakref.ref(driver))

    monkeypatch.setattr(Driver, "__init__", note)
    gc.disable()
    yield made
    gc.enable()


def test_a_session_that_is_over_leaves_no_driver(
    drivers: list[weakref.ref[Driver]],
) -> None:
    policy = Policy(CoredumpSettings(Path("/dumps")), OnCrash.PRESERVE)

    async def some_sessions() -> None:
        async with trio.open_nursery() as nursery:
            world = World(QEMU_7_2, OnCrash.PRESERVE, nursery)
            with world.in_place():
                nursery.start_soon(Life(world, policy).run)
                await trio.sleep(5.0)
                world.panic()
                for _ in range(5):
                    await trio.sleep(20.0)
                    world.disconnect()
                await trio.sleep(20.0)
                left = [driver for driver in drivers if driver() is not None]
                assert (len(drivers), len(left)) == (6, 1)
            nursery.cancel_scope.cancel()

    trio.run(some_sessions, clock=trio.testing.MockClock(autojump_threshold=0))
