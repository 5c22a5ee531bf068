import pytest

from panicd.rules.settings import Storm
from panicd.rules.storm import is_storm
from tests.rules.strategies import NOW

Panics = dict[int | None, list[float]]
Domains = dict[int | None, int]

STORM = Storm(share=0.25, minimum=5, window=60)


@pytest.mark.parametrize(
    ("panics", "domains", "expected"),
    [
        (0, 0, False),
        (4, 4, False),  # a small host's domains may well panic one by one
        (5, 5, True),
        (5, 20, True),
        (5, 21, False),
        (25, 100, True),
        (24, 100, False),
    ],
)
def test_many_at_once_are_a_storm(panics: int, domains: int, expected: bool) -> None:
    assert is_storm(STORM, {7: [NOW - 59] * panics}, {7: domains}, 7, NOW) is expected


def test_what_panicked_long_ago_is_no_part_of_it() -> None:
    assert not is_storm(STORM, {7: [NOW - 60, *[NOW] * 4]}, {7: 8}, 7, NOW)
    assert is_storm(STORM, {7: [NOW - 59.9, *[NOW] * 4]}, {7: 8}, 7, NOW)


def test_one_user_s_many_are_one_to_everybody_else() -> None:
    panics: Panics = {1000: [NOW] * 500, 107: [NOW] * 3}
    domains: Domains = {1000: 500, 107: 12}
    assert is_storm(STORM, panics, domains, 1000, NOW)
    assert not is_storm(STORM, panics, domains, 107, NOW)
    panics[107] = [NOW] * 4
    assert is_storm(STORM, panics, domains, 107, NOW)


def test_a_user_s_many_domains_do_not_hide_another_s_storm() -> None:
    assert is_storm(STORM, {107: [NOW] * 5}, {1000: 10_000, 107: 12}, 107, NOW)


def test_many_users_domains_that_panic_are_a_storm_for_everybody() -> None:
    panics: Panics = {uid: [NOW] for uid in range(5)}
    domains: Domains = dict.fromkeys(range(20), 1)
    assert is_storm(STORM, panics, domains, 19, NOW)
    domains[20] = 1
    assert not is_storm(STORM, panics, domains, 19, NOW)
