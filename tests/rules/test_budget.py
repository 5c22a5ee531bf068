import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.budget import Balance, balance
from panicd.rules.settings import Budget
from tests.rules.strategies import NOW, histories, seconds

BUDGET = Budget(max=3, window=3600, min_uptime=60)


@pytest.mark.parametrize(
    ("ages", "expected"),
    [
        ([], Balance(used=0, left=3, looping=False)),
        ([3600], Balance(used=0, left=3, looping=False)),
        ([3599.9], Balance(used=1, left=2, looping=False)),
        ([60, 3000], Balance(used=2, left=1, looping=False)),
        ([59.9, 3000], Balance(used=2, left=1, looping=True)),
        ([61, 70, 80], Balance(used=3, left=0, looping=False)),
        ([1, 2, 3, 4, 5], Balance(used=5, left=0, looping=True)),
        ([-1000], Balance(used=1, left=2, looping=True)),  # the clock was set back
    ],
)
def test_what_is_left(ages: list[float], expected: Balance) -> None:
    assert balance(BUDGET, [NOW - age for age in ages], NOW) == expected
    assert expected.spent is (expected.left == 0)


def test_a_budget_of_none_is_spent_from_the_start() -> None:
    assert balance(Budget(max=0), [], NOW).spent


@given(st.integers(0, 5), seconds, histories)
def test_one_more_restart_never_leaves_more(
    maximum: int, window: float, history: tuple[float, ...]
) -> None:
    budget = Budget(max=maximum, window=window)
    before, after = balance(budget, history, NOW), balance(budget, (*history, NOW), NOW)
    assert after.left == max(0, before.left - 1)
    assert balance(budget, history[::-1], NOW) == before
