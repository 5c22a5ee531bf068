"""The kernel log of an incident's guest: all of it from a dump, or else its end.

A dump is read here, in the process of whoever asks, not in the daemon: unpacking a large one takes
minutes. Whoever asks needs the right to read it, which belongs to panicd's user.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import KernelLog, panic_line
from panicd.rules.printable import escape


def incident_log(incident: dict[str, Any]) -> tuple[object, Callable[[], None]]:
    """Return the log as plain values, and a function that prints it for people.

    Args:
        incident: as the daemon answers.

    Raises:
        NotReadableError: there is none; the text says why.
    """
    from panicd.dumps.reader import read_dumped_log  # noqa: PLC0415 - slow to load

    path, why_not = _dump_of(incident)
    if path is not None:
        try:
            log = read_dumped_log(path)
        except NotReadableError as error:
            why_not = str(error)
        else:
            why = incident["panic_line"] or panic_line(log.lines)
            answer = {"dump": str(path), "panic_line": why, **asdict(log)}
            return answer, lambda: _show(log)
    return _kept(incident, why_not)


def _dump_of(incident: dict[str, Any]) -> tuple[Path | None, str]:
    """Return the newest finished dump of an incident that still exists, or why there is none."""
    made = [
        Path(entry["detail"])
        for entry in incident["history"]
        if (entry["kind"], entry.get("step"), entry.get("outcome"))
        == ("step-ended", "Dump", "done")
    ]
    if not made:
        return None, f"incident {incident['id']} has no memory dump"
    if not made[-1].exists():
        return None, f"its dump is no longer there: {made[-1]}"
    return made[-1], ""


def _kept(incident: dict[str, Any], why_not: str) -> tuple[object, Callable[[], None]]:
    """Return what was kept of the log, or of a console, when the guest panicked.

    Raises:
        NotReadableError: nothing was kept; the text also says why no dump has it.
    """
    evidence = incident["evidence"] or {"files": {}}
    names = [
        name
        for name in ("kernel.log", "bug-check.txt", "console-0.log")
        if name in evidence["files"]
    ]
    if not names:
        raise NotReadableError(f"{why_not}, and its evidence has none")
    path = Path(incident["evidence_directory"], names[0])
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise NotReadableError(f"{path}: {error.strerror}") from error
    answer = {"file": str(path), "panic_line": incident["panic_line"], "lines": lines}

    def show() -> None:
        click.echo(f"panicd: the end of it, from {path}: {why_not}", err=True)
        for line in lines:
            click.echo(escape(line))

    return answer, show


def _show(log: KernelLog) -> None:
    if not log.complete:
        click.echo("panicd: not all of the log could be read", err=True)
    for line in _lines(log):
        click.echo(line)


def _lines(log: KernelLog) -> Iterator[str]:
    """Yield the log as dmesg(1) shows it; its text is printable, see ``LogLine``."""
    for line in log.lines:
        yield f"[{line.timestamp:12.6f}] {line.text}"
