"""Limits that give a busy machine time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.parts import patience
from tests.parts.patience import fail_after
from tests.parts.slowness import slowness


def machine(monkeypatch: pytest.MonkeyPatch, *slow: float) -> None:
    """Have the machine be so slow, one time after the other that it is looked at."""
    looks = iter(slow)
    monkeypatch.setattr(patience, "slowness", lambda: next(looks))


def test_no_machine_is_faster_than_an_idle_one() -> None:
    assert 1.0 <= slowness() < 10_000


async def test_limit_is_over_in_its_time(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    machine(monkeypatch, 1.0)
    with pytest.raises(trio.TooSlowError), fail_after(20):
        await trio.sleep_forever()
    assert autojump_clock.current_time() == pytest.approx(20)


async def test_busy_machine_has_longer_for_as_long_as_it_is(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    machine(monkeypatch, 3.0, 10.0, 1.0)
    with pytest.raises(trio.TooSlowError), fail_after(20):
        await trio.sleep_forever()
    assert autojump_clock.current_time() == pytest.approx(200)


async def test_what_ends_in_time_is_left_alone(autojump_clock: MockClock) -> None:
    with fail_after(20) as scope:
        await trio.sleep(19)
    await trio.sleep(1000)
    assert not scope.cancel_called
    assert autojump_clock.current_time() == pytest.approx(1019)


async def test_failure_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"), fail_after(20):
        raise ValueError("mine")
