from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.operation import EVERY_DOMAIN, Holds, Operation, OperationKind, over
from tests.rules.strategies import NOW

HOLD = Operation(NOW, 0, OperationKind.HOLD, "vm", "disk swap", until=NOW + 60)
UNHOLD = Operation(NOW + 1, 0, OperationKind.UNHOLD, "vm", "done")


def test_a_hold_holds_its_domain_until_its_time() -> None:
    holds = Holds([HOLD])
    assert holds.on(["vm"], NOW + 59) == HOLD
    assert holds.on(["vm"], NOW + 60) is None
    assert holds.on(["other"], NOW) is None


def test_a_hold_without_an_end_goes_on() -> None:
    endless = replace(HOLD, until=None)
    assert Holds([endless]).on(["vm"], NOW + 1e9) == endless


def test_a_domain_is_held_by_its_key_or_its_name() -> None:
    holds = Holds([replace(HOLD, domain="uuid-1"), replace(HOLD, domain="db-1")])
    assert holds.on(["uuid-1", "vm"], NOW) is not None
    assert holds.on(["uuid-2", "db-1"], NOW) is not None
    assert holds.on(["uuid-2", "db-2"], NOW) is None


def test_the_latest_counts() -> None:
    assert Holds([HOLD, UNHOLD]).on(["vm"], NOW) is None
    longer = replace(HOLD, until=NOW + 600)
    assert Holds([HOLD, UNHOLD, longer]).on(["vm"], NOW + 100) == longer


def test_the_host_s_maintenance_holds_every_domain_and_ends_for_itself() -> None:
    host = replace(HOLD, domain=EVERY_DOMAIN, until=None)
    holds = Holds([host, HOLD, UNHOLD])
    assert holds.on(["vm"], NOW) == host
    holds.add(replace(UNHOLD, domain=EVERY_DOMAIN))
    assert holds.on(["vm"], NOW) is None


def test_other_operations_hold_nothing() -> None:
    others = [OperationKind.RELEASE, OperationKind.ACT, OperationKind.ACK]
    assert Holds(replace(HOLD, kind=kind) for kind in others).on(["vm"], NOW) is None


def test_when_the_next_hold_ends() -> None:
    holds = Holds([HOLD, replace(HOLD, domain="b", until=NOW + 30), replace(HOLD, domain="c")])
    holds.add(replace(HOLD, domain="d", until=None))
    assert holds.next_end(NOW) == NOW + 30
    assert holds.next_end(NOW + 30) == NOW + 60
    assert holds.next_end(NOW + 60) is None


ENDLESS = replace(HOLD, until=None)
ACK = replace(HOLD, kind=OperationKind.ACK, until=None)


@pytest.mark.parametrize(
    ("asked", "before", "expected"),
    [
        ([], NOW, []),
        ([ACK], NOW, []),
        ([ACK], NOW + 1, [0]),
        ([HOLD], NOW + 60, []),
        ([HOLD], NOW + 61, [0]),
        ([ENDLESS], NOW + 1e9, []),
        ([ENDLESS, ACK], NOW + 1, [1]),
        ([ENDLESS, UNHOLD], NOW + 1, [0]),
        ([ENDLESS, UNHOLD], NOW + 2, [0, 1]),
        ([ENDLESS, replace(UNHOLD, domain="other")], NOW + 2, [1]),
        ([ENDLESS, HOLD], NOW + 61, [0, 1]),
        ([HOLD, ENDLESS], NOW + 61, [0]),
        ([ENDLESS, replace(UNHOLD, at=NOW - 60)], NOW - 1, []),  # a clock was set back
    ],
)
def test_what_is_over(asked: list[Operation], before: float, expected: list[int]) -> None:
    assert over(dict(enumerate(asked)), before) == expected


times = st.integers(0, 5).map(float)
operations = st.lists(
    st.builds(
        Operation,
        at=times,
        uid=st.just(0),
        kind=st.sampled_from([OperationKind.HOLD, OperationKind.UNHOLD]),
        domain=st.sampled_from(["a", "b"]),
        why=st.just(""),
        until=st.none() | times,
    ),
    max_size=8,
)


@given(operations, times)
def test_no_hold_begins_or_ends_by_what_is_forgotten(asked: list[Operation], before: float) -> None:
    left = dict(enumerate(asked))
    for position in over(left, before):
        del left[position]
        for now in (before, before + 1, before + 50):
            for domain in ("a", "b"):
                is_held = Holds(left.values()).on([domain], now)
                assert is_held == Holds(asked).on([domain], now)
