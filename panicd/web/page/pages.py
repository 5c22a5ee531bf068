"""The pages for people: which there are, and what surrounds each.

They are made in the HTTP server's thread, from what the domains' tasks hold and from the journal.
Guest output is left out unless the client has logged in. Dumps are for operators.
"""

import os
import re
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

from panicd import __version__
from panicd.incident.records import dump_facts_of, finished_dumps, read_same
from panicd.incident.services import Services, bundle_directory
from panicd.journal.journal import JournalError
from panicd.rules.incident import Incident
from panicd.web.html import Html, document, element, joined, script, style
from panicd.web.page.domain import domain_page
from panicd.web.page.download import POLICY as FILE_POLICY
from panicd.web.page.download import evidence_file, send
from panicd.web.page.evidence import evidence, screen
from panicd.web.page.filtering import fields_of
from panicd.web.page.forms import Command, MakeToken, ack_form, act_form, hold_form
from panicd.web.page.incident import Case, incident_page
from panicd.web.page.operating import Operate, carry_out
from panicd.web.page.overview import overview
from panicd.web.page.panics import panic, panics
from panicd.web.page.parts import BAD, live, notice, when
from panicd.web.page.script import SCRIPT
from panicd.web.page.style import POLICY, SHEET
from panicd.web.page.tokens import Tokens
from panicd.web.web import NOT_FOUND, Request, Response

_PANIC_PATH: Final = re.compile(r"/panics/([0-9]+-[0-9a-f]{10})")
_INCIDENT_PATH: Final = re.compile(
    r"/incident/([0-9]{8}T[0-9]{6}-[0-9a-f]{8})(?:/(screen\.png|file/([\w.-]+)|dump/([0-9]{1,3})))?",
    re.ASCII,
)
_OPERATION_PATH: Final = re.compile(r"/do/(act|ack|hold|unhold)")
_WHO: Final = Response(b"Who are you?\n", 403)


class Pages:
    """Makes the pages.

    Args:
        services: the daemon's.
        operate: carries out what an operator asks for.
    """

    def __init__(self, services: Services, operate: Operate) -> None:
        self._services = services
        self._operate = operate
        self._tokens = Tokens(time.monotonic)
        self._journal = services.keeping.journal
        self._host = os.uname().nodename

    def answer(self, request: Request) -> Response:
        """Answer a request with a page, a picture, or 'not found'. Blocking."""
        if request.method == "POST":
            return self._operation(request)
        shows_guests = request.authenticated
        if request.path == "/":
            host = overview(self._services, shows_guests, request.query)
            return self._page(f"panicd on {self._host}", host)
        if request.path == "/domain":
            name = fields_of(request.query).get("name", "")
            make = self._maker(request)
            shown = domain_page(self._services, name, shows_guests, make)
            return NOT_FOUND if shown is None else self._page(f"panicd: {name}", shown)
        if request.path == "/panics":
            return self._page("panicd: panics", panics(self._journal, shows_guests))
        if match := _PANIC_PATH.fullmatch(request.path):
            found = panic(self._journal, match[1], shows_guests)
            return NOT_FOUND if found is None else self._page(f"panicd: {match[1]}", found)
        match = _INCIDENT_PATH.fullmatch(request.path)
        return NOT_FOUND if match is None else self._incident(request, match)

    def _incident(self, request: Request, match: re.Match[str]) -> Response:
        try:
            incident = self._journal.incident(match[1])
            history = self._journal.history(match[1])
            same = read_same(self._journal.path, incident)
        except JournalError as error:
            trouble = notice(BAD, f"The journal can't be read: {error}")
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return self._page("panicd: no journal", trouble, status)
        if incident is None:
            return NOT_FOUND
        directory = bundle_directory(self._services.config(), incident.id)
        shows_guests, give_way = request.authenticated, self._services.priority.give_way
        if match[2] and not shows_guests:
            return _WHO
        dumps = list(finished_dumps(history, incident.id)) if shows_guests else []
        if match[2] == "screen.png":
            return _picture(directory)
        if match[3]:
            return evidence_file(directory, match[3], give_way)
        if match[4] and not request.operator:
            return _WHO
        if match[4]:
            number = int(match[4])
            return send(dumps[number], give_way) if number < len(dumps) else NOT_FOUND
        opens = [line for facts in dump_facts_of(dumps) for line in facts.open]
        kept = [
            *self._dumps(incident, dumps, request.operator),
            *evidence(directory, incident.id, self._host, shows_guests),
        ]
        forms = self._forms(incident, request)
        page = incident_page(Case(incident, same, history, opens), kept, forms, shows_guests)
        return self._page(f"{incident.opened.domain}: incident {incident.id}", page)

    def _dumps(self, incident: Incident, dumps: list[Path], may_load: bool) -> Iterator[Html]:
        """Yield where an incident's dumps are, with links for operators."""
        if dumps:
            yield element("h2", "Memory dump")
        for number, path in enumerate(dumps):
            address = f"/incident/{incident.id}/dump/{number}" if may_load else ""
            named = element("a", path.name, href=address) if may_load else path.name
            yield element("p", named, f", {path} on {self._host}.")

    def _maker(self, request: Request) -> MakeToken | None:
        """Return what makes the tokens of an operator's forms; None if the client is none."""
        return partial(self._tokens.make, request.user) if request.operator else None

    def _forms(self, incident: Incident, request: Request) -> Iterator[Html]:
        """Yield the forms for what an operator may do about an incident."""
        make = self._maker(request)
        if make is None:
            return
        for domain in list(self._services.fleet.domains.values()):
            chronicle = domain.chronicle
            if chronicle is not None and chronicle.incident.id == incident.id:
                yield act_form(make, domain.name, domain.address, incident.id)
                yield hold_form(make, domain.name, domain.address)
        if incident.acknowledged is None:
            yield ack_form(make, incident.id)

    def _operation(self, request: Request) -> Response:
        """Carry out what an operator asks for by a form."""
        match = _OPERATION_PATH.fullmatch(request.path)
        if match is None or not request.operator:
            return NOT_FOUND
        came = carry_out(request, Command(match[1]), self._tokens, self._operate)
        heading = element("h1", match[1].capitalize())
        return self._page("panicd: asked", joined(heading, came.told), came.status)

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
                    element("a", "Panics", href="/panics"),
                    element("a", "Metrics", href="/metrics"),
                    element("a", "Health", href="/healthz"),
                    aria_label="Pages",
                ),
            ),
            element("main", main, id="main"),
            element(
                "footer",
                live("as-of", element("p", f"As of {when(now)}. panicd {__version__}.")),
                element(
                    "p",
                    "Renewed every 10 s. ",
                    element("button", "Pause", type="button", id="pause"),
                    id="renewal",
                    hidden="hidden",
                ),
                element("p", id="trouble", class_="bad", role="status"),
            ),
            script(SCRIPT),
        )
        content = document(title=title, head=style(SHEET), body=body)
        # Without a referrer a browser would not tell a form's origin either.
        headers = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
        return Response(content, status, "text/html; charset=utf-8", headers)


def _picture(directory: Path) -> Response:
    picture = screen(directory)
    if picture is None:
        return NOT_FOUND
    return Response(picture, 200, "image/png", headers={"Content-Security-Policy": FILE_POLICY})
