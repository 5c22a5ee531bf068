"""Prints text for people: made printable, with its style apart from it.

A guest or a QEMU chooses domain names, run states, panic lines and much else. So printed text is
never markup: characters that a terminal could act on are escaped, and a style stands beside a text,
never in it. Lines are folded at a terminal's width; piped output is not folded.
"""

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from typing import Final, NamedTuple, TextIO, TypeAlias

from panicd.rules.printable import escape

_STYLES: Final = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "bold red": "1;31",
    "bold green": "1;32",
}
"""The styles, as ECMA-48's SGR has them."""


class Text(NamedTuple):
    """Printable text, in pieces of one style each.

    Attributes:
        pieces: each with its style.
        is_to_copy: the text is never folded: a line break would split a command or a path.
    """

    pieces: tuple[tuple[str, str], ...] = ()
    is_to_copy: bool = False

    @property
    def plain(self) -> str:
        """The text without its styles."""
        return "".join(text for text, _ in self.pieces)

    @property
    def width(self) -> int:
        """The columns that the text takes."""
        return sum([width_of(text) for text, _ in self.pieces])

    def painted(self) -> str:
        """Return the text with its styles, as a terminal shows it."""
        return "".join(
            f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and text else text
            for text, style in self.pieces
        )

    def cut(self, width: int) -> "Text":
        """Return the text cut to ``width`` columns, with a mark where something is missing."""
        if self.width <= width:
            return self
        head, _ = self._split(width - 1)
        return Text((*head.pieces, ("…", "")))

    def folded(self, width: int, *, whole_words: bool = False) -> "Iterator[Text]":
        """Yield the text in lines of at most ``width`` columns, broken at spaces where possible.

        Args:
            width: the columns.
            whole_words: a longer word, such as a path, has a line to itself, and is not broken.
        """
        rest = self
        while rest.width > width and not self.is_to_copy:
            head, tail = rest._split(width)
            words = head.plain
            space = len(words) if tail.plain.startswith(" ") else words.rfind(" ")
            if whole_words and not words[: max(space, 0)].strip():
                words = rest.plain
                space = words.find(" ", len(words) - len(words.lstrip(" ")))
                if space < 0:
                    break
            if words[:space].strip():
                head, tail = rest._split(width_of(words[:space]))
            yield head
            rest = _stripped(tail)
        yield rest

    def _split(self, width: int) -> "tuple[Text, Text]":
        head: list[tuple[str, str]] = []
        for number, (text, style) in enumerate(self.pieces):
            taken = len(text) if width_of(text) <= width else _fits(text, width)
            head.append((text[:taken], style))
            if taken < len(text):
                tail = ((text[taken:], style), *self.pieces[number + 1 :])
                return Text(tuple(head)), Text(tail)
            width -= width_of(text)
        return self, Text()


def _stripped(text: Text) -> Text:
    """Return a text without its leading spaces."""
    for number, (piece, style) in enumerate(text.pieces):
        if rest := piece.lstrip(" "):
            return Text(((rest, style), *text.pieces[number + 1 :]))
    return Text()


Part: TypeAlias = str | Text | tuple[str, str]
"""Text, or text with its style."""


def line(*parts: Part) -> Text:
    """Join texts to one."""
    pieces: list[tuple[str, str]] = []
    for part in parts:
        match part:
            case Text():
                pieces += part.pieces
            case (text, style):
                pieces.append((escape(text), style))
            case _:
                pieces.append((escape(part), ""))
    return Text(tuple(pieces))


def to_copy(text: str) -> Text:
    """Return a text that stays in one line, whatever the terminal's width."""
    return line(text)._replace(is_to_copy=True)


