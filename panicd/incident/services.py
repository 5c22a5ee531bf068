"""What all domains share: the configuration in force, the journal, the host's limits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from panicd.config.config import Config
from panicd.dumps.queue import DumpQueue
from panicd.evidence.bundle_writer import BundleWriter
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
    """What all domains share.

    Attributes:
        config: returns the configuration in force.
        keeping: keeps incidents in the journal.
        metrics: of the host.
        fleet: all domains.
        waiting: keeps open incidents until their domain is found again.
        holds: which domains an operator holds.
        storm: limits actions while many domains panic at once.
        dumps: the domains whose memory is dumped, and those that wait.
        bundles: removes surplus evidence.
        bundle_writer: writes evidence.
        priority: lets reactions go first.
        unrecorded: whether earlier actions are unknown, and panicd waits that out.
        libvirt: of this host.
        timers: the time limits of all domains.
        rush: has first commands go first.
        problems: what keeps panicd from finding VMs, being reached or notifying others.
        dry_run: panicd decides and records everything, and does nothing.
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
    bundle_writer: BundleWriter
    priority: Priority
    unrecorded: Callable[[], bool]
    libvirt: Libvirt
    timers: Timers
    rush: Rush
    problems: Problems
    dry_run: bool

    def policy_for(self, claim: Claim, monitor: str) -> Policy:
        """Return a domain's policy: its configuration, with inherited parts.

        The first one that asks for a dump has a filter stand by from then on.

        Args:
            claim: the identity that QEMU claims; the name may be the socket's.
            monitor: its monitor's address, which libvirt's own domains name.
        """
        policy = self.config().policy_for(claim.name, claim.uuid or None)
        policy = inherit(policy, self.libvirt.known(monitor))
        if policy.on_crash.coredump and self.dumps.standby is not None:
            self.dumps.standby.want()
        return policy


def bundle_directory(config: Config, incident_id: str) -> Path:
    """Return the directory of an incident's evidence."""
    return config.state_directory / BUNDLES / incident_id
