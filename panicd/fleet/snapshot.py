"""The domains as they stand, as plain values: for ``status`` and ``explain``, and for a scrape.

It is also called from the HTTP server's thread, so it only reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from panicd.dumps.queue import DumpStatus, dump_status
from panicd.host.domain_series import DomainSample, HoldSample, IncidentSample
from panicd.incident.domains import Domain
from panicd.incident.services import Services
from panicd.journal.chronicle import Chronicle
from panicd.journal.counters import Counters
from panicd.journal.signatures import hash_of
from panicd.rules.budget import Balance, balance
from panicd.rules.capability import Armed, Capability
from panicd.rules.incident import Incident, State
from panicd.rules.operation import Holds, Operation
from panicd.rules.panic_device import PanicDevice
from panicd.rules.plan import Plan, make_plan
from panicd.rules.policy import Decision, Reason, Situation, decide, while_unwritten
from panicd.rules.settings import JournalFailure, Policy
from panicd.rules.standing import Standing
from panicd.rules.storm import StormOutlook


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """One domain, as ``panicd status`` shows it; empty texts where nothing is known.

    Attributes:
        domain: its name.
        standing: how it stands, in one word.
        uuid: its UUID.
        monitor: its monitor's address.
        connected: panicd has a session with it.
        problem: why not, where it has none.
        since: when it came to be so, in seconds since the epoch.
        attempts: to connect that failed in a row.
        spare_of: the domain that this is a second monitor of; empty where it is none.
        silent: its QEMU does not answer.
        silent_since: since when, in seconds since the epoch, where panicd is connected.
        run_state: QEMU's, as last known.
        qemu_version: from its greeting.
        armed: whether a panic is known to be left to panicd.
        panic_device: where its panic device comes from.
        on_crash: what is configured.
        effective_on_crash: what a panic would lead to now.
        reason: why that.
        restarts_left: of the restart budget.
        incident: the id of its open incident.
        incident_state: where that stands; ``watched`` while the guest handles its panic itself.
        incident_reason: of the last decision on it.
        opened_at: when that began, in seconds since the epoch.
        acknowledged: somebody has looked at it.
        panic_line: the guest's own words for it.
        dump: of its memory, where one goes on or is waited for.
        held_until: when an operator's hold ends by itself, in seconds since the epoch.
        held_why: why it is held; empty where it is not.
        libvirt: what libvirt itself does about its panic; empty where libvirt does not run it, or
            is not known to. Anything but ``preserve`` it does before panicd can.
        inherited: ``on_crash`` is the domain's own, from libvirt.
        beyond_signals: why its QEMU could not be ended by a signal if it hung; empty where it
            could.
    """

    domain: str
    standing: Standing
    uuid: str
    monitor: str
    connected: bool
    problem: str
    since: float
    attempts: int
    spare_of: str = ""
    silent: bool = False
    silent_since: float | None = None
    run_state: str = ""
    qemu_version: str = ""
    armed: str = Armed.UNKNOWN.value
    panic_device: str = ""
    on_crash: str = ""
    effective_on_crash: str = ""
    reason: str = ""
    restarts_left: int = 0
    incident: str = ""
    incident_state: str = ""
    incident_reason: str = ""
    opened_at: float | None = None
    acknowledged: bool = False
    panic_line: str = ""
    dump: DumpStatus | None = None
    held_until: float | None = None
    held_why: str = ""
    libvirt: str = ""
    inherited: bool = False
    beyond_signals: str = ""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What affects the next panic of any domain, at one moment.

    Attributes:
        counters: the domains' counts.
        holds: which of them are held.
        now: seconds since the epoch.
        storm: tells whose panic would be one of many.
        unrecorded: what was done before is unknown, and panicd waits because of it.
        unwritten: the journal can't be written, and panicd waits because of it.
    """

    counters: Counters
    holds: Holds
    now: float
    storm: StormOutlook
    unrecorded: bool
    unwritten: bool

    @classmethod
    def of(cls, services: Services) -> "Outlook":
        """Return the outlook of this moment; from any thread."""
        keeping, now = services.keeping, services.keeping.clock()
        waits = keeping.journal_failure() is JournalFailure.PRESERVE
        return cls(
            counters=keeping.counters,
            holds=services.holds,
            now=now,
            storm=services.storm.outlook(now),
            unrecorded=services.unrecorded(),
            unwritten=waits and keeping.journal.fault is not None,
        )

    def hold_on(self, domain: Domain) -> Operation | None:
        """Return the hold on a domain."""
        return domain.hold(self.holds, self.now)


