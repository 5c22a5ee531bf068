"""What pages are made of: tables, figures, notices, marks, times, links, commands."""

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final
from urllib.parse import quote, urlencode

from panicd.journal.signatures import Group
from panicd.rules.incident import Incident, State
from panicd.web.html import Content, Html, element, joined

# How a state is marked: nothing to do, worth a look, something is wrong.
GOOD, WARN, BAD, PLAIN = "good", "warn", "bad", ""

STATES: Final = {
    State.DETECTED: WARN,
    State.DECIDED: WARN,
    State.ACTING: WARN,
    State.PRESERVED: BAD,
    State.RUNNING_ON: WARN,
    State.FAILED: BAD,
    State.RESET: WARN,
    State.CLOSED: PLAIN,
}

SEEN: Final = "acknowledged"
WITHHELD: Final = "hidden"
WHY_WITHHELD: Final = (
    "Guest output is hidden because this page has no login. Set metrics.web_config to change that."
)


def table(
    headings: tuple[str, ...], rows: Iterable[tuple[Content, ...]], kind: str = "cards"
) -> Html:
    """Make a table; the first cell names its row.

    On a narrow screen each row of ``cards`` becomes a card; a ``compact`` table stays one. The
    roles are those that a table has anyway: browsers remove them when rows become cards.
    """
    return element(
        "table",
        element(
            "thead",
            element(
                "tr",
                *(element("th", name, scope="col", role="columnheader") for name in headings),
                role="row",
            ),
            role="rowgroup",
        ),
        element(
            "tbody",
            *(
                element(
                    "tr",
                    element("th", row[0], scope="row", role="rowheader"),
                    *(
                        element("td", _wrapped(cell), role="cell", data_label=name)
                        for name, cell in zip(headings[1:], row[1:], strict=True)
                    ),
                    role="row",
                )
                for row in rows
            ),
            role="rowgroup",
        ),
        role="table",
        class_=kind,
    )


def _wrapped(cell: Content) -> Content:
    """Return a cell's content as one element, which a card's grid places beside its label."""
    return element("div", cell) if cell else cell


def figures(*figures: tuple[str, int, str, str]) -> Html:
    """Make a row of counts.

    Each has what is counted, how many, how to mark it if there are any, and where they are shown.
    """
    return element(
        "ul",
        *(
            element(
                "li",
                element(
                    "a",
                    element("span", str(number), class_="count"),
                    " ",
                    element("span", name),
                    href=address,
                ),
                class_=mark * bool(number),
            )
            for name, number, mark, address in figures
        ),
        class_="figures",
    )


def free_text(text: str) -> Html:
    """Mark text that may break anywhere, because it may be one long word."""
    return element("span", text, class_="free")


def badge(mark: str, text: str) -> Html:
    """Mark a word."""
    return element("span", text, class_=f"badge {mark}".strip())


def incident_state(incident: Incident) -> Html:
    """Mark how an incident stands, or how it ended, and whether somebody has looked at it."""
    if incident.closed is not None:
        state = badge(PLAIN, incident.closed.ending)
    else:
        state = badge(STATES[incident.state], incident.state)
    return joined(state, " ", badge(PLAIN, SEEN)) if incident.acknowledged else state


def notice(mark: str, text: str) -> Html:
    """Make a notice."""
    return element("p", text, class_=f"notice {mark}".strip())


def seen(group: Group) -> str:
    """Return how often a panic was seen, and on how many domains."""
    times = "once" if group.count == 1 else f"{group.count} times"
    domains = "1 domain" if group.domains == 1 else f"{group.domains} domains"
    return f"{times} on {domains}"


def when(seconds: float) -> str:
    """Return a time, given in seconds since the epoch, in words."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def moment(seconds: float) -> Html:
    """Return a time, given in seconds since the epoch, as an element."""
    at = datetime.fromtimestamp(seconds).astimezone()
    told = element("time", when(seconds), datetime=at.isoformat(timespec="seconds"))
    return joined(told, " ", element("span", f"({age(time.time() - seconds)})", class_="quiet age"))


def age(seconds: float) -> str:
    """Return how long ago something was, in words."""
    if seconds < 0:
        return "in the future"
    for length, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def elapsed(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def facts(known: Iterable[tuple[str, Content]]) -> Html:
    """Make a list of facts; empty ones are left out."""
    return element(
        "dl",
        *(joined(element("dt", name), element("dd", value)) for name, value in known if value),
        class_="facts",
    )


def live(name: str, *content: Content) -> Html:
    """Make a part of a page that is renewed while somebody looks at it; its name is unique."""
    return element("div", *content, id=name, data_live="yes")


def domain_link(name: str) -> Html:
    """Link to the page of a domain, or of all domains with that name."""
    query = urlencode({"name": name}, errors="surrogatepass")
    return element("a", name, href=f"/domain?{query}", class_="domain")


def incident_link(incident_id: str, domain: str) -> Html:
    """Link to the page of an incident."""
    named = f"incident {incident_id} of {domain}"
    address = f"/incident/{quote(incident_id)}"
    return element("a", incident_id, href=address, aria_label=named, class_="id")


def commands(*lines: str) -> Html:
    """Make commands that can be copied."""
    return element(
        "ul",
        *(
            element(
                "li",
                element("code", line),
                element(
                    "button",
                    "Copy",
                    type="button",
                    hidden="hidden",
                    data_copy="yes",
                    aria_label=f"Copy: {line}",
                ),
            )
            for line in lines
        ),
        class_="commands",
    )
