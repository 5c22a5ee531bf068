"""How busy this machine is; needs only Python, so it also runs in a container of a test."""

import os
from pathlib import Path


def slowness() -> float:
    """How many times longer than on an idle machine everything takes, at least 1.

    It counts what wants to run now, and on average during the last minute (proc(5),
    /proc/loadavg), for each processor.
    """
    last_minute, _, _, entities, _ = Path("/proc/loadavg").read_text(encoding="ascii").split()
    runnable = entities.partition("/")[0]
    processors = len(os.sched_getaffinity(0))
    return max(1.0, float(last_minute) / processors, float(runnable) / processors)
