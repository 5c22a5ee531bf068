"""The page of the host: open incidents, domains, repeated panics, and the latest incidents."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from panicd.fleet.snapshot import DomainStatus, Outlook, domain_status
from panicd.incident.domains import Domain
from panicd.incident.records import read_panics
from panicd.incident.services import Services
from panicd.journal.journal import JournalError
from panicd.journal.signatures import Group
from panicd.rules.capability import Armed
from panicd.rules.incident import Incident, State
from panicd.rules.policy import Reason
from panicd.rules.signature import Signature
from panicd.rules.standing import rank
from panicd.web.html import Content, Html, element, joined
from panicd.web.page.filtering import SHOWN, Filter, address_of, has_no_device
from panicd.web.page.parts import (
    BAD,
    GOOD,
    PLAIN,
    SEEN,
    STATES,
    WARN,
    WHY_WITHHELD,
    WITHHELD,
    badge,
    domain_link,
    figures,
    free_text,
    incident_link,
    incident_state,
    live,
    moment,
    notice,
    seen,
    table,
    when,
)

DOMAINS_SHOWN: Final = 200
"""On one page."""
INCIDENTS_SHOWN: Final = 20
OPEN_SHOWN: Final = 200
PANICS_READ: Final = 50
PANICS_SHOWN: Final = 5
PANICS_WITHIN: Final = 7 * 86400.0
"""Seconds. The host's page shows what was seen more than once within a week."""

MARKS: Final = {
    "attention": WARN,
    "panicked": BAD,
    "not-armed": WARN,
    "no-device": WARN,
    "not-connected": WARN,
    "silent": BAD,
    "held": WARN,
}


def overview(services: Services, shows_guests: bool, query: str) -> Html:
    """Return the host's page. Blocking.

    Args:
        services: the daemon's.
        shows_guests: whether the client has logged in.
        query: which part of it the client asks for.
    """
    wanted, outlook = Filter.of(query), Outlook.of(services)
    domains = services.priority.in_turn(tuple(services.fleet.domains.values()))
    statuses = [(domain, domain_status(domain, outlook)) for domain in domains]
    statuses.sort(key=lambda pair: _worst_first(pair[1]))
    known = [status for _, status in statuses]
    shown = [(domain, status) for domain, status in statuses if wanted.fits(status)]
    counts = [
        (name, sum(map(fits, known)), MARKS.get(key, PLAIN), address_of(key))
        for key, (name, fits) in SHOWN.items()
    ]
    journal, trouble = services.keeping.journal, list[Html]()
    going_on, latest, groups = list[Incident](), list[Incident](), list[tuple[Group, Signature]]()
    try:
        going_on = journal.incidents(open_only=True, limit=OPEN_SHOWN)
        latest = journal.incidents(limit=INCIDENTS_SHOWN + len(going_on))
        groups = read_panics(journal.path, outlook.now - PANICS_WITHIN, PANICS_READ)
    except JournalError as error:
        trouble.append(notice(BAD, f"The journal can't be read: {error}"))
    return joined(
        element("h1", "Host"),
        live("state", *trouble, *_notices(services, shows_guests), figures(*counts)),
        wanted.form(),
        live("open", *_open(going_on, wanted, shows_guests)),
        live("domains", element("h2", "Domains"), *_page(services, shown, len(known), wanted)),
        live("latest", *_again(groups, shows_guests), *_latest(latest, shows_guests)),
    )


def _notices(services: Services, shows_guests: bool) -> Iterable[Html]:
    if services.dry_run:
        yield notice(WARN, "Dry run: panicd decides and records, but does nothing.")
    if fault := services.keeping.journal.fault:
        yield notice(BAD, f"The journal can't be written: {fault}")
    if services.unrecorded():
        yield notice(
            BAD,
            "The journal was damaged: panicked guests are preserved until "
            "journal.sqlite3.damaged-… is moved away.",
        )
    if services.storm.raged:
        yield notice(
            BAD,
            "Storm: many domains panicked at once; storm.then applies.",
        )
    if problem := services.libvirt.problem:
        yield notice(BAD, f"libvirt does not answer: {problem}")
    for problem in services.problems.current:
        yield notice(BAD, problem)
    for path, why in services.problems.passed_over.items():
        yield notice(WARN, f"Passed over: {path}: {why}")
    if not shows_guests:
        yield notice(PLAIN, WHY_WITHHELD)


def _open(going_on: list[Incident], wanted: Filter, shows_guests: bool) -> Iterable[Html]:
    yield element("h2", "Open incidents")
    found = [i for i in going_on if wanted.has_text(i.opened.domain, i.opened.uuid, i.id)]
    found.sort(key=lambda incident: incident.acknowledged is not None)
    if len(going_on) == OPEN_SHOWN:
        yield element("p", f"The newest {OPEN_SHOWN}; the domains below have all.", class_="quiet")
    yield incident_table(found, shows_guests) if found else element("p", "None.")


def _again(groups: list[tuple[Group, Signature]], shows_guests: bool) -> Iterable[Html]:
    again = sorted((g for g in groups if g[0].count > 1), key=lambda g: -g[0].count)
    if again:
        yield element("h2", "The same panic again")
        rows: list[tuple[Content, ...]] = [
            (
                element("a", group.signature, href=f"/panics/{group.signature}", class_="id"),
                words(signature.title, shows_guests),
                seen(group),
                moment(group.last_at),
            )
            for group, signature in again[:PANICS_SHOWN]
        ]
        yield table(("Panic", "What the guest said", "Seen", "Last"), rows)


