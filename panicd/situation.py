"""A panicked domain as it stands when it is decided about, from what panicd knows of the host."""

from dataclasses import dataclass

from panicd.chronicle import Chronicle
from panicd.rules.incident import Source, State, own_time_over
from panicd.rules.policy import Situation
from panicd.rules.qapi import RunState
from panicd.rules.settings import Policy
from panicd.services import Services


@dataclass(frozen=True, slots=True)
class Whose:
    """Which domain is decided about.

    Attributes:
        key: what its belongings are kept under.
        names: what it may be held by.
        owner: the user whose it is, as the host vouches; None: that is not known.
    """

    key: str
    names: tuple[str, ...]
    owner: int | None


def situation_of(
    services: Services,
    chronicle: Chronicle,
    policy: Policy,
    run_state: RunState | None,
    whose: Whose,
) -> Situation:
    """Return how a domain stands.

    Args:
        services: what is known of the host.
        chronicle: of its open incident.
        policy: its own.
        run_state: the state that its guest is in; None: QEMU is gone.
        whose: which domain it is.
    """
    incident, now = chronicle.incident, chronicle.now
    return Situation(
        run_state=run_state,
        information=incident.opened.information,
        restarts=services.keeping.tally.restarts(whose.key),
        held=services.holds.on(whose.names, now) is not None,
        storm=services.storm.preserves(whose.owner, now),
        unrecorded=services.unrecorded(),
        kdump=incident.opened.source is Source.KDUMP,
        own_time=own_time_over(incident),
        flooded=incident.repeats > policy.flood.max,
        reset=incident.state is State.RESET,
        again=incident.ran_on,
    )
