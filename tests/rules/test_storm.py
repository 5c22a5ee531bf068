import pytest

from panicd.rules.settings import Storm
from panicd.rules.storm import NO_STORM, is_storm, storm_outlook
from tests.rules.strategies import NOW

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
    assert is_storm(STORM, [NOW - 59] * panics, domains, NOW) is expected


def test_what_panicked_long_ago_is_no_part_of_it() -> None:
    assert not is_storm(STORM, [NOW - 60, *[NOW] * 4], 8, NOW)
    assert is_storm(STORM, [NOW - 59.9, *[NOW] * 4], 8, NOW)


@pytest.mark.parametrize("domains", [5, 20, 40])
@pytest.mark.parametrize("panicked", range(12))
def test_outlook_is_what_the_next_panic_leads_to(panicked: int, domains: int) -> None:
    panics = {f"vm-{number}": NOW - 59 for number in range(panicked)}
    outlook = storm_outlook(STORM, panics.items(), domains, NOW)
    for key in ("vm-0", "vm-other"):
        after = {**panics, key: NOW}
        assert outlook.hits(key) is is_storm(STORM, after.values(), domains, NOW)


def test_outlook_forgets_what_panicked_long_ago() -> None:
    outlook = storm_outlook(STORM, [(f"vm-{n}", NOW - 60) for n in range(5)], 5, NOW)
    assert not outlook.hits("vm-0")
    assert not NO_STORM.hits("vm-0")
