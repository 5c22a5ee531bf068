"""How long the path of a unix socket may be."""

from pathlib import PurePath
from typing import Final

PATH_LIMIT: Final = 107
"""Bytes of a socket's path (unix(7): sun_path, less its NUL)."""


def path_problem(path: PurePath | str) -> str:
    """Return the problem with a socket's path; empty if it has none."""
    length = len(str(path).encode(errors="surrogateescape"))  # as os.fsencode
    if length <= PATH_LIMIT:
        return ""
    return f"the path has {length} bytes; a socket's may have {PATH_LIMIT} (unix(7))"
