"""Finds out before a dump whether a guest's memory can be read, and what that costs.

A dump makes resident what it reads: an untouched guest of 8 GiB grew from 40 MB to 8.4 GB when
panicd read all of it. On an overcommitted host that calls the OOM killer, so panicd looks at the
host's memory first. An encrypted guest's memory (AMD SEV, Intel TDX) reads as nonsense from
outside.

QEMU only claims a memory size. The claim bounds what QEMU may write. The host's knowledge of the
QEMU process, or of itself, bounds the claim.

Sources: QAPI ``query-memory-size-summary`` (2.11), ``query-sev`` (2.12), ``tdx-guest`` (10.1);
``x-query-ramblock`` (6.2); proc(5): ``MemAvailable``, ``MemTotal``, ``SwapTotal``,
``VmRSS``, ``VmSize``, ``HugetlbPages``, ``RssAnon``, ``RssShmem``, ``VmSwap``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

from panicd.qemu.dump_error import DumpError, DumpFailure
from panicd.qemu.monitor import Command, UncertainError
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.rules.capability import Version
from panicd.rules.settings import DumpFormat

PROC: Final = Path("/proc")
LEAST_SHARE: Final = 1 / 16
"""The least share that compression leaves of resident memory; a small Linux's came to 0.3."""

USUAL_SHARE: Final = 0.3
"""The usual share that compression leaves: of a small Linux's whole memory, and of files."""

STRUCTURES_SHARE: Final = 0.1
"""The same of a Linux's page structures, which are much alike."""

NEARLY_EMPTY: Final = 1 / 32
"""The share of a guest's memory up to which QEMU's kdump is faster than its ELF core."""

MARGIN: Final = 64 << 20
"""Bytes that a dump may have beside the memory: notes of 4,096 CPUs, headers, small blocks."""

MARGIN_SHARE: Final = 1 / 32
"""A share of the memory, also beside it: a kdump's headers for each page and each piece."""

LARGEST: Final = (1 << 63) - 1  # bytes: what QAPI's `size` and a file's length can be

UNTOLD: Final = 512 << 20
"""Bytes that video adapters may have, if QEMU is too old to tell of them."""

BLOCKS_SINCE: Final[Version] = (6, 2, 0)

WRITTEN: Final = ("RssAnon", "RssShmem", "HugetlbPages", "VmSwap")
"""What the host holds of a process's memory that is no file's; reading does not add to it."""

_BACKEND: Final = "child<memory-backend-"
_PRIVATE: Final = f"{_BACKEND}ram>"
_KILOBYTES: Final = re.compile(r"^(\w+):\s+(\d+) kB$", re.ASCII | re.MULTILINE)
_BLOCK: Final = re.compile(r"\b0x([0-9a-f]{16})\b", re.ASCII)

_QUESTIONS: Final[tuple[Command, ...]] = (
    ("query-memory-size-summary", {}),
    ("x-query-ramblock", {}),
    ("query-sev", {}),
    ("qom-list", {"path": "/objects"}),
)


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """A guest's memory, in bytes.

    Attributes:
        size: all of it; None if QEMU is too old to tell.
        resident: the part that the host holds, with QEMU's own; None if the process can't be seen.
        blocks: all of QEMU's blocks of memory, those of its video adapters among them; None if
            QEMU doesn't tell.
        possible: the most that it can have by the host's knowledge; None if the host knows nothing.
        untold: memory that it may have besides, of which QEMU is too old to tell.
        touched: no more than this was ever written; None if the host can't tell.
    """

    size: int | None
    resident: int | None
    blocks: int | None = None
    possible: int | None = None
    untold: int = 0
    touched: int | None = None

    @property
    def is_nearly_empty(self) -> bool:
        """Whether next to nothing was ever written to it."""
        if self.size is None or self.touched is None:
            return False
        return self.touched <= self.size * NEARLY_EMPTY

    def most_dump(self) -> int | None:
        """Return how many bytes QEMU may write as its dump; None if nothing is known."""
        told = max((size for size in (self.size, self.blocks) if size is not None), default=None)
        bounds = [size for size in (told, self.possible) if size is not None]
        if not bounds:
            return None
        return int(min(bounds) * (1 + MARGIN_SHARE)) + MARGIN + self.untold

    def least_dump(self, kind: DumpFormat, level: int, left_out: int) -> int:
        """Return how many bytes its dump will probably take at least.

        Args:
            kind: the format.
            level: the dump level in force.
            left_out: bytes of memory that the dump leaves out.
        """
        if self.size is None:
            return 0
        if kind in {DumpFormat.ELF, DumpFormat.WIN_DMP} and level == 0:
            return self.size
        return int(LEAST_SHARE * max(0, min(self.size, self.resident or 0) - left_out))

    def expected_dump(
        self, kind: DumpFormat, level: int, left_out: int, structures: int
    ) -> int | None:
        """Return about how many bytes its dump will take; None if that is unknown.

        Args:
            kind: as for ``least_dump``, and so are the next two.
            level: the dump level in force.
            left_out: bytes of memory that the dump leaves out.
            structures: bytes of page structures among what it keeps.
        """
        if self.size is None:
            return None
        is_plain = kind in {DumpFormat.ELF, DumpFormat.WIN_DMP}
        if is_plain and level == 0:
            return self.size
        kept = max(0, self.size - left_out)
        held = kept if self.resident is None else min(kept, self.resident)
        structures = min(structures, held)
        packed = USUAL_SHARE * (held - structures) + STRUCTURES_SHARE * structures
        return held if is_plain else int(packed)

    def growth(self, read: int | None) -> int:
        """Return how many bytes more the host may hold after a dump.

        Args:
            read: how many bytes of the memory are read; None: all.

        Returns:
            0 if the growth is unknown.
        """
        if self.size is None or self.resident is None:
            return 0
        growth = max(0, self.size - self.resident)
        return growth if read is None else min(growth, read)


