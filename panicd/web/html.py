"""HTML made of elements, so that no text can become markup.

A ``str`` is text wherever it stands, and is escaped; only an ``Html`` is markup, and the one way to
make one is to build it here. Text is also made printable, as for the log: what a guest writes can
neither turn the reading direction around nor hide.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from html import escape as escape_markup
from typing import Final

from panicd.rules.printable import escape

TEXT_LIMIT: Final = 2000
"""Characters of a text that are shown, unless it is ``block``."""

WORD_LENGTH: Final = 40
"""Characters. What is not longer is remembered: half the time of a page of 2,000 domains."""

VOID: Final = frozenset({"img", "input", "link", "meta"})


@dataclass(frozen=True, slots=True)
class Html:
    """Markup, as it is."""

    markup: str


Content = Html | str
"""Markup, or text that is escaped."""


def element(name: str, *content: Content, **attributes: str) -> Html:
    """Make an element.

    Args:
        name: of the element.
        content: in its order.
        attributes: underscores in their names stand for dashes, one at the end for nothing
            (``class_``); those with an empty value are left out.
    """
    start = name
    for key, value in attributes.items():
        if value:
            start += f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
    if name in VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{joined(*content).markup}</{name}>")


def joined(*content: Content) -> Html:
    """Put one after the other."""
    return Html("".join(c.markup if isinstance(c, Html) else _escaped(c) for c in content))


def block(lines: Iterable[str]) -> Html:
    """Make a block of text whose lines are kept; what there is in a line is escaped."""
    return Html("<pre>" + "\n".join(_escaped(line) for line in lines) + "</pre>")


def style(sheet: str) -> Html:
    """Make a style sheet; panicd's own, and nothing of it is escaped."""
    assert "<" not in sheet
    return Html(f"<style>{sheet}</style>")


def script(program: str) -> Html:
    """Make a script; panicd's own, and nothing of it is escaped."""
    assert "</" not in program
    assert "<!" not in program
    return Html(f"<script>{program}</script>")


def document(*, title: str, head: Html, body: Html) -> bytes:
    """Make a whole document."""
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name_="viewport", content_="width=device-width, initial-scale=1"),
            element("title", title),
            head,
        ),
        element("body", body),
        lang="en",
    )
    return b"<!DOCTYPE html>\n" + page.markup.encode() + b"\n"


def _escaped(text: str) -> str:
    return _escaped_word(text) if len(text) <= WORD_LENGTH else _escaped_text(text)


@lru_cache(maxsize=4096)
def _escaped_word(text: str) -> str:
    """Escape one of the words that a page is full of."""
    return _escaped_text(text)


def _escaped_text(text: str) -> str:
    return escape_markup(escape(text, TEXT_LIMIT), quote=True)
