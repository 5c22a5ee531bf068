"""A guest's last words: the line that says why it panicked, how much that is worth, whose they are.

A guest has a log in its memory and may have consoles. Each may have lost what the other has: a ring
buffer its oldest lines, a console what no level let through. The better of them counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from panicd.rules.bug_check import BugCheck
from panicd.rules.panic_text.cause import Worth, find_cause
from panicd.rules.panic_text.console import read_console
from panicd.rules.panic_text.foreign import foreign_panic
from panicd.rules.panic_text.line import LogLine
from panicd.rules.qapi import MAX_TEXT
from panicd.rules.signature import Signature, signature_of, signature_of_bug_check


@dataclass(frozen=True, slots=True)
class LastWords:
    """What a guest said of its panic.

    Attributes:
        worth: how much that is.
        line: that says why, cut at ``MAX_TEXT``; empty: none does.
        signature: what the panic is known by; None where its cause isn't told.
    """

    worth: Worth
    line: str = ""
    signature: Signature | None = None

    def or_better(self, other: "LastWords") -> "LastWords":
        """Return what is worth more; of two that are worth the same, these."""
        return other if other.worth > self.worth else self


SILENCE: Final = LastWords(Worth.NOTHING)


def words_of_log(lines: Iterable[LogLine]) -> LastWords:
    """Return what a kernel's log says of its panic.

    Args:
        lines: the log's last lines, oldest first. Those not written by the kernel don't count.
    """
    said = tuple(lines)
    cause = find_cause(said)
    if cause.at < 0:
        return SILENCE
    return LastWords(cause.worth, said[cause.at].text[:MAX_TEXT], signature_of(said, cause))


def words_of_bug_check(check: BugCheck) -> LastWords:
    """Return what a Windows says of its panic."""
    return LastWords(Worth.CAUSE, check.line, signature_of_bug_check(check))


def words_of_console(end: bytes) -> LastWords:
    """Return what a console says of a guest's panic, whatever system the guest is.

    Args:
        end: of what the guest wrote. Anybody in the guest may have.
    """
    console = read_console(end)
    words = words_of_log(console.lines)
    if words.line or console.is_linux:
        return words
    line = foreign_panic([line.text for line in console.lines])
    return LastWords(Worth.CONSEQUENCE, line[:MAX_TEXT]) if line else SILENCE
