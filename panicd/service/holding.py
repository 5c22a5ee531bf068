"""What an operator's hold is on, and which domains it matches.

A name or UUID that QEMUs claim holds each QEMU that claims it, now or later. A name that panicd
gave, or a monitor, holds the one domain that has it.
"""

from collections.abc import Collection, Iterator

from panicd.incident.domains import Fleet
from panicd.incident.services import Services
from panicd.rules.identity import parse_uuid
from panicd.rules.operation import EVERY_DOMAIN

Names = tuple[str, ...]
"""All that an operator may call a domain, or hold it by."""


def placed(fleet: Fleet, asked: str) -> list[str]:
    """Return the place of a hold: what was asked for, or the key of the domain that has it.

    Args:
        fleet: the domains.
        asked: a domain's name, UUID or monitor, or ``EVERY_DOMAIN``; the domain need not exist.
    """
    asked = parse_uuid(asked) or asked
    found = fleet.called(asked)
    keys = [d.key for d in found if d.key and asked not in (d.claim.name, d.uuid)]
    return keys if keys and len(keys) == len(found) else [asked, *keys]


def held_under(services: Services, asked: str) -> list[str]:
    """Return the places of the holds that end with this one: they hold no other domain.

    So a hold by a domain's name also ends by its UUID, if it is the only domain of that name.

    Args:
        services: the daemon's.
        asked: as of ``placed``.
    """
    asked = parse_uuid(asked) or asked
    every = [names for _, names in _domains(services)]
    meant = {name for names in every if asked in names for name in names}
    others = {name for names in every if asked not in names for name in names}
    return [asked, *sorted(meant - others - {asked, ""})]


def matched(services: Services, places: Collection[str]) -> list[str]:
    """Return the names of the domains that holds at these places match now, in order.

    They include a domain whose QEMU is gone, while its incident is open.
    """
    return sorted(
        {
            name
            for name, names in _domains(services)
            if any(place in names or place == EVERY_DOMAIN for place in places)
        }
    )


def _domains(services: Services) -> Iterator[tuple[str, Names]]:
    """Yield the name of each domain, and all its names."""
    for domain in services.fleet.domains.values():
        yield domain.name, domain.names
    for chronicle in services.waiting.chronicles:
        opened = chronicle.incident.opened
        yield opened.domain, opened.names
