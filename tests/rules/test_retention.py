"""Which bundles of evidence are one too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.retention import Bundles, Summary
from panicd.rules.settings import Budget, CoredumpSettings, Evidence, Policy

MIN_UPTIME = 100.0
HUGE = 2**60


def policy(keep: int = 2, max_total: int = HUGE) -> Policy:
    return Policy(
        CoredumpSettings(Path("/dumps")),
        restart=Budget(min_uptime=MIN_UPTIME),
        evidence=Evidence(keep=keep, max_total=max_total),
    )


def closed(number: int, at: float, domain: str = "vm", *, restarted: bool = False) -> Summary:
    """Return an incident that somebody has looked at and that took a second."""
    return Summary(f"i{number}", domain, at, at + 1, restarted, acknowledged=True)


def removed(
    incidents: Sequence[Summary], using: Policy, sizes: dict[str, int] | None = None
) -> list[str]:
    there = dict.fromkeys([one.id for one in incidents], 10) if sizes is None else sizes
    return list(Bundles(incidents, there).expendable("vm", using))


def test_oldest_of_the_domain_go_first() -> None:
    incidents = [closed(n, n * 1000.0) for n in range(5)] + [closed(9, 0.0, "other")]
    assert removed(incidents, policy(keep=2)) == ["i0", "i1", "i2"]
    assert removed(incidents, policy(keep=1)) == ["i0", "i1", "i2", "i3"]
    assert removed(incidents, policy(keep=5)) == []


def test_first_of_a_crash_loop_that_goes_on_is_kept() -> None:
    loop = [closed(n, 1000.0 + n * 50, restarted=True) for n in range(2, 7)]
    incidents = [closed(0, 0.0), closed(1, 500.0), *loop]
    assert removed(incidents, policy(keep=3)) == ["i0", "i1", "i3", "i4"]
    assert removed(incidents, policy(keep=1)) == ["i0", "i1", "i2", "i3", "i4", "i5"]


def test_first_of_a_crash_loop_is_known_though_those_between_have_no_bundle() -> None:
    loop = [closed(n, 1000.0 + n * 50, restarted=True) for n in range(6)]
    sizes = {"i0": 10, "i4": 10, "i5": 10}
    assert removed(loop, policy(keep=2), sizes) == ["i4"]


def test_loop_that_is_over_is_as_old_as_it_is() -> None:
    loop = [closed(n, n * 50.0, restarted=True) for n in range(3)]
    assert removed([*loop, closed(3, 9000.0)], policy(keep=2)) == ["i0", "i1"]


def test_open_incidents_and_the_newest_that_nobody_has_seen_are_kept() -> None:
    still_open = replace(closed(0, 0.0), closed_at=None)
    unseen = replace(closed(2, 2000.0, "other"), acknowledged=False)
    incidents = [still_open, closed(1, 1000.0, "other"), unseen, closed(3, 3000.0)]
    assert removed(incidents, policy(max_total=0)) == ["i1"]
    seen = replace(unseen, acknowledged=True)
    assert removed([*incidents[:2], seen, incidents[3]], policy(max_total=0)) == ["i1", "i2"]


def test_older_unseen_incident_of_a_domain_may_go() -> None:
    incidents = [replace(closed(n, n * 1000.0), acknowledged=False) for n in range(3)]
    assert removed(incidents, policy(keep=1)) == ["i0", "i1"]


def test_ids_of_one_second_tell_no_order() -> None:
    incidents = [replace(closed(0, 1.0), id="z"), replace(closed(0, 1.5), id="a")]
    assert removed(incidents, policy(keep=1)) == ["z"]


def test_total_is_the_host_s() -> None:
    incidents = [closed(n, n * 1000.0, f"vm{n}") for n in range(4)] + [closed(4, 9000.0)]
    assert removed(incidents, policy(max_total=30)) == ["i0", "i1"]
    assert removed(incidents, policy(max_total=50)) == []


def test_bundle_of_a_journal_that_is_no_more_goes_for_the_total_only() -> None:
    sizes = {"a": 10, "i0": 10, "z": 10}  # z: newer than all others, and yet to be written
    assert removed([closed(0, 0.0)], policy(keep=1), sizes) == []
    assert removed([closed(0, 0.0)], policy(max_total=0), sizes) == ["a"]


def test_without_evidence_nothing_is_removed() -> None:
    using = replace(policy(), evidence=None)
    assert removed([closed(n, 0.0) for n in range(9)], using) == []


@given(
    st.lists(
        st.builds(
            Summary,
            id=st.text("0123456789", min_size=3, max_size=3),
            domain=st.sampled_from(["vm", "other"]),
            opened_at=st.floats(0, 1e4),
            closed_at=st.none() | st.floats(0, 1e4),
            restarted=st.booleans(),
            acknowledged=st.booleans(),
        ),
        unique_by=lambda one: one.id,
    ),
    st.integers(1, 5),
    st.integers(0, 200),
)
def test_what_is_never_removed(incidents: list[Summary], keep: int, max_total: int) -> None:
    gone = set(removed(incidents, policy(keep, max_total)))
    by_id = {one.id: one for one in incidents}
    for domain in ("vm", "other"):
        own = [one for one in incidents if one.domain == domain]
        if own:
            newest = max(own, key=lambda one: (one.opened_at, one.id))
            assert newest.id not in gone or (domain == "other" and newest.acknowledged)
    assert all(by_id[name].closed_at is not None for name in gone)


def test_newest_stays_though_the_clock_was_set_back() -> None:
    ahead = [closed(n, 1e6 + n) for n in range(3)]
    newest = closed(9, 0.0)
    there = dict.fromkeys((one.id for one in (*ahead, newest)), 10)
    assert list(Bundles([*ahead, newest], there).expendable("vm", policy(keep=2), "i9")) == [
        "i0",
        "i1",
    ]


def test_nobody_s_evidence_goes_for_another_user_s() -> None:
    own = [replace(closed(n, 100.0 + n), owner=1) for n in range(6)]
    others = [replace(closed(10 + n, float(n), f"other-{n}"), owner=2) for n in range(6)]
    using = policy(keep=10, max_total=60)
    assert removed([*own, *others], using) == ["i0", "i1", "i2"]  # down to a half of 60
    assert removed([*own[:3], *others], using) == []