def width_of(text: str) -> int:
    """Return how many columns a text takes (UAX #11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # noqa: PLC0415 - only where it is wanted

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _fits(text: str, width: int) -> int:
    """Return how many characters of a text fit into ``width`` columns."""
    taken = 0
    for character in text:
        width -= width_of(character)
        if width < 0:
            break
        taken += 1
    return taken


class Terminal:
    """Where commands print.

    Args:
        file: receives the output; None: standard output.
        width: columns; None: the terminal's, or no limit without a terminal.
        height: lines; None: likewise.
        colours: styles are shown; None: only on a terminal that has colours.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        width: int | None = None,
        height: int | None = None,
        *,
        colours: bool | None = None,
    ) -> None:
        self._file = file
        self._width = width
        self._height = height
        self._colours = colours

    @property
    def file(self) -> TextIO:
        """The file that receives the output."""
        return self._file or sys.stdout

    @property
    def is_terminal(self) -> bool:
        """True if the output goes to a terminal, where people read it."""
        forced = bool(os.environ.get("FORCE_COLOR"))
        return self._width is not None or forced or self.file.isatty()

    @property
    def width(self) -> int | None:
        """Columns; None: no limit."""
        if self._width is not None or not self.is_terminal:
            return self._width
        return _size("COLUMNS", 0)

    @property
    def height(self) -> int | None:
        """Lines; None: no limit."""
        if self._height is not None or not self.is_terminal:
            return self._height
        return _size("LINES", 1)

    def print(self, *lines: str | Text) -> None:
        """Print texts, each on a new line."""
        for text in self.lines(lines):
            self.file.write(f"{text}\n")

    def lines(self, lines: Iterable[str | Text]) -> Iterator[str]:
        """Yield texts as they are printed: folded, and with their styles."""
        width, colours = self.width, self._colours
        if colours is None:
            forced = os.environ.get("FORCE_COLOR") or os.environ.get("TERM", "dumb") != "dumb"
            colours = self.is_terminal and bool(forced) and not os.environ.get("NO_COLOR")
        for text in lines:
            whole = text if isinstance(text, Text) else line(text)
            for part in whole.folded(width) if width else (whole,):
                yield part.painted() if colours else part.plain


