"""A guest's last words: the line that tells why it panicked, its worth, the panic's signature.

A guest has a log in its memory and may have consoles. Each may lack lines that the other has: a
ring buffer its oldest, a console those that its log level held back. The better of them counts.
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
        worth: how much the words tell of the cause.
        line: the line that tells the cause, cut at ``MAX_TEXT``; empty: none does.
        signature: the panic's signature; None if no line tells its cause.
    """

    worth: Worth
    line: str = ""
    signature: Signature | None = None

    def or_better(self, other: "LastWords") -> "LastWords":
        """Return the words that are worth more; these, if both are worth the same."""
        return other if other.worth > self.worth else self


SILENCE: Final = LastWords(Worth.NOTHING)


def words_of_log(lines: Iterable[LogLine]) -> LastWords:
    """Return the last words of a kernel's log.

    Args:
        lines: the log's last lines, oldest first. Those not written by the kernel don't count.
    """
    said = tuple(lines)
    cause = find_cause(said)
    if cause.at < 0:
        return SILENCE
    return LastWords(cause.worth, said[cause.at].text[:MAX_TEXT], signature_of(said, cause))


def words_of_bug_check(check: BugCheck) -> LastWords:
    """Return a Windows guest's last words."""
    return LastWords(Worth.CAUSE, check.line, signature_of_bug_check(check))


def words_of_console(end: bytes) -> LastWords:
    """Return the last words on a console, whatever system the guest is.

    Args:
        end: the end of the console's output. Anybody in the guest may have written it.
    """
    console = read_console(end)
    words = words_of_log(console.lines)
    if words.line or console.is_linux:
        return words
    line = foreign_panic([line.text for line in console.lines])
    return LastWords(Worth.CONSEQUENCE, line[:MAX_TEXT]) if line else SILENCE
