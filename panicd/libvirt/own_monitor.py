"""The monitors by which libvirt itself commands its VMs: panicd never dials them.

Such a monitor takes one client. When libvirt starts anew, QEMU would serve another waiting client
first, and lock libvirt out of its VM.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from panicd.qemu.monitor import UnreachableError
from panicd.rules.libvirt import OWN_MONITORS, is_own_monitor


class LibvirtsOwnError(UnreachableError):
    """This is libvirt's own monitor: panicd leaves it alone."""

    def __init__(self) -> None:
        super().__init__(
            "libvirt's own monitor, which takes one client: not dialled; give the domain one more "
            "for panicd by <qemu:commandline>"
        )


def leave_libvirts_own(path: Path, arguments: Sequence[str] = ()) -> None:
    """Check that a socket is none of libvirt's own, symbolic links followed.

    Args:
        path: the socket's.
        arguments: of the process that listens there, as far as known.

    Raises:
        LibvirtsOwnError: the socket is libvirt's own.
    """
    named = str(path)
    real = _real(named)
    if is_own_monitor(named, arguments) or (real != named and is_own_monitor(real, arguments)):
        raise LibvirtsOwnError


def _real(path: str) -> str:
    """Return the path of the socket itself, as ``realpath`` does; the kernel is faster at it."""
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return os.path.realpath(path)
    try:
        return os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115 - a Path is slower
    finally:
        os.close(file)


def matches_libvirts_own(pattern: str) -> bool:
    """Tell whether a configured pattern matches monitors where libvirt has its own."""
    return any(PurePath(path).match(pattern) for path in OWN_MONITORS)
