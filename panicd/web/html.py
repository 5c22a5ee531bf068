"""HTML made of elements, so that no text can become markup.

A ``str`` is always text, and is escaped. Only an ``Html`` is markup; only this module makes one.
Text is also made printable, as in the log: what a guest writes can neither change the reading
direction nor hide.
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
"""Characters. Shorter words are remembered, which halves the time of a page of 2,000 domains."""

VOID: Final = frozenset({"img", "input", "link", "meta"})


@dataclass(frozen=True, slots=True)
class Html:
    """Markup, as it is."""

    markup: str


Content = Html | str
"""Markup, or text, which is escaped."""


def element(name: str, *content: Content, **attributes: str) -> Html:
    """Make an element.

    Args:
        name: of the element.
        content: in its order.
        attributes: underscores in a name stand for dashes, and one at its end is removed
            (``class_``); an attribute with an empty value is left out.
    """
    start = name
    for key, value in attributes.items():
        if value:
            start += f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
    if name in VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{joined(*content).markup}</{name}>")


def joined(*content: Content) -> Html:
    """Join contents, one after the other."""
    return Html("".join(c.markup if isinstance(c, Html) else _escaped(c) for c in content))


def block(lines: Iterable[str]) -> Html:
    """Make a block of text that keeps its lines; each line is escaped."""
    return Html("<pre>" + "\n".join(_escaped(line) for line in lines) + "</pre>")


def style(sheet: str) -> Html:
    """Make a style sheet. It is panicd's own, and not escaped."""
    assert "<" not in sheet
    return Html(f"<style>{sheet}</style>")


def script(program: str) -> Html:
    """Make a script. It is panicd's own, and not escaped."""
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
