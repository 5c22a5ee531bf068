"""Logs the policy in force for a domain."""

from structlog.typing import FilteringBoundLogger

from panicd.incident.domains import Domain
from panicd.rules.capability import Armed, Capability
from panicd.rules.policy import applicable


def tell_policy(log: FilteringBoundLogger, domain: Domain, capability: Capability) -> None:
    """Log the policy in force, and warn of obstacles to it."""
    policy = domain.policy
    assert policy is not None
    wanted, _ = applicable(policy, capability, None)
    log.debug(
        "policy in force",
        on_crash=policy.on_crash,
        applies=wanted,
        panic=capability.panic_setting,
    )
    if capability.libvirt_forestalls(wanted):
        log.warning("libvirt acts on this domain's panics before panicd can")
    if capability.armed is not Armed.YES:
        log.warning("domain is not known to be armed", armed=capability.armed)
