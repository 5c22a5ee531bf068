"""The page of a domain: how it stands, what an operator can do, and its history."""

from collections.abc import Iterable
from typing import Final

from panicd.fleet.snapshot import DomainStatus, Outlook, domain_status
from panicd.incident.domains import Domain
from panicd.incident.services import Services
from panicd.journal.journal import JournalError
from panicd.rules.next_commands import word
from panicd.web.html import Content, Html, element, joined
from panicd.web.page.forms import MakeToken, hold_form, unhold_form
from panicd.web.page.overview import domain_state, held, incident_table, restarts_left
from panicd.web.page.parts import BAD, commands, facts, live, moment, notice

HISTORY_SHOWN: Final = 100


def domain_page(
    services: Services, name: str, shows_guests: bool, make: MakeToken | None
) -> Html | None:
    """Return the page of all domains with a name; None if there never was one. Blocking.

    Args:
        services: the daemon's.
        name: of the domain, which may be gone.
        shows_guests: whether the client has logged in.
        make: makes tokens for forms; None: the client may not do anything.
    """
    outlook = Outlook.of(services)
    there = [d for d in list(services.fleet.domains.values()) if d.name == name]
    try:
        history = services.keeping.journal.incidents(domain=name, limit=HISTORY_SHOWN)
    except JournalError as error:
        return notice(BAD, f"The journal can't be read: {error}")
    if not there and not history:
        return None
    statuses = [(domain, domain_status(domain, outlook)) for domain in there]
    return joined(
        element("h1", name),
        live(
            "domain",
            *(_status(domain, status) for domain, status in statuses),
            *([] if there else [element("p", "This domain is gone: it has no monitor.")]),
        ),
        *(form for _, status in statuses for form in _forms(status, make)),
        element("h2", "Next"),
        commands(*_next(name, statuses)),
        live(
            "history",
            element("h2", "History"),
            incident_table(history, shows_guests)
            if history
            else element("p", "It has not panicked."),
        ),
    )


def _status(domain: Domain, status: DomainStatus) -> Html:
    now: list[tuple[str, Content]] = [
        ("State", domain_state(domain, status)),
        ("Since", moment(status.since)),
        ("Policy", status.on_crash),
        ("If it panics", _would_do(status)),
        ("Armed", status.armed if status.connected else ""),
        ("Panic device", status.panic_device),
        ("Restarts left", restarts_left(domain, status)),
        ("Held", held(status)),
        ("QEMU", status.qemu_version),
        ("libvirt", status.libvirt),
        ("UUID", status.uuid),
        ("Monitor", status.monitor),
    ]
    return facts(now)


def _would_do(status: DomainStatus) -> str:
    if not status.effective_on_crash:
        return ""
    return f"{status.effective_on_crash} ({status.reason})"


def _forms(status: DomainStatus, make: MakeToken | None) -> Iterable[Html]:
    if make is not None:
        yield hold_form(make, status.domain, status.monitor)
        if status.held_why:
            yield unhold_form(make, status.domain, status.monitor)


def _next(name: str, statuses: list[tuple[Domain, DomainStatus]]) -> Iterable[str]:
    for _, status in statuses:
        named = word(name, status.monitor)
        yield f"panicd explain {named}"
        yield f'panicd hold {named} --for 2h --why "looking at it"'
        if status.held_why:
            yield f'panicd unhold {named} --why "done"'
    if not statuses:
        yield f"panicd incidents --domain {word(name, name)}"
