"""A guest's consoles: the files that its QEMU writes them to, and the panic's words in one.

Source: qemu-options.hx (``-chardev``, ``-serial``), Linux ``kernel/printk/printk.c`` for the time
before each line.
"""

import re
from collections.abc import Sequence
from typing import Final

from panicd.rules.command_line import options, properties
from panicd.rules.kernel_log import LogLine, panic_line, printable

_STAMPED: Final = re.compile(
    rb"\[ *(?P<seconds>[0-9]{1,12}\.[0-9]{6})\](?:\[ *[TC][0-9]+\])? (?P<text>.*)"
)
BOOT_ANEW: Final = 5.0  # seconds by which a time is before the last one only in another boot


def console_files(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the files that a QEMU writes its guest's consoles to, as its arguments spell them.

    Args:
        arguments: the whole of argv. A monitor's log is no console and left out.
    """
    chardevs: dict[str, str] = {}
    monitors: set[str] = set()
    files: list[str] = []
    for option, value in options(arguments):
        given = properties(value)
        match option:
            case "serial" | "virtioconsole" | "debugcon" if value.startswith("file:"):
                files.append(value.removeprefix("file:"))
            case "chardev":
                backend = value.partition(",")[0]
                path = given.get("logfile") or (given.get("path", "") if backend == "file" else "")
                chardevs[given.get("id", "")] = path
            case "mon":
                monitors.add(given.get("chardev", value))
            case "qmp" | "qmp-pretty" | "monitor" if value.startswith("chardev:"):
                monitors.add(value.removeprefix("chardev:"))
            case "object" if value.startswith(("monitor-qmp,", "monitor-hmp,")):
                monitors.add(given.get("chardev", ""))
            case _:
                pass
    files += [path for name, path in chardevs.items() if path and name not in monitors]
    return tuple(dict.fromkeys(files))


def console_panic_line(end: bytes) -> str:
    """Return the line at a console's end that says why the kernel panicked; empty: none does.

    Only what bears the kernel's time counts, and only the last boot, for a log goes on over many.

    Args:
        end: the end of what the guest wrote. Anybody in the guest may have.
    """
    lines: list[LogLine] = []
    for number, line in enumerate(end.splitlines()):
        stamped = _STAMPED.match(line)
        if stamped is None:
            continue
        at = float(stamped["seconds"])
        if lines and at < lines[-1].timestamp - BOOT_ANEW:
            lines.clear()
        lines.append(LogLine(number, at, 0, "", printable(stamped["text"])))
    return panic_line(lines)
