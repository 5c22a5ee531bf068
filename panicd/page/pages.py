"""The pages for people: the host with its domains and incidents, and each incident.

Made in the HTTP server's thread, from what the domains' tasks hold and from the journal; it only
reads. What a guest wrote or shows is left out unless it is known who asks.
"""

import os
import re
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Final, assert_never

from panicd import __version__
from panicd.fleet import Domain
from panicd.host.html import Content, Html, block, document, element, joined, style
from panicd.host.journal import JournalError
from panicd.host.web import NOT_FOUND, Request, Response
from panicd.page.parts import (
    BAD,
    GOOD,
    PLAIN,
    WARN,
    badge,
    elapsed,
    figures,
    free_text,
    moment,
    notice,
    table,
    when,
)
from panicd.page.style import PICTURE_POLICY, POLICY, SHEET
from panicd.qemu.evidence import read_manifest
from panicd.rules.capability import Armed, PanicDevice
from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Decided,
    Enforced,
    Incident,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    State,
    StepBegun,
    StepEnded,
)
from panicd.rules.plan import Plan
from panicd.rules.policy import EXPLANATIONS, Reason
from panicd.services import Services, bundle_directory
from panicd.snapshot import DomainStatus, domain_status

INCIDENTS_SHOWN: Final = 20
OPEN_SHOWN: Final = 200
TEXT_KEPT: Final = 64 * 1024
"""Bytes of a text of the evidence that are shown, the last."""

PICTURE_MAX: Final = 32 * 2**20
"""Bytes. A screen of 8K in all its colours is less."""

SCREEN: Final = "screen.png"
TEXTS: Final = re.compile(r"kernel\.log|console-[0-9]+\.log|registers\.txt")
"""What of the evidence is shown as text."""

WITHHELD: Final = "withheld"
WHY_WITHHELD: Final = (
    "What guests wrote or show is withheld, as nobody is asked for a name here: "
    "metrics.web_config changes that."
)

_INCIDENT_PATH: Final = re.compile(r"/incident/([0-9]{8}T[0-9]{6}-[0-9a-f]{8})(/screen\.png)?")
_PNG: Final = b"\x89PNG\r\n\x1a\n"

_STATES: Final = {
    State.DETECTED: WARN,
    State.DECIDED: WARN,
    State.ACTING: WARN,
    State.PRESERVED: BAD,
    State.RUNNING_ON: WARN,
    State.FAILED: BAD,
    State.CLOSED: PLAIN,
}
_OUTCOMES: Final = {
    Outcome.DONE: GOOD,
    Outcome.SKIPPED: PLAIN,
    Outcome.FAILED: BAD,
    Outcome.UNKNOWN: WARN,
}
_KINDS: Final = {"opened": "panicked", "repeated": "panicked again", "settled": "stays open"}


