"""What people see: text as it is, made printable, with its style apart from it.

Domain names, run states, panic lines and much else are a guest's or a QEMU's to choose. So nothing
that is printed is markup: rich's own (``[red]``, ``:skull:``) is off, whatever a terminal could act
on is escaped, and a style is given beside a text and never in it.
"""

from typing import Any, TypeAlias

from rich.console import Console
from rich.text import Text

from panicd.rules.printable import escape

Part: TypeAlias = str | Text | tuple[str, str]
"""Text, or text with its style."""


class Terminal(Console):
    """A console that takes every ``str`` for what it is; arguments as rich's, with ``options``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **_options: object) -> Text:
        """Make text of a ``str``, wherever one is printed: in a line, in a table's cell."""
        return Text(escape(text))


def line(*parts: Part) -> Text:
    """Join texts to one."""
    joined = Text()
    for part in parts:
        match part:
            case Text():
                joined.append_text(part)
            case (text, style):
                joined.append(escape(text), style)
            case _:
                joined.append(escape(part))
    return joined
