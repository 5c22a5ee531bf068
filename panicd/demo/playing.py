"""What a demonstration needs around it: a QEMU, a directory, and an end in which all of it goes."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from panicd.demo.background import background
from panicd.demo.daemon import DaemonEndedError
from panicd.demo.lab import Lab
from panicd.demo.qemu import (
    QemuMissingError,
    QemuStartError,
    SocketPathError,
    find_qemu,
    usable_accelerator,
)
from panicd.demo.report import OutputClosedError, Report

DONE: Final = 0
FAILED: Final = 1

Play = Callable[[Report, Lab, trio.Nursery], Awaitable[int]]
"""Shows something in a lab, and returns the exit status; what goes on beside it, in the nursery.

Raises:
    QemuStartError: A QEMU did not start.
    SocketPathError: The temporary directory's path is too long for sockets.
    DaemonEndedError: panicd ended.
    trio.TooSlowError: It took too long.
"""


def play(what: Play, *, until_interrupted: bool = False) -> int:
    """Show something on standard output, in a temporary directory that goes with all processes.

    Args:
        what: It.
        until_interrupted: It ends when somebody interrupts it, and that is no fault.

    Returns:
        Its exit status: 1 if there is no QEMU, or if something was not as it should be.
    """
    report = Report()
    try:
        qemu = find_qemu()
    except QemuMissingError as error:
        report.fault(str(error))
        return FAILED
    accelerator = usable_accelerator(qemu)
    with tempfile.TemporaryDirectory(prefix="panicd-demo-") as directory:
        lab = Lab(Path(directory), qemu, accelerator)
        status = trio.run(_play, what, report, lab)
    if status is not None:
        return status
    end = "its processes and files are gone"
    if until_interrupted:
        report.say(f"The demonstration has ended; {end}.")
        return DONE
    report.fault(f"interrupted; {end}")
    return FAILED


async def _play(what: Play, report: Report, lab: Lab) -> int | None:
    """Show it until its end; None if somebody interrupts it."""
    with trio.CancelScope() as interrupted:
        async with background() as nursery:
            await nursery.start(_cancel_on_signal, interrupted)
            try:
                return await what(report, lab, nursery)
            except (QemuStartError, SocketPathError, DaemonEndedError) as error:
                report.fault(str(error))
                return FAILED
            except OutputClosedError:
                return FAILED
    return None


async def _cancel_on_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """End it when it is interrupted; a KeyboardInterrupt could come anywhere."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
