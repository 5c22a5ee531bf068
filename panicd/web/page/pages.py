"""The pages for people: which there are, and what is around each.

Made in the HTTP server's thread, from what the domains' tasks hold and from the journal; it only
reads. What a guest wrote or shows is left out unless it is known who asks.
"""

import os
import re
from http import HTTPStatus
from pathlib import Path
from typing import Final

from panicd import __version__
from panicd.incident.records import read_same
from panicd.incident.services import Services, bundle_directory
from panicd.journal.journal import JournalError
from panicd.web.html import Html, document, element, joined, style
from panicd.web.page.evidence import evidence, screen
from panicd.web.page.incident import incident_page
from panicd.web.page.overview import overview
from panicd.web.page.panics import panic, panics
from panicd.web.page.parts import BAD, notice, when
from panicd.web.page.style import PICTURE_POLICY, POLICY, SHEET
from panicd.web.web import NOT_FOUND, Request, Response

_PANIC_PATH: Final = re.compile(r"/panics/([0-9]+-[0-9a-f]{10})")
_INCIDENT_PATH: Final = re.compile(r"/incident/([0-9]{8}T[0-9]{6}-[0-9a-f]{8})(/screen\.png)?")


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
            return self._page(f"panicd on {self._host}", overview(self._services, shows_guests))
        if request.path == "/panics":
            return self._page("panicd: panics", panics(self._journal, shows_guests))
        if match := _PANIC_PATH.fullmatch(request.path):
            found = panic(self._journal, match[1], shows_guests)
            return NOT_FOUND if found is None else self._page(f"panicd: {match[1]}", found)
        match = _INCIDENT_PATH.fullmatch(request.path)
        if match is None:
            return NOT_FOUND
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
        if match[2]:
            return _picture(directory) if shows_guests else Response(b"Who are you?\n", 403)
        kept = evidence(directory, incident.id, self._host, shows_guests)
        title = f"{incident.opened.domain}: incident {incident.id}"
        return self._page(title, incident_page(incident, same, history, kept, shows_guests))

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
            element("footer", f"As of {when(now)}. panicd {__version__}."),
        )
        content = document(title=title, head=style(SHEET), body=body)
        headers = {"Content-Security-Policy": POLICY}
        return Response(content, status, "text/html; charset=utf-8", headers)


def _picture(directory: Path) -> Response:
    picture = screen(directory)
    if picture is None:
        return NOT_FOUND
    return Response(picture, 200, "image/png", headers={"Content-Security-Policy": PICTURE_POLICY})