class Pages:
    """Makes the pages.

    Args:
        services: the daemon's.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._journal = services.keeping.journal
        self._host = os.uname().nodename

    def answer(self, request: Request) -> Response:
        """Answer a request: a page, a picture, or that there is none. Blocking."""
        shows_guests = request.authenticated
        if request.path == "/":
            return self._page(f"panicd on {self._host}", self._overview(shows_guests))
        match = _INCIDENT_PATH.fullmatch(request.path)
        if match is None:
            return NOT_FOUND
        try:
            incident = self._journal.incident(match[1])
            history = self._journal.history(match[1])
        except JournalError as error:
            trouble = notice(BAD, f"The journal can't be read: {error}")
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return self._page("panicd: no journal", trouble, status)
        if incident is None:
            return NOT_FOUND
        if match[2]:
            return self._screen(incident) if shows_guests else Response(b"Who are you?\n", 403)
        title = f"{incident.opened.domain}: incident {incident.id}"
        return self._page(title, self._incident(incident, history, shows_guests))

    def _page(self, title: str, main: Html, status: int = HTTPStatus.OK) -> Response:
        now = self._services.keeping.clock()
        body = joined(
            element("a", "Skip to the content", href="#main", class_="skip"),
            element(
                "header",
                element("p", f"panicd · {self._host}"),
                element(
                    "nav",
                    element("a", "Host", href="/"),
                    element("a", "Metrics", href="/metrics"),
                    element("a", "Health", href="/healthz"),
                    aria_label="Pages",
                ),
            ),
            element("main", main, id="main"),
            element("footer", f"As of {when(now)}. panicd {__version__}."),
        )
        content = document(title=title, head=style(SHEET), body=body)
        headers = {"Content-Security-Policy": POLICY}
        return Response(content, status, "text/html; charset=utf-8", headers)

    # The host

    def _overview(self, shows_guests: bool) -> Html:
        services, now = self._services, self._services.keeping.clock()
        domains = list(services.fleet.domains.values())
        statuses = [
            (domain, domain_status(domain, services.keeping.tally, services.holds, now))
            for domain in domains
        ]
        statuses.sort(
            key=lambda pair: (not pair[1].incident, not _needs_a_look(pair[1]), pair[1].domain)
        )
        known = [status for _, status in statuses]
        return joined(
            element("h1", "Host"),
            *self._notices(shows_guests),
            figures(
                ("domains", len(known), PLAIN),
                ("panicked", sum(bool(s.incident) for s in known), BAD),
                ("not armed", sum(s.connected and s.armed != Armed.YES for s in known), WARN),
                ("not connected", sum(not s.connected for s in known), WARN),
                ("held", sum(bool(s.held_why) for s in known), WARN),
            ),
            *self._incidents(shows_guests),
            element("h2", "Domains"),
            self._domains(statuses),
        )

    def _notices(self, shows_guests: bool) -> Iterable[Html]:
        services = self._services
        if services.dry_run:
            yield notice(WARN, "A dry run: everything is decided, and nothing is done.")
        if fault := services.keeping.journal.fault:
            yield notice(BAD, f"The journal can't be written: {fault}")
        if services.unrecorded():
            yield notice(BAD, "The journal was damaged: guests are preserved until it is seen to.")
        if services.storm.raged:
            yield notice(BAD, "Many domains panicked at once: what ends or resets is held back.")
        if not shows_guests:
            yield notice(PLAIN, WHY_WITHHELD)

    def _incidents(self, shows_guests: bool) -> Iterable[Html]:
        yield element("h2", "Open incidents")
        try:
            going_on = self._journal.incidents(open_only=True, limit=OPEN_SHOWN)
            latest = self._journal.incidents(limit=INCIDENTS_SHOWN + len(going_on))
        except JournalError as error:
            yield notice(BAD, f"The journal can't be read: {error}")
            return
        yield _incident_table(going_on, shows_guests) if going_on else element("p", "None.")
        over = [incident for incident in latest if not incident.is_open][:INCIDENTS_SHOWN]
        yield element("h2", "Recent incidents")
        yield _incident_table(over, shows_guests) if over else element("p", "None.")

    def _domains(self, statuses: list[tuple[Domain, DomainStatus]]) -> Html:
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

    # An incident

    def _incident(self, incident: Incident, history: list[AnyEntry], shows_guests: bool) -> Html:
        opened, decision = incident.opened, incident.decision
        facts: list[tuple[str, Content]] = [
            ("Panicked", moment(opened.at)),
            ("Known by", opened.source),
            ("Again", f"{incident.repeats} times" if incident.repeats else ""),
            (
                "Action",
                f"{decision.effective} (on_crash {decision.wanted})" if decision else "none",
            ),
            ("Reason", EXPLANATIONS[decision.reason] if decision else ""),
            ("UUID", opened.uuid),
            ("Monitor", opened.monitor),
            ("Incident", incident.id),
        ]
        if seen := incident.acknowledged:
            facts.append(("Seen", f"by uid {seen.uid}: {seen.why}"))
        if information := opened.information:
            told: Content = element("span", WITHHELD, class_="quiet")
            if shows_guests:
                fields = ", ".join(f"{name}={value}" for name, value in information.fields)
                told = element("span", f"{information.type}: {fields}", class_="words")
            facts.insert(2, ("Payload", told))
        return joined(
            element("h1", opened.domain, " ", _incident_state(incident)),
            _panic_line(incident, shows_guests),
            *([] if shows_guests else [notice(PLAIN, WHY_WITHHELD)]),
            element(
                "dl",
                *(
                    joined(element("dt", name), element("dd", value))
                    for name, value in facts
                    if value
                ),
                class_="facts",
            ),
            element("h2", "Timeline"),
            _timeline(history, shows_guests),
            *self._evidence(incident, shows_guests),
        )

    def _evidence(self, incident: Incident, shows_guests: bool) -> Iterable[Html]:
        directory = bundle_directory(self._services.config(), incident.id)
        manifest = read_manifest(directory)
        if not isinstance(manifest, dict):
            return
        files, problems = manifest.get("files"), manifest.get("problems")
        if not isinstance(files, dict) or not isinstance(problems, dict):
            return
        yield element("h2", "Evidence")
        yield element("p", f"In {directory}, on {self._host}.")
        if shows_guests and SCREEN in files:
            address = f"/incident/{incident.id}/{SCREEN}"
            picture = element("img", src=address, alt="The guest's screen when it panicked")
            yield element("a", picture, href=address)
        for name, what in sorted(files.items()):
            if shows_guests and TEXTS.fullmatch(name):
                summary = element("summary", f"{name}: {what}")
                yield element("details", summary, block(_last_lines(directory / name)))
            elif name != SCREEN or not shows_guests:
                yield element("p", f"{name}: {what}")
        for item, why in sorted(problems.items()):
            yield element("p", f"No {item}: {why if shows_guests else WITHHELD}", class_="quiet")

    def _screen(self, incident: Incident) -> Response:
        path = bundle_directory(self._services.config(), incident.id) / SCREEN
        try:
            picture = _read(path, PICTURE_MAX)
        except OSError:
            return NOT_FOUND
        if not picture.startswith(_PNG):
            return NOT_FOUND
        return Response(
            picture, 200, "image/png", headers={"Content-Security-Policy": PICTURE_POLICY}
        )


def _incident_table(incidents: Iterable[Incident], shows_guests: bool) -> Html:
    return table(
        ("Domain", "State", "Panicked", "Action", "Panic", "Incident"),
        [
            (
                incident.opened.domain,
                _incident_state(incident),
                moment(incident.opened.at),
                _action(incident),
                _words(incident, shows_guests),
                element("a", incident.id, href=f"/incident/{incident.id}"),
            )
            for incident in incidents
        ],
    )


def _timeline(history: list[AnyEntry], shows_guests: bool) -> Html:
    rows: list[tuple[Content, ...]] = []
    plan: Plan | None = None
    began = history[0].at
    for entry in history:
        if isinstance(entry, Decided):
            plan = entry.plan
        kind = _KINDS.get(entry.kind, entry.kind.replace("-", " "))
        rows.append((elapsed(entry.at - began), kind, _about(entry, plan, shows_guests)))
    return table(("After", "What", "About it"), rows, "compact")


def _about(entry: AnyEntry, plan: Plan | None, shows_guests: bool) -> Content:
    """Return what an entry of an incident's history says, beside its kind."""
    match entry:
        case Opened(source=source):
            return f"known by {source}"
        case Repeated(count=count):
            return f"{count} times"
        case Decided(plan=decided):
            return f"{decided.decision.effective}: {EXPLANATIONS[decided.decision.reason]}"
        case StepBegun(index=index):
            return _step_name(plan, index)
        case StepEnded(index=index, outcome=outcome, detail=detail):
            said = _said(detail, shows_guests)
            return joined(f"{_step_name(plan, index)} ", badge(_OUTCOMES[outcome], outcome), said)
        case Settled(state=state):
            return badge(_STATES[state], state)
        case Asked(uid=uid, what=what, why=why):
            return free_text(f"uid {uid}, {what}: {why}")
        case Acknowledged(uid=uid, why=why):
            return free_text(f"uid {uid}: {why}")
        case Observed(what=what):
            return what
        case Enforced():
            return "somebody resumed the panicked guest: stopped again"
        case Closed(ending=ending, detail=detail):
            return joined(ending, _said(detail, shows_guests))
        case _:
            assert_never(entry)


