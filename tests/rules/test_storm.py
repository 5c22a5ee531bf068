from collections import Counter

import pytest

from panicd.rules.identity import owner_of
from panicd.rules.settings import Storm
from panicd.rules.storm import NO_STORM, is_storm, storm_outlook
from tests.rules.strategies import NOW

Panics = dict[int | None, int]
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
    assert is_storm(STORM, Counter({7: panics}), {7: domains}, 7) is expected
    assert is_storm(STORM, Counter({7: panics - 1}), {7: domains}, 7, more=1) is expected


def test_one_user_s_many_are_one_to_everybody_else() -> None:
    panics: Panics = {1000: 500, 107: 3}
    domains: Domains = {1000: 500, 107: 12}
    assert is_storm(STORM, panics, domains, 1000)
    assert not is_storm(STORM, panics, domains, 107)
    panics[107] = 4
    assert is_storm(STORM, panics, domains, 107)


def test_a_user_s_many_domains_do_not_hide_another_s_storm() -> None:
    assert is_storm(STORM, {107: 5}, {1000: 10_000, 107: 12}, 107)


def test_many_users_domains_that_panic_are_a_storm_for_everybody() -> None:
    panics: Panics = dict.fromkeys(range(5), 1)
    domains: Domains = dict.fromkeys(range(20), 1)
    assert is_storm(STORM, panics, domains, 19)
    domains[20] = 1
    assert not is_storm(STORM, panics, domains, 19)


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
        by_owner = Counter(map(owner_of, {*panics, key(owner, number)}))
        assert outlook.hits(key(owner, number)) is is_storm(STORM, by_owner, counts, owner)


def test_outlook_forgets_what_panicked_long_ago() -> None:
    outlook = storm_outlook(STORM, [(key(7, n), NOW - 60) for n in range(5)], {7: 5}, NOW)
    assert not outlook.hits(key(7, 0))
    assert not NO_STORM.hits(key(7, 0))
