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
            it is not told.
        text: what it says, printable: what is not was written as Python would, ``\x1b``.
        by_kernel: the kernel itself said so, and not whoever wrote to /dev/kmsg.
    """

    seq: int
    timestamp: float
    level: int
    caller: str
    text: str
    by_kernel: bool = True


def printable(text: bytes) -> str:
    """Return a line of a guest's, with what is not printable written as Python would."""
    line = text.decode(errors="backslashreplace").expandtabs()
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
