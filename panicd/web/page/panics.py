"""The pages of the different panics: all of them, and the incidents of one."""

from typing import Final

from panicd.incident.records import read_group, read_panics
from panicd.journal.journal import Journal, JournalError
from panicd.rules.signature import Signature
from panicd.web.html import Content, Html, element, joined
from panicd.web.page.overview import incident_table
from panicd.web.page.parts import BAD, WITHHELD, live, moment, notice, seen, table

PANICS_SHOWN: Final = 200
INCIDENTS_SHOWN: Final = 200


def panics(journal: Journal, shows_guests: bool) -> Html:
    """Return the page of the panics, the latest seen first. Blocking.

    Args:
        journal: to read them from.
        shows_guests: whether the client has logged in.
    """
    heading = element("h1", "Panics")
    try:
        groups = read_panics(journal.path, 0.0, PANICS_SHOWN)
    except JournalError as error:
        return joined(heading, notice(BAD, f"The journal can't be read: {error}"))
    if not groups:
        return joined(
            heading,
            element("p", "None yet. A panic is listed if panicd knows enough to compare it."),
        )
    rows: list[tuple[Content, ...]] = [
        (
            element("a", signature.hash, href=f"/panics/{signature.hash}", class_="id"),
            _named(signature, shows_guests),
            seen(group),
            moment(group.first_at),
            element("a", moment(group.last_at), href=f"/incident/{group.newest}"),
        )
        for group, signature in groups
    ]
    listed = table(("Panic", "What the guest said", "Seen", "First", "Last"), rows)
    return joined(heading, live("panics", listed))


def panic(journal: Journal, signature: str, shows_guests: bool) -> Html | None:
    """Return the page of one panic's incidents; None if there are none. Blocking.

    Args:
        journal: to read them from.
        signature: its hash.
        shows_guests: whether the client has logged in.
    """
    heading = element("h1", "Panic ", signature)
    try:
        group = read_group(journal.path, signature)
        incidents = journal.incidents(signature=signature, limit=INCIDENTS_SHOWN)
    except JournalError as error:
        return joined(heading, notice(BAD, f"The journal can't be read: {error}"))
    if group is None or not incidents:
        return None
    known = incidents[0].signature
    named = element("p", _named(known, shows_guests), class_="notice") if known else joined()
    told = element("p", f"Seen {seen(group)} since ", moment(group.first_at), ".")
    return joined(heading, named, told, incident_table(incidents, shows_guests))


def _named(signature: Signature, shows_guests: bool) -> Content:
    if not shows_guests:
        return element("span", WITHHELD, class_="quiet")
    return element("span", signature.full, class_="words")
