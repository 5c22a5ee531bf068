"""How a domain stands, and whose open incident it is that waits for a connection."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from panicd.fleet.snapshot import Away, Outlook, domain_status
from panicd.incident.domains import Domain
from panicd.rules.operation import Holds
from panicd.rules.qapi import RunState
from panicd.rules.settings import CoredumpSettings, Policy
from panicd.rules.storm import NO_STORM
from tests.rules.strategies import MODERN

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


class EndingDomain(Domain):
    """A domain whose session ends right after it was looked at."""

    @property
    def session(self) -> Any:
        """The session, once."""
        left: list[Any] = self.__dict__.setdefault("left", [SESSION])
        return left.pop() if left else None

    @session.setter
    def session(self, _session: Any) -> None:
        pass


SESSION = SimpleNamespace(
    capability=MODERN, run_state=RunState.RUNNING, silent_since=None, beyond_signals=""
)
COUNTERS: Any = SimpleNamespace(restarts=lambda _key: ())


def test_a_session_that_ends_while_a_scrape_looks_at_it() -> None:
    domain = EndingDomain("/run/vm.qmp", "vm", 0.0, policy=POLICY)
    status = domain_status(domain, Outlook(COUNTERS, Holds(()), 0.0, NO_STORM, False, False))
    assert status.connected
    assert status.run_state is RunState.RUNNING
