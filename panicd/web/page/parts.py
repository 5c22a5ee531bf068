"""What pages are put together from: tables, figures, notices, marks, times, an incident's state."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from panicd.journal.signatures import Group
from panicd.rules.incident import Incident, State
from panicd.web.html import Content, Html, element

# How a state is marked: nothing to do, to be looked at, something is wrong.
GOOD, WARN, BAD, PLAIN = "good", "warn", "bad", ""

STATES: Final = {
    State.DETECTED: WARN,
    State.DECIDED: WARN,
    State.ACTING: WARN,
    State.PRESERVED: BAD,
    State.RUNNING_ON: WARN,
    State.FAILED: BAD,
    State.CLOSED: PLAIN,
}

WITHHELD: Final = "withheld"
WHY_WITHHELD: Final = (
    "What guests wrote or show is withheld, as nobody is asked for a name here: "
    "metrics.web_config changes that."
)


def table(
    headings: tuple[str, ...], rows: Iterable[tuple[Content, ...]], kind: str = "cards"
) -> Html:
    """Make a table; the first cell names its row.

    On a narrow screen the rows of one of ``cards`` become one each; a ``compact`` one stays. The
    roles are those that a table has by itself: browsers take them away when it becomes cards.
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
    """Return a cell's content as one, that a card's grid places beside its label."""
    return element("div", cell) if cell else cell


def figures(*figures: tuple[str, int, str]) -> Html:
    """Make a row of counts: what is counted, how many, and how it is marked if there are any."""
    return element(
        "dl",
        *(
            element(
                "div", element("dt", name), element("dd", str(number)), class_=mark * bool(number)
            )
            for name, number, mark in figures
        ),
        class_="figures",
    )


def free_text(text: str) -> Html:
    """Mark text that may break anywhere, for it may be one long word."""
    return element("span", text, class_="free")


def badge(mark: str, text: str) -> Html:
    """Mark a word."""
    return element("span", text, class_=f"badge {mark}".strip())


def incident_state(incident: Incident) -> Html:
    """Mark how an incident stands, or how it ended."""
    if incident.closed is not None:
        return badge(PLAIN, incident.closed.ending)
    return badge(STATES[incident.state], incident.state)


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
    return element("time", when(seconds), datetime=at.isoformat(timespec="seconds"))


def elapsed(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
