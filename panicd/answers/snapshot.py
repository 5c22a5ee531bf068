"""The domains as they stand, as plain values: for ``status`` and ``explain``, and for a scrape.

Called from the HTTP server's thread too, so it only reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from panicd.dump_queue import DumpStatus, dump_status
from panicd.fleet import Domain
from panicd.host.metrics import DomainSample
from panicd.incident.chronicle import Chronicle
from panicd.rules.budget import Balance, balance
from panicd.rules.capability import Armed, Capability
from panicd.rules.incident import Incident
from panicd.rules.operation import Holds
from panicd.rules.plan import Plan, make_plan
from panicd.rules.policy import Decision, Reason, Situation, decide
from panicd.rules.settings import Policy
from panicd.tally import Tally


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """One domain, as ``panicd status`` shows it; empty texts where nothing is known.

    Attributes:
        domain: its name.
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
    dump: DumpStatus | None = None
    held_until: float | None = None
    held_why: str = ""
    libvirt: str = ""
    inherited: bool = False
    beyond_signals: str = ""


def foresee(
    policy: Policy,
    capability: Capability,
    restarts: tuple[float, ...] = (),
    *,
    held: bool = False,
    own_time: Reason | None = None,
    now: float,
) -> Plan:
    """Return what would be done if the domain panicked now; see ``Situation``."""
    situation = Situation(capability.panic_leaves, None, restarts, held=held, own_time=own_time)
    decision = decide(policy, capability, situation, now=now)
    return make_plan(decision, policy, capability, situation)


def foresee_decision(
    policy: Policy,
    capability: Capability,
    restarts: tuple[float, ...],
    *,
    held: bool = False,
    own_time: Reason | None = None,
    now: float,
) -> Decision:
    """Return what would be decided if the domain panicked now; see ``Situation``."""
    situation = Situation(capability.panic_leaves, None, restarts, held=held, own_time=own_time)
    return decide(policy, capability, situation, now=now)


def domain_status(domain: Domain, tally: Tally, holds: Holds, now: float) -> DomainStatus:
    """Return how a domain stands."""
    chronicle, session, policy, dump = domain.chronicle, domain.session, domain.policy, domain.dump
    hold = domain.hold(holds, now)
    known = DomainStatus(
        domain=domain.name,
        uuid=domain.uuid,
        monitor=domain.address,
        connected=session is not None,
        problem=domain.problem,
        since=domain.since,
        attempts=domain.attempts,
        spare_of=domain.spare_of,
        silent=domain.is_silent,
        silent_since=session.silent_since if session else None,
        incident=chronicle.incident.id if chronicle else "",
        incident_state=_stands(chronicle.incident) if chronicle else "",
        dump=dump_status(dump, now) if dump else None,
        held_until=hold.until if hold else None,
        held_why=hold.why if hold else "",
    )
    if session is None or policy is None:
        return known
    capability = session.capability
    decision = foresee_decision(
        policy, capability, tally.restarts(domain.key), held=hold is not None, now=now
    )
    return replace(
        known,
        run_state=session.run_state,
        qemu_version=".".join(map(str, capability.version)),
        armed=capability.armed,
        panic_device=capability.panic_device,
        on_crash=policy.on_crash,
        effective_on_crash=decision.effective,
        reason=decision.reason,
        restarts_left=budget_of(domain, tally, now).left,
        libvirt=capability.libvirt.handling if capability.libvirt else "",
        inherited=capability.libvirt is not None and policy.inherits_on_crash,
        beyond_signals=session.beyond_signals,
    )


def _stands(incident: Incident) -> str:
    return "watched" if incident.watched_until is not None else incident.state.value


def foresee_domain(
    domain: Domain, tally: Tally, holds: Holds, now: float, *, own_time: Reason | None = None
) -> Plan:
    """Return what would be done if a connected domain panicked now; see ``Situation``."""
    assert domain.session is not None
    assert domain.policy is not None
    return foresee(
        domain.policy,
        domain.session.capability,
        tally.restarts(domain.key),
        held=domain.hold(holds, now) is not None,
        own_time=own_time,
        now=now,
    )


def budget_of(domain: Domain, tally: Tally, now: float) -> Balance:
    """Return what is left of a connected domain's restart budget."""
    assert domain.policy is not None
    return balance(domain.policy.restart, tally.restarts(domain.key), now)


def domain_samples(
    domains: Iterable[Domain],
    tally: Tally,
    holds: Holds,
    waiting: Iterable[Chronicle],
    now: float,
) -> list[DomainSample]:
    """Return every domain's figures for a scrape; a second monitor of one has none.

    Args:
        domains: which; looked at one after the other.
        tally: their counts.
        holds: which of them are held.
        waiting: the open incidents of domains that are not connected.
        now: seconds since the epoch.
    """
    opened = [chronicle.incident.opened for chronicle in waiting]
    away = Away(frozenset(o.domain_key for o in opened), frozenset(o.monitor for o in opened))
    return [_sample(domain, tally, holds, away, now) for domain in domains if not domain.spare_of]


@dataclass(frozen=True, slots=True)
class Away:
    """Whose open incidents wait for a connection: the domains' keys, and their monitors."""

    keys: frozenset[str]
    monitors: frozenset[str]

    def has(self, domain: Domain) -> bool:
        """Whether a domain has one; before it was ever connected its monitor tells.

        A monitor that dials in may have another's address of before; it has no failed attempts.
        """
        unknown = domain.policy is None and domain.attempts > 0
        return domain.key in self.keys or (unknown and domain.address in self.monitors)


def _sample(domain: Domain, tally: Tally, holds: Holds, away: Away, now: float) -> DomainSample:
    status = domain_status(domain, tally, holds, now)
    totals = tally.domain(domain.key) if domain.policy is not None else None
    return DomainSample(
        domain=status.domain,
        up=status.connected and not status.silent,
        armed=status.connected and status.armed == Armed.YES,
        panicked=bool(status.incident) or away.has(domain),
        held=domain.hold(holds, now) is not None,
        panics=None if totals is None else totals.panics,
        restarts=None if totals is None else totals.restarts,
        action_failures=None if totals is None else totals.action_failures,
        uuid=status.uuid,
        on_crash=status.on_crash,
        effective_on_crash=status.effective_on_crash,
        panic_device=status.panic_device,
        qemu_version=status.qemu_version,
    )
