"""What an operator's hold is on, and which domains it matches."""

from collections.abc import Iterator

from panicd.host.domain_rules import is_uuid
from panicd.host.journal_totals import domain_key
from panicd.rules.operation import EVERY_DOMAIN
from panicd.services import Services


def held_as(services: Services, asked: str) -> list[str]:
    """Return what holds of a domain may be under: its key, its name, and what was asked for.

    Args:
        services: the daemon's.
        asked: a domain's name or UUID, or ``EVERY_DOMAIN``; there need not be such a domain.
    """
    asked = asked.lower() if is_uuid(asked) else asked
    meant = [(key, name) for key, name in _domains(services) if asked in {key, name}]
    keys, names = [key for key, _ in meant], [name for _, name in meant]
    return list(dict.fromkeys([*keys, *names, asked]))


def matched(services: Services, held: str) -> list[str]:
    """Return the names of the domains that a hold matches now, in their order.

    One whose QEMU is gone, and whose incident goes on, is among them.
    """
    return sorted({name for key, name in _domains(services) if held in {key, name, EVERY_DOMAIN}})


def _domains(services: Services) -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each domain."""
    for domain in services.fleet.domains.values():
        yield domain.key, domain.name
    for chronicle in services.waiting.chronicles:
        opened = chronicle.incident.opened
        yield domain_key(opened), opened.domain
