"""Which of the configuration's rules applies to a domain: the first that matches."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from panicd.rules.settings import Policy

_WILDCARD: Final = re.compile(r"[*?\[]")
_UUID: Final = re.compile("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


@dataclass(frozen=True, slots=True)
class DomainRule:
    """What is configured for some domains.

    Attributes:
        match: a glob on the name (fnmatch, case-sensitive), or a UUID.
        policy: the defaults, with what this rule changes in them.
    """

    match: str
    policy: Policy


class RuleIndex:
    """Finds the first pattern that matches a domain.

    It looks up patterns without wildcards, however many there are. Then it tries only the globs
    above the one that it found.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._names: dict[str, int] = {}
        self._uuids: dict[str, int] = {}
        self._globs: dict[str, tuple[int, re.Pattern[str]]] = {}
        self._count = 0
        for pattern in patterns:
            self.append(pattern)

    def append(self, pattern: str) -> None:
        """Add a pattern below the others."""
        index = self._count
        self._count += 1
        if is_uuid(pattern):
            self._uuids.setdefault(pattern.lower(), index)
        elif _WILDCARD.search(pattern):
            self._globs.setdefault(pattern, (index, re.compile(fnmatch.translate(pattern))))
        else:
            self._names.setdefault(pattern, index)

    def first(self, name: str, uuid: str | None) -> int | None:
        """Return the index of the first pattern that matches a domain; None if none does.

        Args:
            name: the domain's name, which may itself be a UUID.
            uuid: its UUID, in upper or lower case.
        """
        found = [self._names.get(name), self._uuids.get(name.lower())]
        if uuid is not None:
            found.append(self._uuids.get(uuid.lower()))
        best = min((index for index in found if index is not None), default=None)
        for index, glob in self._globs.values():
            if best is not None and index > best:
                break
            if glob.match(name):
                return index
        return best

    def covering(self, pattern: str) -> int | None:
        """Return the index of the first pattern that matches everything that this one would.

        None if there is none. Two globs are only known to match the same if they are equal, or if
        the first is ``*``.
        """
        if not _WILDCARD.search(pattern):
            return self.first(pattern, None)
        found = [self._globs[glob][0] for glob in ("*", pattern) if glob in self._globs]
        return min(found, default=None)


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID, in upper or lower case."""
    return _UUID.fullmatch(text) is not None
