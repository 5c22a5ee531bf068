"""Who else may make a dump of a guest's memory, and why one was not made."""

import errno
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

DumpByOther = Callable[[Path, str, float], Awaitable[None]]
"""Has somebody else (libvirt) have QEMU write its memory to a pipe: its path, format, seconds.

Raises:
    DumpError: it was not done.
"""


class DumpFailure(StrEnum):
    """Why there is no dump."""

    LIBVIRT = "libvirt"  # not tried: libvirt runs the VM
    ENCRYPTED = "encrypted"  # not tried: the guest's memory can't be read from outside
    NO_MEMORY = (
        "no-memory"  # not tried: it would take more of the host's memory, or threads, than is there
    )
    NO_TURN = "no-turn"  # not tried: others were dumped all the time
    OVERTAKEN = "overtaken"  # not tried: somebody has let the guest go meanwhile
    UNFILTERED = "unfiltered"  # not tried: less could be left out than is required
    NO_SPACE = "no-space"
    UNWRITABLE = "unwritable"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    QEMU = "qemu"  # it says that it failed, or writes what is no dump
    TOO_LARGE = "too-large"  # more came than the guest has memory
    TOO_SLOW = "too-slow"  # it came more slowly than any QEMU writes
    INCOMPLETE = "incomplete"  # less came than belongs to it
    LOST = "lost"  # QEMU, or its monitor, was gone before its end


class DumpError(Exception):
    """No dump was made; no partial file is left.

    Attributes:
        failure: why, in one word.
    """

    def __init__(self, failure: DumpFailure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure

    @classmethod
    def of(cls, error: OSError) -> "DumpError":
        """Return what an error of the file system means for a dump."""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        return cls(DumpFailure.NO_SPACE if full else DumpFailure.UNWRITABLE, str(error))
