"""The guest kernel's log of an incident, from the dump that was made of it.

It is read here, in the process of whoever asks, and not in the daemon: unpacking a large dump takes
minutes. Whoever asks needs the right to read the dump, which is panicd's user's.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import KernelLog, panic_line


def incident_log(incident: dict[str, Any]) -> tuple[object, Callable[[], None]]:
    """Return the log as plain values, and what prints it for people.

    Args:
        incident: as the daemon answers.

    Raises:
        NotReadableError: it can't be had; the text says why.
    """
    from panicd.qemu.dump_reader import read_dumped_log  # noqa: PLC0415 - slow to load

    path = _dump_of(incident)
    log = read_dumped_log(path)
    answer = {"dump": str(path), "panic_line": panic_line(log.lines), **asdict(log)}
    return answer, lambda: _show(log)


def _dump_of(incident: dict[str, Any]) -> Path:
    """Return the newest finished dump of an incident, which is there.

    Raises:
        NotReadableError: none is.
    """
    made = [
        Path(entry["detail"])
        for entry in incident["history"]
        if (entry["kind"], entry.get("step"), entry.get("outcome"))
        == ("step-ended", "Dump", "done")
    ]
    if not made:
        raise NotReadableError(f"incident {incident['id']} has no memory dump")
    if not made[-1].exists():
        raise NotReadableError(f"its dump is no longer there: {made[-1]}")
    return made[-1]


def _show(log: KernelLog) -> None:
    if not log.complete:
        click.echo("panicd: not all of the log could be read", err=True)
    for line in _lines(log):
        click.echo(line)


def _lines(log: KernelLog) -> Iterator[str]:
    """Yield the log as dmesg(1) shows it; its text is printable, see ``LogLine``."""
    for line in log.lines:
        yield f"[{line.timestamp:12.6f}] {line.text}"
