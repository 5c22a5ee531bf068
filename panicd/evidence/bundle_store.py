"""The bundles of evidence on the disk: how much space they take, and how one is removed.

A bundle is a directory with its incident's name. When a bundle is removed, its list stays, so that
whoever looks for it learns what happened. The list goes with the incident.
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

    A removed one takes none. A file's length does not matter: holes in it take no space.

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
    """Remove a bundle, and leave a note of it. Blocking.

    Raises:
        OSError: it can't be removed, or not completely.
    """
    before = read_manifest(directory) or {}
    left: dict[str, object] = {key: before[key] for key in STAYS if key in before}
    left |= {"files": {}, "problems": {}, "removed": {"at": at, "why": why}}
    partial = directory / PARTIAL
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
        file.write(json.dumps(left, indent=1).encode())
    partial.replace(directory / MANIFEST)
    # Only now: until here all of it existed, and from here on it says that it does not.
    for path in directory.iterdir():
        if path.name != MANIFEST:
            path.unlink()
