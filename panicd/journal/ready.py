"""Entries that were encoded before their time and their incident are known.

``rules.machine.ahead`` foresees what a panic leads to. So the journal can make the text of its
entries and their share in the totals beforehand. When the panic comes, only the time and the
incident's id are filled in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final, NamedTuple, overload

from panicd.journal.codec import encode
from panicd.journal.totals import Total, increments
from panicd.rules.incident import AnyEntry, Incident, Opened, apply
from panicd.rules.notification import notice_of

_HEAD: Final = '{"at":0.0,'
"""Every entry begins with its time; here it is 0."""


class _Made(NamedTuple):
    """What the journal makes of one entry: its text after the time, and what it adds."""

    rest: str
    counts: tuple[tuple[tuple[Total, str], int], ...]
    is_told: bool


class Template:
    """The first entries of an incident, noted at 0.

    Args:
        entries: the first opens it.
        made: what was made of those after it, for another domain.

    Attributes:
        opened: the first of them.
        entries: all.
    """

    def __init__(
        self, opened: Opened, entries: Sequence[AnyEntry], made: "Sequence[_Made] | None" = None
    ) -> None:
        self.opened = opened
        self.entries: tuple[AnyEntry, ...] = (opened, *entries)
        first = _make(None, opened)
        self._after_first = _make_all(self.entries) if made is None else made
        self.made = (first, *self._after_first)

    def of(self, opened: Opened) -> "Template":
        """Return the same for another domain, or another process of its QEMU."""
        return Template(opened, self.entries[1:], self._after_first)

    def at(self, at: float) -> "Ready":
        """Return the entries as they are when they are noted."""
        return Ready(self, at)


class Ready(Sequence[AnyEntry]):
    """Entries whose text exists: they themselves are made only if somebody wants to see them."""

    def __init__(self, template: Template, at: float) -> None:
        self._template = template
        self.at = at

    def __len__(self) -> int:
        return len(self._template.entries)

    @overload
    def __getitem__(self, index: int) -> AnyEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AnyEntry]: ...
    def __getitem__(self, index: int | slice) -> AnyEntry | Sequence[AnyEntry]:
        return self._entries[index]

    def __iter__(self) -> Iterator[AnyEntry]:
        return iter(self._entries)

    @property
    def opened(self) -> Opened:
        """The first, without its time."""
        return self._template.opened

    @cached_property
    def texts(self) -> list[str]:
        """What ``encode`` makes of each."""
        head = f'{{"at":{self.at!r},'
        return [head + made.rest for made in self._template.made]

    @property
    def counts(self) -> Iterator[tuple[tuple[Total, str], int]]:
        """What they add to the totals."""
        return (count for made in self._template.made for count in made.counts)

    @property
    def told(self) -> Iterator[int]:
        """The positions of those that lead to a notification."""
        return (i for i, made in enumerate(self._template.made) if made.is_told)

    @cached_property
    def _entries(self) -> tuple[AnyEntry, ...]:
        return tuple(replace(entry, at=self.at) for entry in self._template.entries)


def _make_all(entries: Sequence[AnyEntry]) -> tuple[_Made, ...]:
    """Make what is made of all entries except the first, which opens the incident."""
    opened, *others = entries
    assert isinstance(opened, Opened)
    incident, made = Incident("", opened), []
    for entry in others:
        made.append(_make(incident, entry))
        incident = apply(incident, entry)
    return tuple(made)


def _make(before: Incident | None, entry: AnyEntry) -> _Made:
    text = encode(entry)
    assert text.startswith(_HEAD), text
    counts = tuple(((total, label), n) for total, label, n in increments(before, entry))
    return _Made(text.removeprefix(_HEAD), counts, notice_of(before, entry) is not None)
