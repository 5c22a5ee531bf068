"""Signals to the demonstration's own processes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

_LOWEST_PRIORITY: Final = 19  # nice(2)


async def freeze(process: trio.Process) -> None:
    """Stop a child process by SIGSTOP, and return when it stands still."""
    process.send_signal(signal.SIGSTOP)
    stopped = partial(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    await trio.to_thread.run_sync(stopped, abandon_on_cancel=True)


def make_way(pid: int) -> None:
    """Leave the processors to others: set the lowest priority for each thread."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), _LOWEST_PRIORITY)


async def kill_by_pid_file(pid_file: Path, mark: str) -> None:
    """End a process that is not a child of this one, if it is there.

    Args:
        pid_file: Holds its process id.
        mark: Stands in its command line: the id may be another process's by now.
    """
    with trio.CancelScope(shield=True):
        await _kill_by_pid_file(pid_file, mark)


async def _kill_by_pid_file(pid_file: Path, mark: str) -> None:
    try:
        pid = int(await trio.Path(pid_file).read_text())
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return
    try:
        if mark in await trio.Path(f"/proc/{pid}/cmdline").read_text():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await trio.lowlevel.wait_readable(pidfd)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended meanwhile
    finally:
        os.close(pidfd)