def foresee(
    policy: Policy, capability: Capability, *, own_time: Reason | None = None, now: float
) -> Plan:
    """Return what panicd would do if a domain without further knowledge panicked now."""
    situation = Situation(capability.panic_leaves, own_time=own_time)
    decision = decide(policy, capability, situation, now=now)
    return make_plan(decision, policy, capability, situation)


def foresee_decision(
    policy: Policy, capability: Capability, situation: Situation, outlook: Outlook
) -> Decision:
    """Return what panicd would decide if the domain panicked now."""
    decision = decide(policy, capability, situation, now=outlook.now)
    return while_unwritten(decision, situation) if outlook.unwritten else decision


def domain_status(domain: Domain, outlook: Outlook) -> DomainStatus:
    """Return how a domain stands; from any thread, while its session may end."""
    chronicle, session, policy, dump = domain.chronicle, domain.session, domain.policy, domain.dump
    hold = outlook.hold_on(domain)
    incident = chronicle.incident if chronicle else None
    known = DomainStatus(
        domain=domain.name,
        standing=_standing(domain, held=hold is not None),
        uuid=domain.uuid,
        monitor=domain.address,
        connected=session is not None,
        problem=domain.problem,
        since=domain.since,
        attempts=domain.attempts,
        spare_of=domain.spare_of,
        silent=domain.is_silent,
        silent_since=session.silent_since if session else None,
        incident=incident.id if incident else "",
        incident_state=_stands(incident) if incident else "",
        incident_reason=_reason(incident) if incident else "",
        opened_at=incident.opened.at if incident else None,
        acknowledged=incident is not None and incident.acknowledged is not None,
        panic_line=incident.panic_line if incident else "",
        dump=dump_status(dump, outlook.now) if dump else None,
        held_until=hold.until if hold else None,
        held_why=hold.why if hold else "",
    )
    if session is None or policy is None:
        return known
    capability = session.capability
    situation = _situation(domain, capability, outlook)
    decision = foresee_decision(policy, capability, situation, outlook)
    return replace(
        known,
        run_state=session.run_state,
        qemu_version=capability.version_text,
        armed=capability.armed,
        panic_device=capability.panic_device,
        on_crash=policy.on_crash,
        effective_on_crash=decision.effective,
        reason=decision.reason,
        restarts_left=budget_of(domain, outlook).left,
        libvirt=capability.libvirt.handling if capability.libvirt else "",
        inherited=capability.libvirt is not None and policy.inherits_on_crash,
        beyond_signals=session.beyond_signals,
    )


def waiting_status(incident: Incident, outlook: Outlook) -> DomainStatus:
    """Return how a domain stands that is not connected, and whose incident is open."""
    opened, hold = incident.opened, outlook.holds.on(incident.opened.names, outlook.now)
    return DomainStatus(
        domain=opened.domain,
        standing=_of_incident(incident),
        uuid=opened.uuid,
        monitor=opened.monitor,
        connected=False,
        problem="panicd is not connected to it",
        since=opened.at,
        attempts=0,
        incident=incident.id,
        incident_state=_stands(incident),
        incident_reason=_reason(incident),
        opened_at=opened.at,
        acknowledged=incident.acknowledged is not None,
        panic_line=incident.panic_line,
        held_until=hold.until if hold else None,
        held_why=hold.why if hold else "",
    )


def _stands(incident: Incident) -> str:
    return "watched" if incident.watched_until is not None else incident.state.value


def _reason(incident: Incident) -> str:
    return incident.decision.reason if incident.decision else ""


_STANDING_OF: Final = {
    State.FAILED: Standing.FAILED,
    State.PRESERVED: Standing.PRESERVED,
    State.RESET: Standing.RESET,
    State.RUNNING_ON: Standing.RUNNING_ON,
}


def _of_incident(incident: Incident) -> Standing:
    if incident.watched_until is not None:
        return Standing.WATCHED
    return _STANDING_OF.get(incident.state, Standing.ACTING)


