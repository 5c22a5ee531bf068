from collections import defaultdict

import pytest

from panicd.rules.identity import owner_of
from panicd.rules.settings import Storm
from panicd.rules.storm import NO_STORM, is_storm, storm_outlook
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


def key(owner: int, number: int) -> str:
    return f"dialled:{owner}:/run/vm-{number}"


@pytest.mark.parametrize("domains", [5, 20, 40])
@pytest.mark.parametrize("panicked", range(12))
@pytest.mark.parametrize("of_others", [0, 1, 3])
def test_outlook_is_what_the_next_panic_leads_to(
    panicked: int, domains: int, of_others: int
) -> None:
    panics = {key(7, number): NOW - 59 for number in range(panicked)}
    panics |= {key(8, number): NOW - 59 for number in range(of_others)}
    counts: Domains = {7: domains, 8: 30}
    outlook = storm_outlook(STORM, panics.items(), counts, NOW)
    for owner, number in ((7, 0), (7, 99), (8, 0), (8, 99), (9, 0)):
        by_owner: Panics = defaultdict(list)
        for panicking, at in {**panics, key(owner, number): NOW}.items():
            by_owner[owner_of(panicking)].append(at)
        assert outlook.hits(key(owner, number)) is is_storm(STORM, by_owner, counts, owner, NOW)


def test_outlook_forgets_what_panicked_long_ago() -> None:
    outlook = storm_outlook(STORM, [(key(7, n), NOW - 60) for n in range(5)], {7: 5}, NOW)
    assert not outlook.hits(key(7, 0))
    assert not NO_STORM.hits(key(7, 0))
