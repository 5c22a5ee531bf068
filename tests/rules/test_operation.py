from dataclasses import replace

from panicd.rules.operation import EVERY_DOMAIN, Holds, Operation, OperationKind
from tests.rules.strategies import NOW

HOLD = Operation(NOW, 0, OperationKind.HOLD, "vm", "disk swap", until=NOW + 60)
UNHOLD = Operation(NOW + 1, 0, OperationKind.UNHOLD, "vm", "done")


def test_a_hold_holds_its_domain_until_its_time() -> None:
    holds = Holds([HOLD])
    assert holds.on("vm", "vm", NOW + 59) == HOLD
    assert holds.on("vm", "vm", NOW + 60) is None
    assert holds.on("other", "other", NOW) is None


def test_a_hold_without_an_end_goes_on() -> None:
    endless = replace(HOLD, until=None)
    assert Holds([endless]).on("vm", "vm", NOW + 1e9) == endless


def test_a_domain_is_held_by_its_key_or_its_name() -> None:
    holds = Holds([replace(HOLD, domain="uuid-1"), replace(HOLD, domain="db-1")])
    assert holds.on("uuid-1", "vm", NOW) is not None
    assert holds.on("uuid-2", "db-1", NOW) is not None
    assert holds.on("uuid-2", "db-2", NOW) is None


def test_the_latest_counts() -> None:
    assert Holds([HOLD, UNHOLD]).on("vm", "vm", NOW) is None
    longer = replace(HOLD, until=NOW + 600)
    assert Holds([HOLD, UNHOLD, longer]).on("vm", "vm", NOW + 100) == longer


def test_the_host_s_maintenance_holds_every_domain_and_ends_for_itself() -> None:
    host = replace(HOLD, domain=EVERY_DOMAIN, until=None)
    holds = Holds([host, HOLD, UNHOLD])
    assert holds.on("vm", "vm", NOW) == host
    holds.add(replace(UNHOLD, domain=EVERY_DOMAIN))
    assert holds.on("vm", "vm", NOW) is None


def test_other_operations_hold_nothing() -> None:
    others = [OperationKind.RELEASE, OperationKind.ACT, OperationKind.ACK]
    assert Holds(replace(HOLD, kind=kind) for kind in others).on("vm", "vm", NOW) is None


def test_when_the_next_hold_ends() -> None:
    holds = Holds([HOLD, replace(HOLD, domain="b", until=NOW + 30), replace(HOLD, domain="c")])
    holds.add(replace(HOLD, domain="d", until=None))
    assert holds.next_end(NOW) == NOW + 30
    assert holds.next_end(NOW + 30) == NOW + 60
    assert holds.next_end(NOW + 60) is None
