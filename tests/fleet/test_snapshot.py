"""Whose open incident it is that waits for a connection."""

from pathlib import Path

import pytest

from panicd.fleet.snapshot import Away
from panicd.incident.domains import Domain
from panicd.rules.settings import CoredumpSettings, Policy

POLICY = Policy(CoredumpSettings(Path("/dumps")))
AWAY = Away(frozenset({"its key"}), frozenset({"/run/vm.qmp"}))


@pytest.mark.parametrize(
    ("domain", "its"),
    [
        (Domain("/run/vm.qmp", "vm", 0.0, attempts=1), True),
        (Domain("/run/other.qmp", "vm", 0.0, attempts=1), False),
        # It may still turn out to be another one.
        (Domain("/run/vm.qmp", "vm", 0.0), False),
        # Another VM has the monitor's path of one that is gone.
        (Domain("/run/vm.qmp", "vm", 0.0, key="another", policy=POLICY, attempts=1), False),
        (Domain("/run/moved.qmp", "vm", 0.0, key="its key", policy=POLICY), True),
    ],
)
def test_an_incident_is_its_domains_and_a_monitors_only_while_nobody_is_known(
    domain: Domain, *, its: bool
) -> None:
    assert AWAY.has(domain) is its
