"""libvirt's domain states, translated to QEMU's run states.

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
    """Return the run state for libvirt's state of a domain and libvirt's reason for that state."""
    if state == PAUSED:
        return _PAUSED.get(reason, RunState.PAUSED)
    return _STATES.get(state, RunState.UNKNOWN)


def lags(stand: Stand, wanted: Stand) -> bool:
    """Whether libvirt lags behind QEMU's events about the guest.

    libvirt notes a stop at once. It notes a panic later, in a thread of its own. If the guest runs
    again before that, libvirt says 'crashed' of a running guest. panicd need not wait for a reset:
    libvirt's commands to one domain wait for each other.

    Args:
        stand: the guest's state according to libvirt.
        wanted: its state according to the events.
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
