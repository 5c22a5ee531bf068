"""A YAML file as nodes that know their positions.

It is built from PyYAML's events, not by its constructor, which keeps the last of doubled keys,
forgets positions, and reads ``no``, ``0123`` and ``12:30:45`` as something else. Here a scalar is
its text, and whether it was written plain; its reader says what it means.

Depth and size are bounded, and aliases count as what they stand for: every file costs at most
memory in proportion to ``NODES_MAX``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol, TypeAlias

import yaml

from panicd.config.mistakes import MistakeList, Position, excerpt

DEPTH_MAX: Final = 32
"""Levels of nesting. A configuration has five."""

NODES_MAX: Final = 500_000
"""Keys and values in one document: 20,000 domains with a dozen settings each."""

_LOADER: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

_FORBIDDEN_CHARACTER: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
"""Not ``c-printable`` (YAML 1.1, 5.1), or a byte order mark inside the text."""

_PRINTABLE: Final = "expected printable characters"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value, as it is written.

    Attributes:
        position: where it begins.
        text: its text.
        plain: whether it is written without quotes.
    """

    position: Position
    text: str
    plain: bool

    def __str__(self) -> str:
        if not self.plain:
            return f'"{excerpt(self.text)}"'
        return excerpt(self.text) or "nothing"


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    position: Position
    items: tuple["Node", ...]

    def __str__(self) -> str:
        return "a list" if self.items else "an empty list"


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys with their values, in the order of the file."""

    position: Position
    entries: dict[str, "Entry"]

    def __str__(self) -> str:
        return "a mapping"


Node: TypeAlias = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping: its position, and its value."""

    position: Position
    value: Node


def read_document(text: str, mistakes: MistakeList) -> Node | None:
    """Read a YAML document.

    A mistake that concerns one node only (doubled keys, merge keys, tags) is noted, and the rest
    is read.

    Args:
        text: the file's content.
        mistakes: takes the mistakes.

    Returns:
        The document's root; None if it has only comments.

    Raises:
        ConfigError: it isn't YAML, or is larger than a configuration can be.
    """
    forbidden = _FORBIDDEN_CHARACTER.search(text)
    if forbidden:
        position = position_in(text, forbidden.start())
        mistakes.add(position, "", f"{_PRINTABLE} (got {excerpt(forbidden[0])})")
        raise mistakes.error()
    return _Composer(_events(text, mistakes), mistakes).document()


def position_in(text: str, index: int) -> Position:
    """Return the position of the character at ``index``."""
    before = text[:index]
    return Position(before.count("\n") + 1, index - before.rfind("\n"))


def _events(text: str, mistakes: MistakeList) -> Iterator[yaml.Event]:
    position = Position(1, 1)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            position = _position(event.end_mark)
            yield event
    except yaml.MarkedYAMLError as error:
        position = _position(error.problem_mark)
        mistakes.add(position, "", _syntax_message(error, _character(text, position)))
        raise mistakes.error() from error
    except (ValueError, OverflowError) as error:
        # PyYAML without libyaml lets int() and chr() fail, on %YAML 1.99… and "\UFFFFFFFF". What
        # the composer raises does not pass through here.
        mistakes.add(position, "", f"expected valid YAML after this (got an error: {error})")
        raise mistakes.error() from error


