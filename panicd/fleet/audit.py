"""Which domains panicd could not act on, as configured, if they panicked now.

It is called from other threads than the domains' own, so it only reads.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from panicd.dumps.directory import existing_part, space
from panicd.incident.domains import Domain, Fleet
from panicd.journal.counters import Counters
from panicd.qemu.process_list import RunningQemu, running_qemus
from panicd.rules.exposure import Exposure, exposures, exposures_unwatched
from panicd.rules.operation import Holds
from panicd.rules.policy import Reason, Situation, decide
from panicd.rules.settings import CoredumpSettings


def exposed_domains(
    domains: Iterable[Domain], counters: Counters, holds: Holds, now: float
) -> list[tuple[Domain, dict[Exposure, str]]]:
    """Return the domains that panicd could not act on, each with the reasons and remedies."""
    rooms: dict[tuple[Path, object], bool] = {}
    found = []
    for domain in domains:
        held = domain.hold(holds, now) is not None
        reasons = _exposures(domain, counters, rooms, held=held, now=now)
        if reasons:
            found.append((domain, reasons))
    return found


def count_exposed(
    domains: Iterable[Domain], counters: Counters, holds: Holds, now: float
) -> dict[str, int]:
    """Return how many domains panicd could not act on, by each reason, also those at 0."""
    counts = {reason.value: 0 for reason in Exposure}
    for _, reasons in exposed_domains(domains, counters, holds, now):
        for reason in reasons:
            counts[reason.value] += 1
    return counts


async def unwatched(fleet: Fleet) -> list[tuple[RunningQemu, dict[Exposure, str]]]:
    """Return the QEMUs of this host that are no domain of panicd's, each with the remedy."""
    sessions = [(domain, domain.session) for domain in fleet.domains.values()]
    pids = {session.peer.pid for _, session in sessions if session is not None}
    # A name is a claim: it identifies a domain's QEMU only if nothing better is known.
    names = {
        domain.name for domain, session in sessions if session is None or not session.process_known
    }
    monitors = {domain.address for domain, _ in sessions}
    return [
        (
            qemu,
            exposures_unwatched(
                qemu.name, qemu.monitor, by_libvirt=qemu.by_libvirt, hangs=qemu.hangs
            ),
        )
        for qemu in await running_qemus(pids)
        if qemu.name not in names and (qemu.monitor is None or qemu.monitor.path not in monitors)
    ]


def _exposures(
    domain: Domain,
    counters: Counters,
    rooms: dict[tuple[Path, object], bool],
    *,
    held: bool,
    now: float,
) -> dict[Exposure, str]:
    session, policy = domain.session, domain.policy
    if domain.spare_of:
        return {}
    if session is None or policy is None:
        return exposures(policy, None, None, silent=domain.is_silent, held=held)
    capability = session.capability
    # What its own time comes to in the end, and what a hold, a storm or the journal would hide.
    situation = Situation(
        run_state=capability.panic_leaves,
        restarts=counters.restarts(domain.key),
        own_time=Reason.GRACE_OVER,
    )
    decision = decide(policy, capability, situation, now=now)
    settings = policy.coredump
    place = (settings.directory, settings.min_free)
    if place not in rooms:
        rooms[place] = has_room(settings)
    return exposures(
        policy,
        capability,
        decision,
        silent=domain.is_silent,
        held=held,
        dump_space=rooms[place],
        may_signal=not session.beyond_signals,
        name=domain.claim.name,
    )


def has_room(settings: CoredumpSettings) -> bool:
    """Tell whether panicd could write where dumps are, above what shall stay free there."""
    directory = settings.directory
    try:
        existing = existing_part(directory)
        return (
            os.access(existing, os.W_OK | os.X_OK) and space(existing).above(settings.min_free) > 0
        )
    except OSError:
        return False
