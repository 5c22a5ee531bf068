"""Which domains the host's page shows: by a search, and by how they stand."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlencode

from panicd.fleet.snapshot import DomainStatus
from panicd.rules.capability import Armed
from panicd.rules.panic_device import PanicDevice
from panicd.web.html import Html, element, joined

FIELDS: Final = 20
"""How many fields of a query are read."""

PAGE: Final = re.compile("[1-9][0-9]{0,5}")


def has_no_device(status: DomainStatus) -> bool:
    """Whether panicd knows that its guest has no way to report a panic."""
    return status.connected and status.panic_device == PanicDevice.NONE


def _needs_a_look(status: DomainStatus) -> bool:
    armed = status.armed == Armed.YES and not has_no_device(status)
    good = bool(status.spare_of) or (status.connected and armed and not status.silent)
    return not good or bool(status.incident or status.held_why)


SHOWN: Final[Mapping[str, tuple[str, Callable[[DomainStatus], bool]]]] = {
    "all": ("domains", lambda _status: True),
    "attention": ("needs a look", _needs_a_look),
    "panicked": ("panicked", lambda s: bool(s.incident)),
    "not-armed": ("not armed", lambda s: s.connected and s.armed != Armed.YES),
    "no-device": ("no panic device", has_no_device),
    "not-connected": ("not connected", lambda s: not s.connected and not s.spare_of),
    "silent": ("silent", lambda s: s.silent),
    "held": ("held", lambda s: bool(s.held_why)),
}
"""The kinds of domains: what each kind is called, and which domains are of it."""


def fields_of(query: str) -> dict[str, str]:
    """Return the fields of a query or a form; of doubled ones the first."""
    try:
        given = parse_qs(query, errors="surrogatepass", max_num_fields=FIELDS)
    except ValueError:
        return {}
    return {name: values[0] for name, values in given.items()}


@dataclass(frozen=True, slots=True)
class Filter:
    """What the page shall show.

    Attributes:
        text: that is in a domain's name, UUID, monitor or policy.
        shown: one of ``SHOWN``.
        page: which page of the domains that fit, from 1 on.
    """

    text: str = ""
    shown: str = "all"
    page: int = 1

    @classmethod
    def of(cls, query: str) -> "Filter":
        """Return what a query asks for; a malformed part asks for nothing."""
        fields = fields_of(query)
        shown, page = fields.get("show", "all"), fields.get("page", "")
        return cls(
            fields.get("q", "").strip(),
            shown if shown in SHOWN else "all",
            int(page) if PAGE.fullmatch(page) else 1,
        )

    def fits(self, status: DomainStatus) -> bool:
        """Tell whether a domain fits."""
        if not SHOWN[self.shown][1](status):
            return False
        words = (status.domain, status.uuid, status.monitor, status.on_crash)
        return self.has_text(*words)

    def has_text(self, *words: str) -> bool:
        """Tell whether the text is in one of these words."""
        wanted = self.text.casefold()
        return any(wanted in word.casefold() for word in words)

    def pages(self, count: int, name: str) -> Html:
        """Return links to all pages of the domains that fit; nothing if there is only one.

        Args:
            count: how many pages there are.
            name: of the links, for a screen reader.
        """
        if count == 1:
            return joined()
        asked = {"q": self.text, "show": self.shown}
        links = [
            element(
                "a",
                str(page),
                href=f"/?{urlencode({**asked, 'page': page}, errors='surrogatepass')}#domains",
                aria_current="page" * (page == self.page),
                aria_label=f"Page {page}",
            )
            for page in range(1, count + 1)
        ]
        return element("nav", "Page ", *links, aria_label=name, class_="pages")

    def form(self) -> Html:
        """Return the form for this."""
        options = [
            element("option", name, value=key, selected="selected" * (key == self.shown))
            for key, (name, _) in SHOWN.items()
        ]
        text = element(
            "input", type="search", id="search", name_="q", value=self.text, autocomplete="off"
        )
        return element(
            "form",
            element("label", "Search", for_="search"),
            text,
            element("label", "Show", for_="show"),
            element("select", *options, id="show", name_="show"),
            element("button", "Search", type="submit"),
            method="get",
            action="/",
            id="filter",
            class_="filter",
            role="search",
        )


def address_of(shown: str) -> str:
    """Return the address that shows the domains of a kind."""
    return f"/?{urlencode({'show': shown})}#domains"
