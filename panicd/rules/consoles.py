"""A guest's consoles: the files that QEMU writes them to.

Source: qemu-options.hx (``-chardev``, ``-serial``).
"""

from collections.abc import Sequence

from panicd.rules.command_line import options, properties


def console_files(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the files that a QEMU writes its guest's consoles to, as its arguments spell them.

    Args:
        arguments: the whole of argv. A monitor's log is no console, and does not count.
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
