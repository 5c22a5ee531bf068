"""What a process has and uses, by proc(5): memory, processor time, file descriptors."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import trio

from tests.parts.patience import fail_after

CLOSED_WITHIN = 10
"""Seconds until what has ended has closed its files."""


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used (``stat``)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def was_signalled(pid: int) -> bool:
    """Whether a process that is stopped has ended, or is to by SIGTERM (``State``, ``ShdPnd``)."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    pending = int(fields["ShdPnd"], 16)
    return "T (stopped)" not in fields["State"] or bool(pending >> (signal.SIGTERM - 1) & 1)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds (``VmRSS``)."""
    return _status_bytes(pid, "VmRSS")


def address_space(pid: int) -> int:
    """Return the bytes of address space that a process has: what RLIMIT_AS limits."""
    return _status_bytes(pid, "VmSize")


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has held (``VmHWM``) since :func:`forget_peak`."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Have the peak count from now (``clear_refs``)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_bytes(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def open_files(pid: int | str = "self") -> list[str]:
    """Return what the file descriptors of a process stand for, without those of this look."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:  # the directory's own, or just closed
            continue
    return [target for target in found if not target.startswith("/proc/")]


async def wait_files_closed(before: list[str], pid: int | str = "self") -> None:
    """Wait until a process has no more files open than it had.

    What has just ended, such as a connection of the test's own, may still be about to be closed.

    Args:
        before: What it had open (:func:`open_files`).
        pid: Which it is.

    Raises:
        AssertionError: More are still open when the limit is over.
    """
    try:
        with fail_after(CLOSED_WITHIN):
            while len(open_files(pid)) > len(before):
                await trio.lowlevel.checkpoint()
    except trio.TooSlowError:
        more = Counter(map(_kind, open_files(pid))) - Counter(map(_kind, before))
        raise AssertionError(f"still open: {dict(more)}") from None


def _kind(target: str) -> str:
    """Return what a file descriptor stands for, without what is another for each."""
    return target.partition(":[")[0]