class _Composer:
    """Makes nodes of PyYAML's events."""

    def __init__(self, events: Iterator[yaml.Event], mistakes: MistakeList) -> None:
        self._events = events
        self._mistakes = mistakes
        self._nodes = 0
        # None while the node is being read, as an alias to it would then contain itself
        self._anchors: dict[str, Node | None] = {}
        self._sizes: dict[str, int] = {}

    def document(self) -> Node | None:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        root = self._node(next(self._events), "", 0)
        next(self._events)  # the document's end
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            self._give_up(following, "", "expected a single document (got a second one)")
        return root

    def _node(self, event: yaml.Event, path: str, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if depth > DEPTH_MAX:
            self._give_up(event, path, f"expected at most {DEPTH_MAX} levels of nesting (got more)")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            message = f"expected a value without a tag (got {excerpt(tag)})"
            self._mistakes.add(_position(event.start_mark), path, message)
        start = self._nodes
        self._count(event, path, 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = self._content(event, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
            self._sizes[event.anchor] = self._nodes - start
        return node

    def _content(
        self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, path: str, depth: int
    ) -> Node:
        position = _position(event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            # Escapes in double quotes can add characters that the file itself can't have.
            if forbidden := _FORBIDDEN_CHARACTER.search(event.value):
                self._give_up(event, path, f"{_PRINTABLE} (got {excerpt(forbidden[0])})")
            return Scalar(position, event.value, plain=event.implicit[0])
        if isinstance(event, yaml.SequenceStartEvent):
            return Sequence(position, tuple(self._items(path, depth)))
        return Mapping(position, self._entries(path, depth))

    def _items(self, path: str, depth: int) -> Iterator[Node]:
        index = 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, item_path(path, index), depth + 1)
            index += 1

    def _entries(self, path: str, depth: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            position = _position(event.start_mark)
            key = self._node(event, path, depth + 1)
            name = key.text if isinstance(key, Scalar) else ""
            value_path = key_path(path, name)
            value = self._node(next(self._events), value_path, depth + 1)
            if not isinstance(key, Scalar):
                self._mistakes.add(position, path, f"expected a word as the key (got {key})")
            elif name == "<<" and key.plain:
                message = "expected the settings themselves (got a merge key, <<)"
                self._mistakes.add(position, path, message)
            elif name in entries:
                first = entries[name].position.line
                message = f"expected each key once (got it again; the first is on line {first})"
                self._mistakes.add(position, value_path, message)
            else:
                entries[name] = Entry(position, value)
        return entries

    def _alias(self, event: yaml.AliasEvent, path: str) -> Node:
        name = excerpt(event.anchor or "")
        if event.anchor not in self._anchors:
            hint = "text that begins with * needs quotes"
            self._give_up(event, path, f"expected an anchor &{name} above (got *{name}: {hint})")
        node = self._anchors[event.anchor]
        if node is None:
            self._give_up(event, path, f"expected a value that does not hold itself (got *{name})")
        self._count(event, path, self._sizes[event.anchor])
        return node

    def _count(self, event: yaml.Event, path: str, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > NODES_MAX:
            self._give_up(event, path, f"expected at most {NODES_MAX} keys and values (got more)")

    def _give_up(self, event: yaml.Event, path: str, message: str) -> NoReturn:
        self._mistakes.add(_position(event.start_mark), path, message)
        raise self._mistakes.error()


def key_path(path: str, key: str) -> str:
    """Return the path of a key's value."""
    return f"{path}.{excerpt(key)}" if path else excerpt(key)


def item_path(path: str, index: int) -> str:
    """Return the path of a list's item, counted from 0."""
    return f"{path}[{index}]"


class _Mark(Protocol):
    """What libyaml's marks and those of PyYAML's own parser have in common; they count from 0."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


def _position(mark: _Mark | None) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)


def _character(text: str, position: Position) -> str:
    # Of the line ends of splitlines(), the text has only those that YAML has too.
    lines = text.splitlines()[position.line - 1 : position.line]
    return lines[0][position.column - 1 : position.column] if lines else ""


def _syntax_message(error: yaml.MarkedYAMLError, character: str) -> str:
    got = str(error.problem)
    if error.context and error.context_mark:
        got += f", {error.context} that begins on line {error.context_mark.line + 1}"
    if error.context == "while scanning an alias":
        got += "; text that begins with * needs quotes"
    if character == "\t":
        got += "; it is a tab, and only spaces can indent"
    return f"expected valid YAML (got an error: {got})"
