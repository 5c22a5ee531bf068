"""A console's bytes as lines of a log: the last boot's lines, without their prefixes.

A prefix may be a login prompt or half a user's line, as anybody may write to a console; a
terminal's colours; the time from ``dmesg -T``, journald or a console server; the kernel's own time,
if its console shows it, and the caller.

Source: Linux, ``kernel/printk/printk.c`` (``print_prefix``); dmesg(1), ``--time-format``;
journalctl(1), ``--output``; ECMA-48 for a terminal's sequences.
"""

import re
from dataclasses import dataclass
from typing import Final

from panicd.rules.panic_text.line import LogLine, printable

BOOT_ANEW: Final = 5.0  # seconds: a time that goes back by so much is from another boot
STAMPED: Final = 3  # lines with the kernel's own time: then all its lines have one
LINE_KEPT: Final = 2048  # bytes of a line: Linux, PRINTK_MESSAGE_MAX
BEFORE: Final = 200  # characters before the kernel's time that may be anybody's

_TERMINAL: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z=>])")
_KERNEL_TIME: Final = re.compile(
    rb".{0,%d}?\[ *(?P<seconds>[0-9]{1,12}\.[0-9]{6,7})\]"
    rb"(?:\[ *(?P<caller>[TC][0-9]+)[^\]]{0,32}\])? (?P<text>.*)" % BEFORE
)
_CLOCK: Final = re.compile(
    rb"(?:<[0-9]+>)?\[?"
    rb"(?:(?:[A-Z][a-z]{2} )?[A-Z][a-z]{2} +[0-9]{1,2} |[0-9]{4}-[0-9]{2}-[0-9]{2}[T ])"
    rb"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2}(?:[.,][0-9]+)?)"
    rb"(?: [0-9]{4})?(?:Z|[+-][0-9:]{4,5})?\]?:? (?:[\w.-]+ kernel: )?(?P<text>.*)"
)
_LEVEL: Final = re.compile(rb"<[0-9]{1,3}>")
_BOOT: Final = re.compile(rb"Linux version [0-9]+\.")
_PANIC: Final = b"Kernel panic - not syncing: "
_OVER: Final = re.compile(rb"Rebooting in [0-9]+ seconds|---\[ end Kernel panic")
_ONLY_LINUX: Final = re.compile(rb"Command line: |Call Trace:|systemd\[1\]: |Run /\S+ as init ")
_DAY: Final = 86400.0  # seconds


@dataclass(frozen=True, slots=True)
class Console:
    """A console's output of the last boot.

    Attributes:
        lines: the kernel's lines; all lines, if the kernel's have no time.
        is_linux: Linux wrote them, as far as they show.
    """

    lines: tuple[LogLine, ...]
    is_linux: bool


def read_console(end: bytes) -> Console:
    """Return the lines at a console's end.

    Args:
        end: the end of the console's output. Anybody in the guest may have written it.
    """
    whole = [_TERMINAL.sub(b"", line)[:LINE_KEPT] for line in end.splitlines()]
    times = [_KERNEL_TIME.match(line) for line in whole]
    stamped = sum(time is not None for time in times) >= STAMPED
    lines: list[LogLine] = []
    is_linux = False
    over = 0  # how many of the lines belong to a boot that ended with a panic
    at = 0.0
    for number, (line, time) in enumerate(zip(whole, times, strict=True)):
        before, caller = at, b""
        if time is not None:
            at, caller, text = float(time["seconds"]), time["caller"] or b"", time["text"]
        elif stamped:
            continue
        elif clock := _CLOCK.match(line):
            at, text = _seconds(clock, at), clock["text"]
        else:
            text = _LEVEL.sub(b"", line, count=1)
        boots = _BOOT.match(text) is not None
        is_linux = is_linux or boots or _ONLY_LINUX.match(text) is not None
        if boots or (time is not None and at < before - BOOT_ANEW):
            lines.clear()
            over = 0
        elif over and text.startswith(_PANIC):
            del lines[:over]
            over = 0
        lines.append(LogLine(number, at, 0, caller.decode(), printable(text)))
        if _OVER.match(text):
            over = len(lines)
    return Console(tuple(lines), is_linux)


def _seconds(clock: re.Match[bytes], before: float) -> float:
    """Return a time of day as seconds that continue from ``before``, past midnight too."""
    second = float(clock["second"].replace(b",", b"."))
    of_day = int(clock["hour"]) * 3600 + int(clock["minute"]) * 60 + second
    day = before // _DAY * _DAY
    return day + of_day + (_DAY if of_day + _DAY / 2 < before - day else 0.0)
