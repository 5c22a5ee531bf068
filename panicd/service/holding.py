"""What an operator's hold is on, and which domains it matches.

What QEMUs claim, a name or a UUID, holds each that claims it, now or later. A name that is panicd's
own, or a monitor, holds the one domain that has it.
"""

from collections.abc import Collection, Iterator

from panicd.incident.domains import Fleet
from panicd.incident.services import Services
from panicd.rules.identity import parse_uuid
from panicd.rules.operation import EVERY_DOMAIN

Names = tuple[str, ...]
"""All that an operator may call a domain, or hold it by."""


def placed(fleet: Fleet, asked: str) -> list[str]:
    """Return what a hold is written down under: what was asked for, or the key of who has it.

    Args:
        fleet: the domains.
        asked: a domain's name, UUID or monitor, or ``EVERY_DOMAIN``; there need not be such a one.
    """
    asked = parse_uuid(asked) or asked
    found = fleet.called(asked)
    keys = [d.key for d in found if d.key and asked not in (d.claim.name, d.uuid)]
    return keys if keys and len(keys) == len(found) else [asked, *keys]


def held_under(services: Services, asked: str) -> list[str]:
    """Return what holds may be under that end with this one: no other domain is held by them.

    So a domain's hold by its name ends by its UUID too, if it is the only one of that name.

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
    """Return the names of the domains that holds under these match now, in their order.

    One whose QEMU is gone, and whose incident goes on, is among them.
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
