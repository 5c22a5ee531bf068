"""Signatures: they tell one panic from another, and recognise the same panic elsewhere or later.

A signature has a *title*, the kind of trouble without the details of one guest, and up to three
*frames*, the functions in which the trouble happened. Its *hash* is made of the title and the first
frame. The other frames tell people more, but differ with the kernel's way to that place. If neither
frames nor title tell a panic from others of its kind, its signature is *weak*: it has no hash, and
no other panic counts as the same.

The hash begins with the version of its algorithm, so hashes of different versions never match.

docs/panics.md has the measurements.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from panicd.rules.bug_check import BugCheck
from panicd.rules.panic_text.cause import Cause, Worth
from panicd.rules.panic_text.consequences import PANIC
from panicd.rules.panic_text.heads import LOOKED_AT, Head, Nature, head_of
from panicd.rules.panic_text.line import LogLine
from panicd.rules.panic_text.trace import frames
from panicd.rules.payload import windows_bug_check
from panicd.rules.qapi import PanicInformation

VERSION: Final = 1
DIGITS: Final = 10  # of the hash: of 1,000 panics two share one with a chance of 1 in 2 million
TITLE_KEPT: Final = 120  # characters
NEXT: Final = 4  # lines of a report that say whether memory was read or written
_ACCESS: Final = re.compile(r"(Read|Write) (?:of size|at addr) ")
_STATUS: Final = 1 << 32  # a bug check's parameters below are codes, those above are addresses

_DIFFERS: Final = re.compile(
    r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?|0x[0-9a-f]+|\b(?=[a-z]*[0-9])[0-9a-f]{8,}\b|[0-9]+|\"[^\"]*\"",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature: the value to recognise a panic by.

    Attributes:
        title: the kind of trouble.
        frames: functions in which it happened, the most telling first.
        hash: the value to compare; empty: the signature is weak, and never compared.
    """

    title: str
    frames: tuple[str, ...] = ()
    hash: str = ""

    @property
    def full(self) -> str:
        """The title with all frames."""
        return " in ".join(filter(None, (self.title, " < ".join(self.frames))))


def signature_of(lines: Sequence[LogLine], cause: Cause) -> Signature | None:
    """Return the signature of the panic that a log ends with; None where it names no cause.

    Args:
        lines: the log's last lines, oldest first.
        cause: the cause found among these lines.
    """
    if cause.worth < Worth.LATER:
        return None
    head = cause.head or head_of(lines[cause.at].text)
    if head is None:
        return _strong(_own_reason(lines[cause.at].text))
    found = frames(lines, cause.at, head.nature)
    title = head.title + _access(lines[cause.at : cause.at + NEXT])
    if cause.worth is Worth.LATER or not _tells(head, found):
        return Signature(title[:TITLE_KEPT], found)
    if head.nature is Nature.REASON:
        return _strong(title, found, told_by=())
    return _strong(title, found)


def signature_of_payload(information: PanicInformation | None) -> Signature | None:
    """Return the signature of the bug check in a panic's payload; None if it has none."""
    check = windows_bug_check(information)
    return signature_of_bug_check(check) if check is not None else None


def signature_of_bug_check(check: BugCheck) -> Signature:
    """Return the signature of a Windows' bug check, by its code and small parameters."""
    # A status code may be sign-extended, as the bug check itself.
    codes = [
        number - 2**64 + _STATUS if number >= 2**64 - _STATUS else number
        for number in check.parameters
    ]
    small = [f"{code:#x}" if code < _STATUS else "…" for code in codes]
    name = check.name or "of no known name"
    return _strong(f"bug check {check.code:#x} {name} ({', '.join(small)})")


def _access(report: Sequence[LogLine]) -> str:
    """Return whether a sanitizer saw a read or a write, from the line after a report's head."""
    first, *others = report
    said = (_ACCESS.match(line.text) for line in others if line.caller == first.caller)
    return next((f" ({access[1].lower()})" for access in said if access), "")


def _tells(head: Head, found: tuple[str, ...]) -> bool:
    """Return whether a panic is distinguishable from others of its kind."""
    if head.nature is Nature.NOTE:
        return False
    return bool(found) or head.nature is Nature.REASON or "file" in head.words


def _own_reason(text: str) -> str:
    panic = PANIC.match(text)
    reason = (panic["reason"] if panic else text)[:LOOKED_AT]
    return "panic: " + " ".join(_DIFFERS.sub("#", reason).split())


def _strong(
    title: str, found: tuple[str, ...] = (), told_by: tuple[str, ...] | None = None
) -> Signature:
    title = title[:TITLE_KEPT]
    parts = (title, *(found[:1] if told_by is None else told_by))
    digest = hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()
    return Signature(title, found, f"{VERSION}-{digest[:DIGITS]}")
