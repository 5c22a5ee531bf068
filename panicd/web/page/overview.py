"""The page of the host: its domains, the open incidents and the latest."""

from collections.abc import Iterable
from typing import Final

from panicd.fleet.snapshot import DomainStatus, Outlook, domain_status
from panicd.incident.domains import Domain
from panicd.incident.services import Services
from panicd.journal.journal import Journal, JournalError
from panicd.rules.capability import Armed
from panicd.rules.incident import Incident, State
from panicd.rules.panic_device import PanicDevice
from panicd.rules.policy import Reason
from panicd.web.html import Content, Html, element, joined
from panicd.web.page.parts import (
    BAD,
    GOOD,
    PLAIN,
    STATES,
    WARN,
    WHY_WITHHELD,
    WITHHELD,
    badge,
    figures,
    free_text,
    incident_state,
    moment,
    notice,
    table,
    when,
)

INCIDENTS_SHOWN: Final = 20
OPEN_SHOWN: Final = 200


def overview(services: Services, shows_guests: bool) -> Html:
    """Return the host's page. Blocking.

    Args:
        services: the daemon's.
        shows_guests: whether it is known who asks.
    """
    outlook = Outlook.of(services)
    domains = list(services.fleet.domains.values())
    statuses = [(domain, domain_status(domain, outlook)) for domain in domains]
    statuses.sort(
        key=lambda pair: (not pair[1].incident, not _needs_a_look(pair[1]), pair[1].domain)
    )
    known = [status for _, status in statuses]
    return joined(
        element("h1", "Host"),
        *_notices(services, shows_guests),
        figures(
            ("domains", len(known), PLAIN),
            ("panicked", sum(bool(s.incident) for s in known), BAD),
            ("not armed", sum(s.connected and s.armed != Armed.YES for s in known), WARN),
            ("not connected", sum(not s.connected and not s.spare_of for s in known), WARN),
            ("silent", sum(s.silent for s in known), BAD),
            ("held", sum(bool(s.held_why) for s in known), WARN),
        ),
        *_incidents(services.keeping.journal, shows_guests),
        element("h2", "Domains"),
        _domains(statuses),
    )


def _notices(services: Services, shows_guests: bool) -> Iterable[Html]:
    if services.dry_run:
        yield notice(WARN, "A dry run: everything is decided, and nothing is done.")
    if fault := services.keeping.journal.fault:
        yield notice(BAD, f"The journal can't be written: {fault}")
    if services.unrecorded():
        yield notice(BAD, "The journal was damaged: guests are preserved until it is seen to.")
    if services.storm.raged:
        yield notice(BAD, "Many domains panicked at once: what ends or resets is held back.")
    if problem := services.libvirt.problem:
        yield notice(BAD, f"libvirt does not answer: {problem}")
    for problem in services.problems.current:
        yield notice(BAD, problem)
    for path, why in services.problems.passed_over.items():
        yield notice(WARN, f"Passed over: {path}: {why}")
    if not shows_guests:
        yield notice(PLAIN, WHY_WITHHELD)


def _incidents(journal: Journal, shows_guests: bool) -> Iterable[Html]:
    yield element("h2", "Open incidents")
    try:
        going_on = journal.incidents(open_only=True, limit=OPEN_SHOWN)
        latest = journal.incidents(limit=INCIDENTS_SHOWN + len(going_on))
    except JournalError as error:
        yield notice(BAD, f"The journal can't be read: {error}")
        return
    yield incident_table(going_on, shows_guests) if going_on else element("p", "None.")
    over = [incident for incident in latest if not incident.is_open][:INCIDENTS_SHOWN]
    yield element("h2", "Recent incidents")
    yield incident_table(over, shows_guests) if over else element("p", "None.")


def _domains(statuses: list[tuple[Domain, DomainStatus]]) -> Html:
    if not statuses:
        return element("p", "None. Does a monitor's glob match, and does its VM run?")
    return table(
        ("Domain", "State", "Armed", "Policy", "Would do now", "Restarts left", "Held"),
        [
            (
                status.domain,
                _domain_state(status),
                _armed(status),
                status.on_crash,
                _would_do(status),
                _restarts(domain, status),
                _held(status),
            )
            for domain, status in statuses
        ],
    )


def incident_table(incidents: Iterable[Incident], shows_guests: bool) -> Html:
    """Make a table of incidents.

    Args:
        incidents: in their order.
        shows_guests: whether it is known who asks.
    """
    return table(
        ("Domain", "State", "Panicked", "Action", "Panic", "Incident"),
        [
            (
                incident.opened.domain,
                incident_state(incident),
                moment(incident.opened.at),
                _action(incident),
                _words(incident, shows_guests),
                element("a", incident.id, href=f"/incident/{incident.id}"),
            )
            for incident in incidents
        ],
    )


def _words(incident: Incident, shows_guests: bool) -> Content:
    if not incident.panic_line:
        return ""
    if not shows_guests:
        return element("span", WITHHELD, class_="quiet")
    return element("span", incident.panic_line, class_="words")


def _action(incident: Incident) -> str:
    decision = incident.decision
    if decision is None:
        return ""
    because = "" if decision.reason is Reason.ON_CRASH else f" ({decision.reason})"
    return f"{decision.effective}{because}"


def _needs_a_look(status: DomainStatus) -> bool:
    armed = status.armed == Armed.YES and status.panic_device != PanicDevice.NONE
    good = bool(status.spare_of) or (status.connected and armed and not status.silent)
    return not good or bool(status.incident or status.held_why)


def _domain_state(status: DomainStatus) -> Content:
    if status.incident:
        address = f"/incident/{status.incident}"
        state = badge(STATES[State(status.incident_state)], status.incident_state)
        named = f"incident {status.incident} of {status.domain}"
        return joined(state, " ", element("a", "incident", href=address, aria_label=named))
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


def _armed(status: DomainStatus) -> Content:
    if not status.connected:
        return ""
    if status.panic_device == PanicDevice.NONE:
        return badge(WARN, "no panic device")
    return badge(GOOD if status.armed == Armed.YES else WARN, status.armed)


def _would_do(status: DomainStatus) -> Content:
    if not status.effective_on_crash:
        return ""
    if status.reason == Reason.ON_CRASH:
        return status.effective_on_crash
    return joined(status.effective_on_crash, " ", badge(WARN, status.reason))


def _restarts(domain: Domain, status: DomainStatus) -> str:
    policy = domain.policy
    if policy is None or not status.connected:
        return ""
    return f"{status.restarts_left} of {policy.restart.max}"


def _held(status: DomainStatus) -> Content:
    if not status.held_why:
        return ""
    until = f"until {when(status.held_until)}: " if status.held_until else ""
    return free_text(f"{until}{status.held_why}")
