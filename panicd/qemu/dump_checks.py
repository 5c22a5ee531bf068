"""What is asked before a guest's memory is dumped: can it be read, and what will it cost.

A dump reads the whole memory, and so makes all of it resident: an untouched guest of 8 GiB grew
from 40 MB to 8.4 GB. On an overcommitted host that brings the OOM killer, so the host's memory is
looked at first. An encrypted guest's (AMD SEV, Intel TDX) reads as nonsense from outside.

Sources: QAPI ``query-memory-size-summary`` (2.11), ``query-sev`` (2.12), ``tdx-guest`` (10.1);
proc(5): ``MemAvailable``, ``VmRSS``, ``HugetlbPages``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.monitor import Command, UncertainError
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.settings import DumpFormat

PROC: Final = Path("/proc")
LEAST_SHARE: Final = 1 / 16
"""What compression leaves of a guest's resident memory, at least; a small Linux's came to 0.3."""

_QUESTIONS: Final[tuple[Command, ...]] = (
    ("query-memory-size-summary", {}),
    ("query-sev", {}),
    ("qom-list", {"path": "/objects"}),
)


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """A guest's memory, in bytes.

    Attributes:
        size: all that it has; None where QEMU is too old to tell.
        resident: what of it the host holds, with QEMU's own; None where the process can't be seen.
    """

    size: int | None
    resident: int | None

    def least_dump(self, kind: DumpFormat, level: int, left_out: int) -> int:
        """Return how many bytes its dump is expected to take at least.

        Args:
            kind: the format.
            level: the dump level in force.
            left_out: bytes of memory that are not in it.
        """
        if self.size is None:
            return 0
        if kind is DumpFormat.ELF and level == 0:
            return self.size
        return int(LEAST_SHARE * max(0, min(self.size, self.resident or 0) - left_out))

    def growth(self) -> int:
        """Return how many bytes more the host will hold after a dump; 0 where it can't be told."""
        if self.size is None or self.resident is None:
            return 0
        return max(0, self.size - self.resident)


async def check_guest(session: Session) -> GuestMemory:
    """Find out whether a guest's memory can be dumped.

    Raises:
        DumpError: it is encrypted, or the host has too little memory for it.
        UncertainError: QEMU did not answer.
    """
    answers = await session.monitor.execute_all(_QUESTIONS, timeout=ANSWER_TIMEOUT)
    for answer in answers:
        if isinstance(answer, UncertainError):
            raise answer
    summary, sev, objects = answers
    if isinstance(sev, dict) and sev.get("enabled") is True:
        raise DumpError(DumpFailure.ENCRYPTED, "AMD SEV keeps the guest's memory from being read")
    if isinstance(objects, list) and any(_is_tdx(entry) for entry in objects):
        raise DumpError(DumpFailure.ENCRYPTED, "Intel TDX keeps the guest's memory from being read")
    resident = _resident(session.peer.pid) if session.process_known else None
    memory = GuestMemory(_size(summary), resident)
    available = _available()
    if available is not None and memory.growth() > available:
        raise DumpError(
            DumpFailure.NO_MEMORY,
            f"it would take {memory.growth()} bytes of memory, and the host has {available}",
        )
    return memory


def _is_tdx(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("type") == "child<tdx-guest>"


def _size(summary: object) -> int | None:
    if not isinstance(summary, dict):
        return None
    sizes = (summary.get("base-memory"), summary.get("plugged-memory", 0))
    known = [size for size in sizes if isinstance(size, int) and size >= 0]
    return sum(known) if len(known) == len(sizes) else None


def _resident(pid: int) -> int | None:
    sizes = [_kilobytes(PROC / str(pid) / "status", key) for key in ("VmRSS", "HugetlbPages")]
    return sum(size or 0 for size in sizes) if any(size is not None for size in sizes) else None


def _available() -> int | None:
    return _kilobytes(PROC / "meminfo", "MemAvailable")


def _kilobytes(path: Path, key: str) -> int | None:
    """Return a value that proc(5) gives in kB, in bytes; None where there is none."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
