"""Why a QEMU ended, or seems to have ended: several endings look alike from a monitor.

Source: QAPI ``ShutdownCause`` (``qapi/run-state.json``), which a SHUTDOWN event carries from QEMU
4.0 on; wait(2) for the exit status.
"""

import os
import signal
from enum import StrEnum

from panicd.rules.qapi import ShutdownEvent


class Cause(StrEnum):
    """Why a monitor's session ended."""

    GUEST_PANIC = "guest-panic"  # QEMU exits on a panic where it is not armed
    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"  # the guest rebooted, and QEMU was told to end instead
    HOST_QUIT = "host-quit"  # somebody told QEMU to end, by a monitor, its window or a signal
    QEMU_ERROR = "qemu-error"  # QEMU gave up: it said so, or exited with an error
    QEMU_EXITED = "qemu-exited"
    QEMU_CRASHED = "qemu-crashed"  # QEMU's own fault raised a signal
    HOST_KILLED = "host-killed"  # by SIGKILL: from somebody, or from the kernel out of memory
    GONE = "gone"  # it has ended, and nothing tells why
    DISCONNECTED = "disconnected"  # only the connection ended, as far as is known


_BY_REASON = {
    "guest-panic": Cause.GUEST_PANIC,
    "guest-shutdown": Cause.GUEST_SHUTDOWN,
    "guest-reset": Cause.GUEST_RESET,
    "subsystem-reset": Cause.GUEST_RESET,
    "host-qmp-system-reset": Cause.HOST_QUIT,
    "host-qmp-quit": Cause.HOST_QUIT,
    "host-signal": Cause.HOST_QUIT,
    "host-ui": Cause.HOST_QUIT,
    "host-error": Cause.QEMU_ERROR,
}


def cause_of_end(shutdown: ShutdownEvent | None, gone: bool, status: int | None) -> Cause:
    """Return why a session ended.

    Args:
        shutdown: the SHUTDOWN event, where one was received.
        gone: the process has ended; False where that is not known.
        status: its exit status as wait(2) gives it; None if panicd can't get it.
    """
    if not gone:
        return Cause.DISCONNECTED
    if status is not None and os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status) == signal.SIGKILL
        return Cause.HOST_KILLED if killed else Cause.QEMU_CRASHED
    if shutdown is not None and shutdown.reason in _BY_REASON:
        return _BY_REASON[shutdown.reason]
    if shutdown is not None and shutdown.guest:
        return Cause.GUEST_SHUTDOWN
    if status is None:
        return Cause.GONE
    return Cause.QEMU_ERROR if os.WEXITSTATUS(status) else Cause.QEMU_EXITED