async def check_guest(session: Session) -> GuestMemory:
    """Find out whether a guest's memory can be dumped.

    Raises:
        DumpError: the memory is encrypted.
        UncertainError: QEMU did not answer.
    """
    answers = await session.monitor.execute_all(_QUESTIONS, timeout=ANSWER_TIMEOUT)
    for answer in answers:
        if isinstance(answer, UncertainError):
            raise answer
    summary, blocks, sev, objects = answers
    if isinstance(sev, dict) and sev.get("enabled") is True:
        raise DumpError(DumpFailure.ENCRYPTED, "AMD SEV keeps the guest's memory from being read")
    if isinstance(objects, list) and any(_is_tdx(entry) for entry in objects):
        raise DumpError(DumpFailure.ENCRYPTED, "Intel TDX keeps the guest's memory from being read")
    by_libvirt = session.capability.libvirt
    if by_libvirt is not None and by_libvirt.is_encrypted:
        raise DumpError(DumpFailure.ENCRYPTED, "<launchSecurity/> keeps its memory from being read")
    size = _size(summary) or (by_libvirt.memory if by_libvirt is not None else 0) or None
    untold = 0 if session.capability.version >= BLOCKS_SINCE else UNTOLD
    if session.process_known:
        status = _sizes_in(PROC / str(session.peer.pid) / "status")
        resident = _sum_of(status, "VmRSS", "HugetlbPages")
        possible = _sum_of(status, "VmSize")
        touched = _sum_of(status, *WRITTEN) if _is_private(objects) else None
    else:
        resident, possible = None, _sum_of(_sizes_in(PROC / "meminfo"), "MemTotal", "SwapTotal")
        touched = None
    return GuestMemory(size, resident, blocks_of(blocks), possible, untold, touched)


def check_host(memory: GuestMemory, read: int | None) -> None:
    """Check that the host has memory enough for a dump; ``read`` as for ``GuestMemory.growth``.

    Raises:
        DumpError: the host has too little.
    """
    growth, available = memory.growth(read), _available()
    if available is not None and growth > available:
        raise DumpError(
            DumpFailure.NO_MEMORY,
            f"it would take {growth} bytes of memory, and the host has {available}",
        )


def _is_tdx(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("type") == "child<tdx-guest>"


def _is_private(objects: object) -> bool:
    """Tell whether no memory is a file's, which others may have written."""
    entries = objects if isinstance(objects, list) else [None]
    kinds = [entry.get("type") if isinstance(entry, dict) else None for entry in entries]
    return all(
        isinstance(kind, str) and (not kind.startswith(_BACKEND) or kind == _PRIVATE)
        for kind in kinds
    )


def is_size(value: object) -> TypeGuard[int]:
    """Tell whether a value from QEMU is a number of bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _size(summary: object) -> int | None:
    if not isinstance(summary, dict):
        return None
    sizes = (summary.get("base-memory"), summary.get("plugged-memory", 0))
    known = [size for size in sizes if is_size(size)]
    return min(sum(known), LARGEST) if len(known) == len(sizes) else None


def blocks_of(answer: object) -> int | None:
    """Return the bytes of all blocks of memory in an answer to ``x-query-ramblock``.

    A line is a block: its name, the size of its pages, its offset, and its used length, in
    hexadecimal digits (QEMU ``system/physmem.c``, ``ram_block_format``).
    """
    text = answer.get("human-readable-text") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        return None
    sizes = []
    for line in text.strip().splitlines()[1:]:
        numbers = _BLOCK.findall(line)
        if len(numbers) < 2:
            return None
        sizes.append(int(numbers[1], 16))
    return min(sum(sizes), LARGEST) if sizes else None


def _available() -> int | None:
    return _sizes_in(PROC / "meminfo").get("MemAvailable")


def _sum_of(sizes: Mapping[str, int], *keys: str) -> int | None:
    """Return the sum of the values that are there; None if there are none."""
    values = [sizes[key] for key in keys if key in sizes]
    return sum(values) if values else None


def _sizes_in(path: Path) -> dict[str, int]:
    """Return in bytes the values that proc(5) gives in kB; none if the file is not there."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {key: int(size) * 1024 for key, size in _KILOBYTES.findall(text)}
