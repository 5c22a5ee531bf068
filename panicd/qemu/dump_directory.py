"""Where finished dumps lie: names, free space, and which are kept.

A dump is ``DIRECTORY/DOMAIN/INCIDENT.SUFFIX``. It bears ``.partial`` until it is complete, so a
file without it is one that can be trusted, whatever became of panicd meanwhile.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor

PARTIAL: Final = ".partial"
SUFFIXES: Final[dict[DumpFormat, str]] = {
    DumpFormat.ELF: ".elf",
    DumpFormat.KDUMP_ZLIB: ".kdump",
    DumpFormat.KDUMP_LZO: ".kdump",
    DumpFormat.KDUMP_SNAPPY: ".kdump",
}
MAX_FOLDER_NAME: Final = 128  # bytes; a file system's limit is 255


@dataclass(frozen=True, slots=True)
class Space:
    """The space on a file system, in bytes (statvfs(3)); ``available`` to panicd's own user."""

    total: int
    available: int

    def above(self, floor: FreeSpaceFloor) -> int:
        """Return how many bytes may be written before the floor is reached."""
        return self.available - max(floor.size, int(self.total * floor.fraction))


def space(path: Path | int) -> Space:
    """Return the space on the file system that holds a path, or an open file.

    Raises:
        OSError: it can't be told; that is never taken for enough.
    """
    stat = os.statvfs(path)
    return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def folder_name(domain: str) -> str:
    """Return a name for a domain's folder that is safe whatever the domain is called."""
    name = quote(domain, safe="@+=")[:MAX_FOLDER_NAME]
    return name.replace(".", "%2E", 1) if name.startswith(".") else name or "%00"


def dump_path(settings: CoredumpSettings, domain: str, incident: str, kind: DumpFormat) -> Path:
    """Return where a finished dump will lie."""
    return settings.directory / folder_name(domain) / f"{incident}{SUFFIXES[kind]}"


def retire(settings: CoredumpSettings, newest: Path) -> list[Path]:
    """Remove the dumps that are one too many, oldest first, and return them.

    A domain keeps its ``keep`` newest, the host at most ``max_total`` bytes; the dump that was
    just made always stays.

    Raises:
        OSError: a dump could not be removed.
    """
    removed = _oldest_first(newest.parent)[: -settings.keep]
    kept = [path for path in _oldest_first(settings.directory) if path not in removed]
    excess = sum(path.stat().st_size for path in kept) - settings.max_total
    for path in kept:
        if excess <= 0 or path == newest:
            break
        excess -= path.stat().st_size
        removed.append(path)
    for path in removed:
        path.unlink()
    return removed


def _oldest_first(directory: Path) -> list[Path]:
    """Return the finished dumps below a directory; an incident's id sorts by its time."""
    suffixes = set(SUFFIXES.values())
    return sorted(
        (path for path in directory.rglob("*") if path.suffix in suffixes),
        key=lambda path: (path.stem, path),
    )
