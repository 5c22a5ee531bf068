"""A panicked domain as it stands when it is decided about, from what panicd knows of the host."""

from panicd.chronicle import Chronicle
from panicd.rules.incident import Source, own_time_over
from panicd.rules.policy import Situation
from panicd.rules.qapi import RunState
from panicd.rules.settings import Policy
from panicd.services import Services


def situation_of(
    services: Services,
    chronicle: Chronicle,
    policy: Policy,
    run_state: RunState | None,
    known_as: tuple[str, str],
) -> Situation:
    """Return how a domain stands.

    Args:
        services: what is known of the host.
        chronicle: of its open incident.
        policy: its own.
        run_state: the state that its guest is in; None: QEMU is gone.
        known_as: the domain's key, and its name.
    """
    incident, now = chronicle.incident, chronicle.now
    key, name = known_as
    return Situation(
        run_state=run_state,
        information=incident.opened.information,
        restarts=services.keeping.tally.restarts(key),
        held=services.holds.on(key, name, now) is not None,
        storm=services.storm.preserves(now),
        unrecorded=services.unrecorded(),
        kdump=incident.opened.source is Source.KDUMP,
        own_time=own_time_over(incident),
        flooded=incident.repeats > policy.flood.max,
        again=incident.ran_on,
    )
