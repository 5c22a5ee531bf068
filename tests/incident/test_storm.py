"""When many domains panic at once: what the breaker asks, and what it answers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.incident import storm as storm_of_host
from panicd.incident.storm import StormWatch
from panicd.rules.identity import owner_of
from panicd.rules.settings import Storm, StormAction
from panicd.rules.storm import is_storm

NOW = 1000.0
STORM = Storm(window=60.0, minimum=3, share=0.5, then=StormAction.PRESERVE)


def key(number: int, owner: int = 1) -> str:
    return f"dialled:{owner}:/run/{number}.qmp"


class Host:
    """A host of six domains of one user, that tells how often it was counted."""

    def __init__(self, storm: Storm | None = STORM) -> None:
        self.counted = 0
        self.breaker = StormWatch(lambda: storm, self._domains)

    def _domains(self) -> Mapping[int | None, int]:
        self.counted += 1
        return Counter({1: 6})

    def have_panicked(self, count: int, at: float = NOW) -> None:
        for number in range(count):
            self.breaker.remember(key(number), at)


@pytest.mark.parametrize("then", [StormAction.PRESERVE, StormAction.LIMIT])
def test_the_one_that_makes_enough_is_in_the_storm(then: StormAction) -> None:
    host = Host(replace(STORM, then=then))
    asked, other = host.breaker.preserves, host.breaker.limits
    if then is StormAction.LIMIT:
        asked, other = other, asked
    host.have_panicked(1)
    assert not asked(key(5), NOW), "two"
    host.have_panicked(2)
    assert not asked(key(1), NOW), "two still: it has panicked before"
    assert asked(key(5), NOW), "three, and half of them"
    assert not other(key(5), NOW)
    assert not asked(key(5), NOW + 61.0), "the others have panicked long ago"


def test_the_host_s_domains_are_not_counted_where_too_few_have_panicked() -> None:
    """It is asked at each thing that happens to a domain, and a host may have thousands."""
    host = Host()
    host.have_panicked(1)
    assert not host.breaker.preserves(key(5), NOW)
    assert host.counted == 0
    host.have_panicked(2)
    assert host.breaker.preserves(key(5), NOW)
    assert host.counted == 1


def test_without_a_storm_breaker_nothing_is_one() -> None:
    host = Host(None)
    host.have_panicked(6)
    assert not host.breaker.preserves(key(0), NOW)
    assert not host.breaker.rages(NOW)
    assert host.counted == 0


def test_a_storm_of_thousands_is_not_counted_anew_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the last of 2,000 first commands came after nine seconds, and now after half a second."""
    host = Host(replace(STORM, minimum=5000))
    host.have_panicked(5000)
    looked_at: list[str] = []

    def owner_of(domain: str) -> int:
        looked_at.append(domain)
        return 1

    monkeypatch.setattr(storm_of_host, "owner_of", owner_of)
    assert host.breaker.preserves(key(5000), NOW)
    assert looked_at == [key(5000)]


def test_what_panicked_long_ago_no_longer_counts() -> None:
    host = Host()
    host.have_panicked(2, NOW - 60.0)
    host.have_panicked(1, NOW - 59.9)
    assert not host.breaker.preserves(key(5), NOW)
    host.breaker.remember(key(4), NOW)
    assert host.breaker.preserves(key(5), NOW)


def test_one_panic_in_the_future_keeps_no_other_from_being_forgotten() -> None:
    """The clock went wrong, and was set right before panicd began again: no storm for ever."""
    host = Host()
    host.breaker.remember(key(0), NOW + 1e6)
    for number in range(1, 6):
        at = NOW + 100.0 * number
        assert not host.breaker.preserves(key(number), at), number
        host.breaker.note(key(number), at)
        assert not host.breaker.raged


@given(data=st.data())
def test_the_counts_are_those_of_a_recount(data: st.DataObject) -> None:
    """Whatever happens to clock, window and domains; what was forgotten stays so."""
    storm, domains = Storm(then=StormAction.PRESERVE), Counter[int | None]()
    breaker = StormWatch(lambda: storm, lambda: domains)
    keys = [key(number, owner) for owner in (1, 2, 3) for number in range(4)]
    panics: dict[str, float] = {}
    now = NOW
    for _ in range(data.draw(st.integers(1, 30))):
        storm = replace(
            storm,
            window=data.draw(st.sampled_from([5.0, 60.0, 1e9])),
            minimum=data.draw(st.integers(1, 6)),
            share=data.draw(st.sampled_from([0.01, 0.5, 1.0])),
        )
        domains = Counter({o: n for o in (1, 2, None) if (n := data.draw(st.integers(0, 6)))})
        now += data.draw(st.sampled_from([-1000.0, -3.0, 0.0, 1.0, 4.0, 50.0]))
        domain = data.draw(st.sampled_from(keys))
        match data.draw(st.sampled_from(["note", "remember", "shift", "ask"])):
            case "note":
                breaker.note(domain, now)
                panics[domain] = now
            case "remember":
                breaker.remember(domain, now)
                panics[domain] = now
            case "shift":
                breaker.shift(7.0)
                panics = {each: at + 7.0 for each, at in panics.items()}
        breaker.rages(now)
        panics = {each: at for each, at in panics.items() if now - at < storm.window}
        recount = Counter(owner_of(each) for each in panics)
        asked = data.draw(st.sampled_from(keys))
        more = Counter([owner_of(asked)] if asked not in panics else [])
        assert breaker.raged == any(is_storm(storm, recount, domains, each) for each in recount)
        expected = is_storm(storm, recount + more, domains, owner_of(asked))
        assert breaker.preserves(asked, now) == expected
        assert breaker.outlook(now).hits(asked) == expected
