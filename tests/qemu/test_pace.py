"""Whoever says more than his share of the reader allows is made to wait, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.qemu.pace import BURST, HURRIED, MOST, PER_MESSAGE, SLICE, Pace


def read(pace: Pace, seconds: float, costs: list[float]) -> tuple[int, float]:
    """Read for so long, one message after the other; return how many, and the time at work."""
    now, read, worked = 0.0, 0, 0.0
    while now < seconds:
        cost = costs[read % len(costs)]
        pause = pace.pause(now, now + cost)
        now += cost + PER_MESSAGE + (pause or 0.0)
        worked += cost + PER_MESSAGE
        read += 1
    return read, worked


@given(
    st.sampled_from([0.01, 0.05, 0.1, 0.5]),
    st.lists(st.floats(1e-6, MOST), min_size=1, max_size=5),
)
def test_work_stays_within_its_share(share: float, costs: list[float]) -> None:
    _, worked = read(Pace(share), 1.0, costs)
    assert worked <= 1.0 * share + BURST + 2 * (max(costs) + PER_MESSAGE) + 2 * SLICE


def test_a_message_that_waited_for_a_processor_costs_no_more_than_any_can() -> None:
    pace = Pace(0.1)
    assert pace.pause(0.0, 1.0) == pytest.approx(PER_MESSAGE / 0.1)
    assert pace.pause(2.0, 2.0) is None


def test_work_reaches_its_share() -> None:
    _, worked = read(Pace(0.1), 10.0, [20e-6])
    assert worked >= 0.95


def test_with_all_of_a_processor_others_only_have_their_turn() -> None:
    pace = Pace(1.0)
    pauses = [pace.pause(n * 20e-6, (n + 1) * 20e-6) for n in range(100_000)]
    assert set(pauses) == {None, 0.0}
    assert pauses.count(0.0) * SLICE == pytest.approx(100_000 * 30e-6, rel=0.1)


def test_where_an_answer_is_waited_for_it_is_read_faster() -> None:
    pace = Pace(0.01)
    pace.hurried = True
    _, worked = read(pace, 2.0, [20e-6])
    assert worked == pytest.approx(2.0 * HURRIED, rel=0.05)


def test_a_burst_is_free_again_after_a_while() -> None:
    pace = Pace(0.1)
    assert pace.pause(0.0, 1.0)
    assert not pace.pause(20.0, 20.0 + BURST / 2)
