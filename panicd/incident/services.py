"""What all domains share: the configuration in force, the journal, the host's limits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from panicd.config.config import Config
from panicd.dumps.queue import DumpQueue
from panicd.evidence.retention import BundleRetention
from panicd.host.metrics import Metrics
from panicd.host.priority import Priority
from panicd.host.problems import Problems
from panicd.host.timers import Timers
from panicd.incident.domains import Fleet
from panicd.incident.records import BUNDLES
from panicd.incident.rush import Rush
from panicd.incident.storm import StormWatch
from panicd.incident.waiting import WaitingRoom
from panicd.journal.chronicle import Keeping
from panicd.libvirt.known_domains import Libvirt
from panicd.rules.identity import Claim
from panicd.rules.libvirt import inherit
from panicd.rules.operation import Holds
from panicd.rules.settings import Policy


@dataclass(frozen=True, slots=True)
class Services:
    """What is shared by all domains.

    Attributes:
        config: returns the configuration in force.
        keeping: what incidents are kept with.
        metrics: of the host.
        fleet: all domains.
        waiting: keeps open incidents until their domain is found again.
        holds: which domains an operator holds.
        storm: limits what is done while many domains panic at once.
        dumps: whose memory is dumped, and who waits for it.
        bundles: removes the evidence that is one too many.
        priority: lets reactions go first.
        unrecorded: whether what was done before is not known and that is to be waited out.
        libvirt: of this host.
        timers: the time limits of all domains.
        rush: has first commands go first.
        problems: what keeps panicd from finding VMs, being reached or telling others.
        dry_run: everything is decided and recorded, and nothing is done.
    """

    config: Callable[[], Config]
    keeping: Keeping
    metrics: Metrics
    fleet: Fleet
    waiting: WaitingRoom
    holds: Holds
    storm: StormWatch
    dumps: DumpQueue
    bundles: BundleRetention
    priority: Priority
    unrecorded: Callable[[], bool]
    libvirt: Libvirt
    timers: Timers
    rush: Rush
    problems: Problems
    dry_run: bool

    def policy_for(self, claim: Claim, monitor: str) -> Policy:
        """Return what applies to a domain: its configuration, with what it inherits.

        Args:
            claim: what its QEMU says that it is; the name may be its socket's.
            monitor: its monitor's address, which libvirt's own domains name.
        """
        policy = self.config().policy_for(claim.name, claim.uuid or None)
        return inherit(policy, self.libvirt.known(monitor))


def bundle_directory(config: Config, incident_id: str) -> Path:
    """Return where the evidence of an incident lies."""
    return config.state_directory / BUNDLES / incident_id
