"""The mistakes in a configuration file, and where they are."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple

QUOTED_LENGTH: Final = 60
"""Characters of the file's text that a message repeats: enough to recognise the place."""

NEAREST_LENGTH: Final = 40
"""Longer words get no 'did you mean': no key is half as long, and the comparison is quadratic."""


class Position(NamedTuple):
    """A place in a text file. Lines and columns count from 1, columns in characters."""

    line: int
    column: int


class Mistake(NamedTuple):
    """One mistake; they compare in the order in which they are listed.

    Attributes:
        line: from 1; 0 for the file as a whole, such as one that can't be read.
        column: from 1, in characters.
        path: the setting, such as ``domains[2].restart.max``; empty for the whole document.
        message: what was expected, and what is there instead.
        file: as it was named to panicd.
    """

    line: int
    column: int
    path: str
    message: str
    file: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (where, self.path, self.message) if part)


class ConfigError(Exception):
    """A configuration that panicd can't use; the operator must change it.

    Attributes:
        mistakes: all of them, by position.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: tuple[Mistake, ...] = tuple(sorted(set(mistakes)))
        super().__init__("\n".join(map(str, self.mistakes)))


class MistakeList:
    """The mistakes found in one file so far."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._mistakes: list[Mistake] = []

    def add(self, position: Position, path: str, message: str) -> None:
        """Note one more."""
        self._mistakes.append(Mistake(*position, path, message, self._file))

    def __len__(self) -> int:
        return len(self._mistakes)

    def error(self) -> ConfigError:
        """Return them as the exception to raise."""
        return ConfigError(self._mistakes)


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line, with nothing in it that acts on a terminal."""
    shown = text[:QUOTED_LENGTH]
    if not shown.isprintable():
        shown = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown
        )
    return shown + "…" * (len(text) > QUOTED_LENGTH)


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """Return ``; did you mean "…"?`` with the nearest of the allowed words, or nothing."""
    if len(word) > NEAREST_LENGTH:
        return ""
    nearest = get_close_matches(word.casefold().replace(" ", "_"), allowed, n=1)
    return f'; did you mean "{excerpt(nearest[0])}"?' if nearest else ""
