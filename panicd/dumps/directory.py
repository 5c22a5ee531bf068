"""Where dumps lie: names, free space, unfinished files, and which finished ones are kept.

A dump is ``DIRECTORY/OWNER/DOMAIN/INCIDENT.SUFFIX``. The owner is a user's number, and the host
vouches for it. A domain's name is only a claim, and two users may have the same. A file's name ends
in ``.partial`` until the file is complete. So a file without that ending can be trusted, whatever
happened to panicd. The writer of a partial file holds a lock on it (flock(2)). If nobody holds the
lock, a killed panicd left the file, and the next dump removes it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from panicd.evidence.bundle_store import allocated
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from panicd.rules.shares import Kept, make_room

PARTIAL: Final = ".partial"
SUFFIXES: Final[dict[DumpFormat, str]] = {
    DumpFormat.ELF: ".elf",
    DumpFormat.ELF_ZSTD: ".elf.zst",
    DumpFormat.KDUMP_ZLIB: ".kdump",
    DumpFormat.KDUMP_LZO: ".kdump",
    DumpFormat.KDUMP_SNAPPY: ".kdump",
    DumpFormat.WIN_DMP: ".dmp",
    DumpFormat.WIN_DMP_ZSTD: ".dmp.zst",
}
MAX_FOLDER_NAME: Final = 128  # bytes; a file system's limit is 255
LOOP: Final = 24 * 3600.0
"""Seconds: dumps of one domain no further apart count as one crash loop."""


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
        OSError: the space is unknown; callers must not take it for enough.
    """
    stat = os.statvfs(path)
    return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def existing_part(path: Path) -> Path:
    """Return a path, or the nearest existing one above it.

    Not by ``Path.exists``: from Python 3.14 on it calls a path missing that it can't look at.

    Raises:
        OSError: a path can't be looked at.
    """
    for part in (path, *path.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            part.stat()
            return part
    raise FileNotFoundError(path)


def known_space(directory: Path) -> Space | None:
    """Return the space of a directory that may not exist yet; None: it can't be found out."""
    try:
        return space(existing_part(directory))
    except OSError:
        return None


def folder_name(domain: str) -> str:
    """Return a name for a domain's folder that is safe whatever the domain is called."""
    name = quote(domain, safe="@+=", errors="surrogatepass")[:MAX_FOLDER_NAME]
    return name.replace(".", "%2E", 1) if name.startswith(".") else name or "%00"


def dump_path(
    settings: CoredumpSettings, owner: int, domain: str, incident: str, kind: DumpFormat
) -> Path:
    """Return where a finished dump will lie."""
    folder = settings.directory / str(owner) / folder_name(domain)
    return folder / f"{incident}{SUFFIXES[kind]}"


def _owner_of(path: Path, directory: Path) -> int | None:
    """Return a dump's owner; None if 0.1.0 made it: its dumps have no owner's folder."""
    above, *rest = path.relative_to(directory).parts
    return int(above) if len(rest) == 2 and above.isdecimal() else None


@contextmanager
def partial_file(path: Path) -> Iterator[int]:
    """Open and lock a fresh file beside ``path``; remove it at the end, unless ``give_name`` ran.

    Raises:
        OSError: the file can't be made.
    """
    for folder in (path.parent.parent, path.parent):  # mkdir(parents=True) takes no mode for these
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = _create_locked(_partial(path))
    try:
        yield file
    finally:
        _partial(path).unlink(missing_ok=True)
        os.close(file)


def give_name(path: Path) -> None:
    """Give a complete and durable partial file its name, and make the name durable.

    Raises:
        OSError: the file can't be renamed.
    """
    _partial(path).rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_abandoned(directory: Path) -> list[Path]:
    """Remove the partial files that nobody writes any more, and return them.

    Raises:
        OSError: a file could not be removed.
    """
    removed = []
    for partial in directory.rglob(f"*{PARTIAL}"):
        try:
            file = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink(missing_ok=True)
            removed.append(partial)
        except BlockingIOError:
            continue
        finally:
            os.close(file)
    return removed


def retire(settings: CoredumpSettings, newest: Path) -> list[Path]:
    """Remove the dumps that exceed a limit, and return them.

    A domain keeps its ``keep`` newest. In a crash loop the first panic tells most. So if it keeps
    two or more, the oldest of the last ``LOOP`` seconds replaces the oldest of the kept ones.
    All dumps take ``max_total`` bytes at most: for that the same owner's oldest go, down to his
    share (``rules.shares``). The dump that was just made always stays.

    Raises:
        OSError: a dump could not be removed.
    """
    # The newest stays last whatever the clock said: a clock set back makes it look older.
    own = [*(path for path in _oldest_first(newest.parent) if path != newest), newest]
    kept_of_own = own[-settings.keep :]
    since = newest.stat().st_mtime - LOOP
    first = next(path for path in own if path == newest or path.stat().st_mtime >= since)
    if settings.keep > 1 and first not in kept_of_own:
        kept_of_own[0] = first
    removed = [path for path in own if path not in kept_of_own]
    may_go = [
        Kept(path, allocated(path.stat()), _owner_of(path, settings.directory))
        for path in _oldest_first(settings.directory)
        if path not in removed and path != newest
    ]
    owner = _owner_of(newest, settings.directory)
    stays = {owner: allocated(newest.stat())}
    removed += make_room(may_go, stays, owner, settings.max_total)
    for path in removed:
        path.unlink()
    return removed


def _create_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # another process took it for abandoned before it was locked


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _oldest_first(directory: Path) -> list[Path]:
    """Return the finished dumps below a directory.

    An incident's id tells its time to the second; within a second, the file's own time decides.
    """
    suffixes = tuple(SUFFIXES.values())
    return sorted(
        (path for path in directory.rglob("*") if path.name.endswith(suffixes)),
        key=lambda path: (path.name.split("-")[0], path.stat().st_mtime_ns, path),
    )
