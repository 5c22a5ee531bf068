"""A running daemon, as a test sees it: the real program, or the same inside the test's process.

The test follows it by its log, which is read while it is written: a test waits for an event in the
log, never for time to pass::

    async with RunningDaemon.start(socket_dir, {"on_crash": "destroy"}) as daemon:
        await daemon.wait_armed("vm")
        …
        incident = await daemon.wait_incident("vm", ending="destroyed")
"""

from tests.parts.daemon.inside import DaemonInside
from tests.parts.daemon.observed import LoggedIncident, ObservedDaemon, scrape
from tests.parts.daemon.running import DaemonEndedError, ExecutedDaemon, Process, RunningDaemon

__all__ = [
    "DaemonEndedError",
    "DaemonInside",
    "ExecutedDaemon",
    "LoggedIncident",
    "ObservedDaemon",
    "Process",
    "RunningDaemon",
    "scrape",
]
