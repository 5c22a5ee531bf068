"""Files of an incident that are sent as they are: its evidence and its dumps."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from panicd.evidence.bundle import read_manifest
from panicd.web.web import NOT_FOUND, Response

CHUNK: Final = 64 * 1024  # bytes
POLICY: Final = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""The policy of such a file, in case a browser shows it."""

_PLAIN: Final = re.compile(r"\w[\w.-]*", re.ASCII)


class _File:
    """A file of panicd's that is sent, up to the length that it had when it was opened."""

    def __init__(self, path: Path, give_way: Callable[[], None]) -> None:
        """Open it.

        Raises:
            OSError: it can't be opened, or is no file.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.fdopen(os.open(path, flags), "rb", buffering=0)
        found = os.fstat(self._file.fileno())
        self.length = found.st_size
        self._give_way = give_way
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no file")

    def chunks(self) -> Iterator[bytes]:
        """Yield its content."""
        left = self.length
        while left:
            self._give_way()
            chunk = self._file.read(min(CHUNK, left))
            if not chunk:
                raise OSError("the file was cut while it was sent")
            left -= len(chunk)
            yield chunk

    def close(self) -> None:
        """Close it."""
        self._file.close()


def evidence_file(directory: Path, name: str, give_way: Callable[[], None]) -> Response:
    """Send a file that is on an incident's list of evidence. Blocking.

    Args:
        directory: the evidence's.
        name: of the file.
        give_way: called before each part; may wait a moment.
    """
    manifest = read_manifest(directory)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or name not in files or not _PLAIN.fullmatch(name):
        return NOT_FOUND
    return send(directory / name, give_way)


def send(path: Path, give_way: Callable[[], None]) -> Response:
    """Send a file of panicd's. Blocking.

    Args:
        path: of the file, in a directory of panicd's.
        give_way: as of ``evidence_file``.
    """
    try:
        file = _File(path, give_way)
    except OSError:
        return NOT_FOUND
    name = path.name if _PLAIN.fullmatch(path.name) else "file"
    headers = {
        "Content-Security-Policy": POLICY,
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    return Response(b"", 200, "application/octet-stream", headers, file)
