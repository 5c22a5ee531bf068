"""How many panics are ignored."""

from __future__ import annotations

import pytest

from panicd.rules.flood import FloodGauge
from panicd.rules.on_crash import Action
from panicd.rules.settings import Flood

FLOOD = Flood(max=10, window=5.0)


@pytest.mark.parametrize(("panics", "rises"), [([10], False), ([11], True), ([5, 5, 1], True)])
def test_more_than_the_limit_is_a_flood(panics: list[int], *, rises: bool) -> None:
    gauge = FloodGauge()
    assert [gauge.rises(FLOOD, count, 100.0) for count in panics][-1] is rises


def test_what_comes_slowly_is_none() -> None:
    gauge = FloodGauge()
    assert not any(gauge.rises(FLOOD, 1, now * 0.6) for now in range(1000))


def test_none_is_ended_where_it_is_to_be_ignored() -> None:
    gauge = FloodGauge()
    flood = Flood(max=1, then=Action.IGNORE)
    assert not any(gauge.rises(flood, 1000, 0.1 * now) for now in range(100))