def _said(detail: str, shows_guests: bool) -> Html:
    """Return what a monitor, or through it a guest, had to say."""
    if not detail:
        return joined()
    said = f" {detail}" if shows_guests else f" ({WITHHELD})"
    return element("span", said, class_="words" if shows_guests else "quiet")


def _step_name(plan: Plan | None, index: int) -> str:
    return type(plan.steps[index]).__name__ if plan is not None else str(index)


def _words(incident: Incident, shows_guests: bool) -> Content:
    if not incident.panic_line:
        return ""
    if not shows_guests:
        return element("span", WITHHELD, class_="quiet")
    return element("span", incident.panic_line, class_="words")


def _panic_line(incident: Incident, shows_guests: bool) -> Html:
    if not incident.panic_line or not shows_guests:
        return joined()
    return element("p", incident.panic_line, class_="notice bad words")


def _incident_state(incident: Incident) -> Html:
    if incident.closed is not None:
        return badge(PLAIN, incident.closed.ending)
    return badge(_STATES[incident.state], incident.state)


def _action(incident: Incident) -> str:
    decision = incident.decision
    if decision is None:
        return ""
    because = "" if decision.reason is Reason.ON_CRASH else f" ({decision.reason})"
    return f"{decision.effective}{because}"


def _needs_a_look(status: DomainStatus) -> bool:
    armed = status.armed == Armed.YES and status.panic_device != PanicDevice.NONE
    good = status.connected and armed
    return not good or bool(status.incident or status.held_why)


def _domain_state(status: DomainStatus) -> Content:
    if status.incident:
        address = f"/incident/{status.incident}"
        state = badge(_STATES[State(status.incident_state)], status.incident_state)
        named = f"incident {status.incident} of {status.domain}"
        return joined(state, " ", element("a", "incident", href=address, aria_label=named))
    if not status.connected:
        problem = element("span", f" {status.problem}", class_="quiet free")
        return joined(badge(WARN, "not connected"), problem)
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


# Files of the evidence


def _last_lines(path: Path) -> list[str]:
    try:
        content = _read(path, TEXT_KEPT)
    except OSError as error:
        return [str(error)]
    return content.decode(errors="replace").splitlines()


def _read(path: Path, limit: int) -> bytes:
    """Return the last bytes of a file of panicd's own."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit)
