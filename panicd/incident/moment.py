"""The facts at the time of an input to a domain's machine."""

import trio

from panicd.incident.domains import Domain
from panicd.incident.services import Services
from panicd.rules.machine.inputs import Moment


def moment_of(services: Services, domain: Domain, token: str) -> Moment:
    """Return the moment for an input that comes now.

    Args:
        services: source of the facts.
        domain: has a policy by now.
        token: makes the id of an incident that begins now unique.
    """
    now = services.keeping.clock()
    assert domain.policy is not None
    return Moment(
        now=now,
        ticks=trio.current_time(),
        policy=domain.policy,
        name=domain.name,
        claim=domain.claim,
        key=domain.key,
        monitor=domain.address,
        token=token,
        restarts=services.keeping.counters.restarts(domain.key),
        libvirt=services.libvirt.known(domain.address),
        plugged=domain.plugged,
        silent=domain.is_silent,
        held=domain.hold(services.holds, now) is not None,
        storm=services.storm.preserves(domain.key, now),
        limited=services.storm.limits(domain.key, now),
        unrecorded=services.unrecorded(),
        dry_run=services.dry_run,
        journal_failure=services.keeping.journal_failure(),
    )