def _latest(latest: list[Incident], shows_guests: bool) -> Iterable[Html]:
    over = [incident for incident in latest if not incident.is_open][:INCIDENTS_SHOWN]
    yield element("h2", "Recent incidents")
    yield incident_table(over, shows_guests) if over else element("p", "None.")


def _worst_first(status: DomainStatus) -> tuple[float, str]:
    return rank(status.standing, acknowledged=status.acknowledged), status.domain


def _page(
    services: Services, found: list[tuple[Domain, DomainStatus]], every: int, wanted: Filter
) -> Iterable[Html]:
    """Yield a page of the domains that fit: a page that renews itself has a limited number."""
    count = max(1, math.ceil(len(found) / DOMAINS_SHOWN))
    wanted = replace(wanted, page=min(wanted.page, count))
    first = (wanted.page - 1) * DOMAINS_SHOWN
    shown = found[first : first + DOMAINS_SHOWN]
    told = f"{len(found)} of {every} shown."
    if count > 1:
        told = f"{first + 1} to {first + len(shown)} of {len(found)}, the worst first."
    yield element("p", told, class_="quiet")
    yield wanted.pages(count, "Pages of domains")
    yield _domains(services, shown)
    yield wanted.pages(count, "Pages of domains, again")


def _domains(services: Services, statuses: list[tuple[Domain, DomainStatus]]) -> Html:
    if not services.fleet.domains:
        return element("p", "None. Does a monitor's glob match, and does its VM run?")
    if not statuses:
        return element("p", "No domain matches.")
    return table(
        ("Domain", "State", "Armed", "Policy", "If it panics", "Restarts left", "Held"),
        [
            (
                domain_link(status.domain),
                domain_state(domain, status),
                _armed(status),
                status.on_crash,
                _would_do(status),
                restarts_left(domain, status),
                held(status),
            )
            for domain, status in services.priority.in_turn(statuses)
        ],
    )


def incident_table(incidents: Iterable[Incident], shows_guests: bool) -> Html:
    """Make a table of incidents.

    Args:
        incidents: in their order.
        shows_guests: whether the client has logged in.
    """
    return table(
        ("Incident", "Domain", "State", "Panicked", "Action", "What the guest said"),
        [
            (
                incident_link(incident.id, incident.opened.domain),
                domain_link(incident.opened.domain),
                incident_state(incident),
                moment(incident.opened.at),
                _action(incident),
                words(incident.panic_line or _title(incident), shows_guests),
            )
            for incident in incidents
        ],
    )


def words(said: str, shows_guests: bool) -> Content:
    """Return what a guest said, if the client may read it."""
    if not said:
        return ""
    if not shows_guests:
        return element("span", WITHHELD, class_="quiet")
    return element("span", said, class_="words")


def _title(incident: Incident) -> str:
    return incident.signature.title if incident.signature else ""


def _action(incident: Incident) -> str:
    decision = incident.decision
    if decision is None:
        return ""
    because = "" if decision.reason is Reason.ON_CRASH else f" ({decision.reason})"
    return f"{decision.effective}{because}"


def domain_state(domain: Domain, status: DomainStatus) -> Content:
    """Mark how a domain stands."""
    if status.incident:
        address = f"/incident/{status.incident}"
        state = badge(STATES[_state_of(status)], status.incident_state)
        named = f"incident {status.incident} of {status.domain}"
        link = element("a", "incident", href=address, aria_label=named)
        chronicle = domain.chronicle
        looked_at = chronicle is not None and chronicle.incident.acknowledged is not None
        return joined(state, " ", *((badge(PLAIN, SEEN), " ") if looked_at else ()), link)
    if not status.connected:
        problem = element("span", f" {status.problem}", class_="quiet free")
        if status.spare_of:
            return joined(badge(GOOD, "spare"), problem)
        return joined(badge(WARN, "silent" if status.silent else "not connected"), problem)
    if status.silent:
        return joined(
            badge(BAD, "silent"), element("span", " QEMU does not answer", class_="quiet")
        )
    return badge(GOOD if status.run_state == "running" else WARN, status.run_state)


def _state_of(status: DomainStatus) -> State:
    """Return the state of a domain's incident; a watched one counts as being acted on."""
    return State.ACTING if status.incident_state == "watched" else State(status.incident_state)


def _armed(status: DomainStatus) -> Content:
    if not status.connected:
        return ""
    if has_no_device(status):
        return badge(WARN, "no panic device")
    return badge(GOOD if status.armed == Armed.YES else WARN, status.armed)


def _would_do(status: DomainStatus) -> Content:
    if not status.effective_on_crash:
        return ""
    if status.reason == Reason.ON_CRASH:
        return status.effective_on_crash
    return joined(status.effective_on_crash, " ", badge(WARN, status.reason))


def restarts_left(domain: Domain, status: DomainStatus) -> str:
    """Return what is left of a domain's restart budget."""
    policy = domain.policy
    if policy is None or not status.connected:
        return ""
    return f"{status.restarts_left} of {policy.restart.max}"


def held(status: DomainStatus) -> Content:
    """Return until when a domain is held, and why."""
    if not status.held_why:
        return ""
    until = f"until {when(status.held_until)}: " if status.held_until else ""
    return free_text(f"{until}{status.held_why}")