def _size(variable: str, place: int) -> int:
    """Return the terminal's columns or lines, from the environment or from the terminal."""
    said = os.environ.get(variable, "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(sys.stdout.fileno())[place] or _SIZE[place]
    except (OSError, ValueError):
        return _SIZE[place]


_SIZE: Final = 80, 24

console = Terminal()

GAP: Final = "  "
FEW: Final = 0.05  # of a list's rows, whose names may be wider than their column
LEAST: Final = 16  # columns of a folded or cut cell; a narrower one is no use


class Column(NamedTuple):
    """A column of a list.

    Attributes:
        heading: its name.
        rank: where room is short, the column with the highest rank goes first; 0: it stays.
        cut: its cells may be cut at their end; for the last column only.
    """

    heading: str
    rank: int = 0
    cut: bool = False


def listing(
    columns: Iterable[Column], rows: Iterable[Iterable[str | Text]], width: int | None
) -> list[Text]:
    """Return a list: a line of headings, and one for each row.

    On a terminal, columns that don't fit are left out or cut, empty columns first. A long name does
    not cost the other rows their columns. Piped output has all columns, and an empty cell is ``-``.

    Args:
        columns: the columns, in their order.
        rows: the cells of each row.
        width: the terminal's width; None: the output is piped.
    """
    shown = list(columns)
    cells = [[line(cell) for cell in row] for row in rows]
    if width is not None:
        kept = _fitting(shown, cells, width)
        shown = [shown[i] for i in kept]
        cells = [[row[i] for i in kept] for row in cells]
    headings = [line((column.heading, "bold")) for column in shown]
    empty = line("-")
    table = [
        headings,
        *([cell if cell.pieces and cell.plain else empty for cell in row] for row in cells),
    ]
    sizes = [[cell.width for cell in row] for row in table]
    widths = [
        _usual(column, _limits(number, width))
        for number, column in enumerate(zip(*sizes, strict=True))
    ]
    return [
        _laid_out(row, size, widths, shown, width) for row, size in zip(table, sizes, strict=True)
    ]


def _usual(widths: Sequence[int], limits: Iterable[float]) -> int:
    """Return a column's width: its widest cell, ignoring cells over a limit if they are few."""
    for limit in limits:
        within = [width for width in widths if width <= limit]
        if len(widths) - len(within) <= len(widths) * FEW:
            return max(within, default=0)
    return max(widths)


def _limits(number: int, width: int | None) -> tuple[float, ...]:
    """Return the limits of a column's width; only the first column, of names, has any."""
    return (math.inf,) if number or width is None else (width // 3, width // 2)


def _fitting(columns: list[Column], rows: list[list[Text]], width: int) -> list[int]:
    """Return the columns that are not empty and fit."""
    numbers = range(len(columns))
    there = [i for i in numbers if not columns[i].rank or any(row[i].plain for row in rows)]
    usual = [
        _usual((width_of(columns[i].heading), *(row[i].width for row in rows)), _limits(i, width))
        for i in numbers
    ]
    return _best(columns, usual, there, width)


def _best(columns: list[Column], widths: list[int], there: list[int], width: int) -> list[int]:
    """Return the present columns that fit; the one with the highest rank goes first."""
    needs = [min(LEAST, each) if c.cut else each for c, each in zip(columns, widths, strict=True)]
    kept = list(there)
    while sum(needs[i] + len(GAP) for i in kept) - len(GAP) > width:
        last = max(kept, key=lambda i: columns[i].rank)
        if not columns[last].rank:
            break
        kept.remove(last)
    return kept


def _laid_out(
    row: list[Text], sizes: list[int], widths: list[int], columns: list[Column], width: int | None
) -> Text:
    """Return one row; after a name longer than usual, its columns stand where there is room."""
    kept = list(range(len(row)))
    if width is not None and sizes[0] > widths[0]:
        widths = sizes
        kept = _best(columns, widths, kept, width)
    pieces: list[tuple[str, str]] = []
    used = 0
    for i in kept:
        cell, size = row[i], sizes[i]
        if columns[i].cut and width is not None and size > width - used:
            cell = cell.cut(width - used)
            size = cell.width
        pieces += cell.pieces
        pieces.append((" " * (widths[i] - size) + GAP, ""))
        used += widths[i] + len(GAP)
    return Text(tuple(pieces[:-1]))


def table(
    headings: Iterable[str], rows: Iterable[Iterable[str | Text]], width: int | None
) -> Iterator[Text]:
    """Yield a table of a few rows with whole cells; its last column is folded between words."""
    lines = [
        [line((heading, "bold")) for heading in headings],
        *([line(c) for c in r] for r in rows),
    ]
    *widths, _ = (max(cell.width for cell in column) for column in zip(*lines, strict=True))
    indent = sum(widths) + len(GAP) * len(widths)
    room = max(width - indent, LEAST) if width is not None else None
    for row in lines:
        *first, last = row
        folded = last.folded(room, whole_words=True) if room is not None else iter((last,))
        head = chain.from_iterable(
            (*cell.pieces, (" " * (usual - cell.width) + GAP, ""))
            for cell, usual in zip(first, widths, strict=True)
        )
        # The lines are laid out. Folding them again would break a path that is wider.
        yield Text((*head, *next(folded).pieces), is_to_copy=True)
        yield from (Text(((" " * indent, ""), *rest.pieces), is_to_copy=True) for rest in folded)


def grid(rows: Iterable[Iterable[str | Text]]) -> Iterator[Text]:
    """Yield rows with their cells aligned in columns; a row may have fewer cells than others."""
    cells = [[line(cell) for cell in row] for row in rows]
    widths = [max(c.width for c in column if c) for column in zip_longest(*cells)]
    for row in cells:
        *first, last = row
        padded = (
            (*c.pieces, (" " * (w - c.width) + GAP, ""))
            for c, w in zip(first, widths, strict=False)
        )
        yield Text((*chain.from_iterable(padded), *last.pieces))
