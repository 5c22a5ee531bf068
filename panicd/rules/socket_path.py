"""The paths of unix sockets, and the patterns that find them. Pure."""

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


def pattern_problem(pattern: str) -> str:
    """Return what a pattern of sockets' paths has to be and is not; empty if it can be watched.

    Args:
        pattern: An absolute path; any component may have the wildcards of glob(7). As in a shell, a
            wildcard matches no leading dot and no slash.
    """
    root, *components = pattern.split("/")
    if root or not components:
        return "an absolute pattern, such as /run/qemu/*.qmp"
    if "\0" in pattern:
        return "a pattern without NUL characters"
    if any("**" in component for component in components):
        return "a pattern without **, which is not supported"
    if not components[-1]:
        return "a pattern of sockets, not of directories, such as /run/qemu/*.qmp"
    if odd := {"", ".", ".."}.intersection(components):
        return f"a pattern without {min(odd) or '//'!r}, such as /run/qemu/*.qmp"
    return ""
