"""The bundles of evidence on the disk: how much they take, and how one is removed.

A bundle is a directory called as its incident. Of one that was removed the list stays, so that
whoever looks for it is told what became of it; it goes with the incident.
"""

import json
import os
from pathlib import Path
from typing import Final

from panicd.evidence.bundle import MANIFEST, read_manifest

PARTIAL: Final = ".removed.partial"
STAYS: Final = ("panic_line", "signature", "facts")  # of the list


def sizes(root: Path) -> dict[str, int]:
    """Return the bytes that each bundle takes on the disk, by its incident. Blocking.

    One that was removed takes none. A file's length says nothing: holes in it take no room.

    Raises:
        OSError: they can't be looked at.
    """
    found: dict[str, int] = {}
    if not root.exists():
        return found
    for place in os.scandir(root):
        if place.is_dir(follow_symlinks=False):
            files = [file for file in os.scandir(place) if file.name != MANIFEST]
            if files:
                found[place.name] = sum(
                    allocated(file.stat(follow_symlinks=False)) for file in files
                )
    return found


def allocated(status: os.stat_result) -> int:
    """Return the bytes that a file takes on the disk (inode(7), ``st_blocks``)."""
    return status.st_blocks * 512


def remove(directory: Path, why: str, at: float) -> None:
    """Remove a bundle, and leave word of it. Blocking.

    Raises:
        OSError: it can't be removed, or not all of it.
    """
    before = read_manifest(directory) or {}
    left: dict[str, object] = {key: before[key] for key in STAYS if key in before}
    left |= {"files": {}, "problems": {}, "removed": {"at": at, "why": why}}
    partial = directory / PARTIAL
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
        file.write(json.dumps(left, indent=1).encode())
    partial.replace(directory / MANIFEST)
    # Only now: until here it was all there, and from here on it says that it is not.
    for path in directory.iterdir():
        if path.name != MANIFEST:
            path.unlink()
