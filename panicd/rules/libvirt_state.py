"""How a domain stands in libvirt's words, and what that is in QEMU's.

Source: libvirt, ``include/libvirt/libvirt-domain.h`` (virDomainState and the reasons of each) and
``src/qemu/qemu_monitor.c`` (qemuMonitorVMStatusToPausedReason); seen with 9.0: after a reset a
panicked guest is 'paused (crashed)'.
"""

from typing import Final

from panicd.rules.machine.vm import Stand
from panicd.rules.qapi import RunState

NOSTATE, RUNNING, BLOCKED, PAUSED, SHUTDOWN, SHUTOFF, CRASHED, PMSUSPENDED = range(8)

_PAUSED: Final = {
    2: RunState.FINISH_MIGRATE,  # VIR_DOMAIN_PAUSED_MIGRATION
    3: RunState.SAVE_VM,
    4: RunState.SAVE_VM,  # a dump
    5: RunState.IO_ERROR,
    6: RunState.WATCHDOG,
    8: RunState.SHUTDOWN,
    10: RunState.PRELAUNCH,  # it was crashed, and was reset since
    11: RunState.PRELAUNCH,  # it is being started
    12: RunState.POSTMIGRATE,  # the source of a post-copy migration
    13: RunState.POSTMIGRATE,
}
_STATES: Final = {
    RUNNING: RunState.RUNNING,
    BLOCKED: RunState.RUNNING,
    PAUSED: RunState.PAUSED,
    SHUTDOWN: RunState.SHUTDOWN,
    SHUTOFF: RunState.SHUTDOWN,
    CRASHED: RunState.GUEST_PANICKED,
    PMSUSPENDED: RunState.SUSPENDED,
}


def run_state(state: int, reason: int) -> RunState:
    """Return the run state that a domain's state stands for, with libvirt's reason of it."""
    if state == PAUSED:
        return _PAUSED.get(reason, RunState.PAUSED)
    return _STATES.get(state, RunState.UNKNOWN)


def lags(stand: Stand, wanted: Stand) -> bool:
    """Whether libvirt has yet to take in what QEMU's events have told of the guest.

    libvirt takes in a stop at once. It takes in a panic later, in a thread of its own. If the guest
    is let run before that, libvirt says 'crashed' of a guest that runs. A reset need not be waited
    for: libvirt's commands to one domain wait for each other.

    Args:
        stand: as libvirt says.
        wanted: as the events said.
    """
    match wanted:
        case Stand.RUNS:
            return False
        case Stand.STOPPED:
            return stand is Stand.RUNS
        case Stand.PANICKED:
            return stand is not Stand.PANICKED
        case Stand.RESET:
            return stand not in {Stand.RESET, Stand.PANICKED}
