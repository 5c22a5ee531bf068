"""Reads settings from the nodes of a document, so that every mistake is found in one go.

A section is asked for each key that it may have, with the reader of its value and its default. If
something is wrong, it is noted and the default is taken, so that the rest is still read. When the
section closes, the keys that nobody asked for are the unknown ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from panicd.config.mistakes import MistakeList, Position, did_you_mean, excerpt
from panicd.config.values import WrongValueError
from panicd.config.yaml_document import Mapping, Node, Scalar, Sequence, item_path, key_path

T = TypeVar("T")
D = TypeVar("D")


class Value:
    """A node that is about to become a setting.

    Attributes:
        node: what the file has; None if it has nothing, which is no mistake in itself.
        path: its place in the configuration.
        position: its place in the file, or where it is missing.
    """

    def __init__(
        self, node: Node | None, path: str, position: Position, mistakes: MistakeList
    ) -> None:
        self.node = node
        self.path = path
        self.position = position
        self._mistakes = mistakes

    @property
    def given(self) -> bool:
        """Whether the file has something here."""
        return self.node is not None

    def wrong(self, expected: str, got: str = "") -> None:
        """Note that something else was expected here."""
        got = got or ("nothing" if self.node is None else str(self.node))
        self._mistakes.add(self.position, self.path, f"expected {expected} (got {got})")

    def read(self, reader: Callable[[Scalar], T], default: D) -> T | D:
        """Return the value; or the default if there is none or it is wrong."""
        if self.node is None:
            return default
        if not isinstance(self.node, Scalar):
            self.wrong("a single value")
            return default
        try:
            return reader(self.node)
        except WrongValueError as error:
            self.wrong(error.expected, f"{self.node}{error.hint}")
            return default

    def items(self, required: str | None = None) -> list["Value"]:
        """Return the items of a list; none if there is no list.

        Args:
            required: what is expected if there are none, if that is a mistake.
        """
        nodes = self.node.items if isinstance(self.node, Sequence) else ()
        if self.node is not None and not isinstance(self.node, Sequence):
            self.wrong("a list")
        elif not nodes and required is not None:
            self.wrong(required)
        return [
            Value(item, item_path(self.path, index), item.position, self._mistakes)
            for index, item in enumerate(nodes)
        ]

    def entries(self) -> Iterator[tuple[str, "Value"]]:
        """Yield the keys of a mapping that may have any keys, with their values."""
        if isinstance(self.node, Mapping):
            for key, entry in self.node.entries.items():
                value = entry.value
                path = key_path(self.path, key)
                yield key, Value(value, path, value.position, self._mistakes)
        elif self.node is not None:
            self.wrong("a mapping of keys to values")

    @contextmanager
    def section(self) -> Iterator["Section"]:
        """Open a mapping; an empty one if there is none. At its end unknown keys are noted."""
        empty = Mapping(self.position, {})
        if isinstance(self.node, Mapping):
            section = Section(self.node, self.path, self._mistakes)
        elif self.node is None:
            section = Section(empty, self.path, self._mistakes)
        else:
            self.wrong("a mapping of keys to values")
            # Missing keys of a missing mapping are no further mistakes: nobody reads this list.
            section = Section(empty, self.path, MistakeList(""))
        yield section
        section.close()


class Section:
    """A mapping that is asked for its known keys."""

    def __init__(self, mapping: Mapping, path: str, mistakes: MistakeList) -> None:
        self._mapping = mapping
        self._path = path
        self._mistakes = mistakes
        self._asked_for: list[str] = []
        self._before = len(mistakes)

    @property
    def sound(self) -> bool:
        """Whether no mistake was found since it was opened, so that its values can be compared."""
        return len(self._mistakes) == self._before

    def __getitem__(self, key: str) -> Value:
        """Return the value of a key, which is known from now on."""
        self._asked_for.append(key)
        entry = self._mapping.entries.get(key)
        node = entry.value if entry else None
        position = node.position if node else self._mapping.position
        return Value(node, key_path(self._path, key), position, self._mistakes)

    def close(self) -> None:
        """Note the keys that nobody asked for."""
        allowed = ", ".join(self._asked_for)
        for key, entry in self._mapping.entries.items():
            if key not in self._asked_for:
                hint = did_you_mean(key, self._asked_for)
                message = f'expected one of {allowed} (got "{excerpt(key)}"{hint})'
                self._mistakes.add(entry.position, key_path(self._path, key), message)
