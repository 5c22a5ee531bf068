"""What the kernel says of the host's load, of a QEMU's process and of its cgroup."""

import os
import time
from typing import Final

HOST_FILES: Final = (
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/version",
)
PROCESS_FILES: Final = ("status", "cgroup", "oom_score", "oom_score_adj", "limits")
CGROUP_FILES: Final = (
    "memory.current",
    "memory.max",
    "memory.events",
    "memory.pressure",
    "cpu.pressure",
    "io.pressure",
)
CGROUPS: Final = "/sys/fs/cgroup"
FILE_KEPT: Final = 64 * 1024  # bytes; a single read(2) returns all of a file in /proc or /sys
A_MOMENT: Final = 0.1  # seconds in which all panics have the same text of the host's files


class HostFacts:
    """Reads the files. Any thread may ask."""

    def __init__(self) -> None:
        self._read_at = -A_MOMENT
        self._of_host: dict[str, str] = {}

    def of(self, pid: int) -> dict[str, str]:
        """Return the text of each file of the host, and of a process; 0: of none. Blocking."""
        now = time.monotonic()
        if now - self._read_at >= A_MOMENT:
            self._of_host = {path: _text_of(path) for path in HOST_FILES}
            self._read_at = now
        return {**self._of_host, **(_of_process(pid) if pid else {})}


def _of_process(pid: int) -> dict[str, str]:
    texts = {path: _text_of(path) for path in (f"/proc/{pid}/{name}" for name in PROCESS_FILES)}
    cgroup = texts[f"/proc/{pid}/cgroup"].partition("0::/")[2].partition("\n")[0]
    if cgroup and ".." not in cgroup.split("/"):
        paths = (f"{CGROUPS}/{cgroup}/{name}" for name in CGROUP_FILES)
        texts |= {path: _text_of(path) for path in paths}
    return texts


def _text_of(path: str) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, FILE_KEPT).decode(errors="replace")
        finally:
            os.close(file)
    except OSError as error:
        return error.strerror or str(error)
