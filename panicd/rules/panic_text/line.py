"""A line of a guest's log."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogLine:
    r"""A line of the log.

    Attributes:
        seq: its record's number since boot; a record may have several lines.
        timestamp: the kernel's own clock, in seconds since boot.
        level: 0 (emergency) to 7 (debug).
        caller: ``T1``: the task with that number; ``C0``: that CPU, in an interrupt; empty where
            unknown.
        text: its text, printable: other characters are Python's escapes, ``\x1b``.
        by_kernel: the kernel itself wrote it, not somebody through /dev/kmsg.
    """

    seq: int
    timestamp: float
    level: int
    caller: str
    text: str
    by_kernel: bool = True


def printable(text: bytes) -> str:
    """Return a guest's line, with Python's escapes for unprintable characters."""
    line = text.decode(errors="backslashreplace").expandtabs()
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