def _standing(domain: Domain, *, held: bool) -> Standing:
    """Return how a domain stands: the worst that applies."""
    chronicle, session = domain.chronicle, domain.session
    if chronicle is not None:
        return _of_incident(chronicle.incident)
    if domain.spare_of:
        return Standing.SPARE
    if domain.is_silent:
        return Standing.SILENT
    if session is None or domain.policy is None:
        return Standing.NOT_CONNECTED
    capability = session.capability
    if capability.panic_device is PanicDevice.NONE:
        return Standing.NO_PANIC_DEVICE
    if capability.armed is not Armed.YES:
        return Standing.NOT_ARMED
    if capability.libvirt_acts:
        return Standing.LIBVIRT_ACTS
    return Standing.HELD if held else Standing.READY


def foresee_domain(domain: Domain, outlook: Outlook, *, own_time: Reason | None = None) -> Plan:
    """Return what panicd would do if a connected domain panicked now; see ``Situation``."""
    assert domain.session is not None
    assert domain.policy is not None
    policy, capability = domain.policy, domain.session.capability
    situation = replace(_situation(domain, capability, outlook), own_time=own_time)
    decision = foresee_decision(policy, capability, situation, outlook)
    return make_plan(decision, policy, capability, situation)


def _situation(domain: Domain, capability: Capability, outlook: Outlook) -> Situation:
    """Return how a connected domain would stand if it panicked now."""
    return Situation(
        run_state=capability.panic_leaves,
        restarts=outlook.counters.restarts(domain.key),
        held=outlook.hold_on(domain) is not None,
        storm=outlook.storm.hits(domain.key),
        unrecorded=outlook.unrecorded,
    )


def budget_of(domain: Domain, outlook: Outlook) -> Balance:
    """Return what is left of a connected domain's restart budget."""
    assert domain.policy is not None
    return balance(domain.policy.restart, outlook.counters.restarts(domain.key), outlook.now)


def domain_samples(
    domains: Iterable[Domain], outlook: Outlook, waiting: Iterable[Chronicle]
) -> list[DomainSample]:
    """Return every domain's figures for a scrape, without second monitors.

    Args:
        domains: looked at one after the other.
        outlook: what affects their next panic.
        waiting: the open incidents of domains that are not connected.
    """
    opened = [chronicle.incident.opened for chronicle in waiting]
    away = Away(frozenset(o.domain_key for o in opened), frozenset(o.monitor for o in opened))
    return [_sample(domain, outlook, away) for domain in domains if not domain.spare_of]


def incident_samples(incidents: Iterable[Incident]) -> list[IncidentSample]:
    """Return open incidents in the form of a scrape."""
    return [
        IncidentSample(
            domain=incident.opened.domain,
            at=incident.opened.at,
            state=incident.state,
            reason=_reason(incident),
            acknowledged=incident.acknowledged is not None,
            signature=hash_of(incident),
        )
        for incident in incidents
    ]


def hold_samples(outlook: Outlook) -> list[HoldSample]:
    """Return the holds in force in the form of a scrape."""
    holds = outlook.holds.lasting(outlook.now)
    return [HoldSample(hold.domain, hold.at, hold.until is not None) for hold in holds]


@dataclass(frozen=True, slots=True)
class Away:
    """The domains whose open incidents wait for a connection: their keys and monitors."""

    keys: frozenset[str]
    monitors: frozenset[str]

    def has(self, domain: Domain) -> bool:
        """Whether one waits for a domain; before its first connection its monitor tells.

        A monitor that dials in may have the address that another one had before; it has no failed
        attempts.
        """
        unknown = domain.policy is None and domain.attempts > 0
        return domain.key in self.keys or (unknown and domain.address in self.monitors)


def _sample(domain: Domain, outlook: Outlook, away: Away) -> DomainSample:
    status = domain_status(domain, outlook)
    totals = outlook.counters.domain(domain.key) if domain.policy is not None else None
    return DomainSample(
        domain=status.domain,
        up=status.connected and not status.silent,
        armed=status.connected and status.armed == Armed.YES,
        panicked=bool(status.incident) or away.has(domain),
        held=outlook.hold_on(domain) is not None,
        panics=None if totals is None else totals.panics,
        restarts=None if totals is None else totals.restarts,
        action_failures=None if totals is None else totals.action_failures,
        uuid=status.uuid,
        on_crash=status.on_crash,
        effective_on_crash=status.effective_on_crash,
        panic_device=status.panic_device,
        qemu_version=status.qemu_version,
    )
