"""Dumps that another program makes, and the reasons why a dump was not made."""

import errno
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

DumpByOther = Callable[[Path, str, float], Awaitable[None]]
"""Asks libvirt to have QEMU dump to a pipe. Takes the pipe's path, the format, seconds.

Raises:
    DumpError: no dump was made.
"""


class DumpFailure(StrEnum):
    """Why there is no dump."""

    LIBVIRT = "libvirt"  # not tried: libvirt runs the VM
    ENCRYPTED = "encrypted"  # not tried: the guest's memory can't be read from outside
    NO_MEMORY = "no-memory"  # not tried: the host has too little memory, or too few threads
    NO_TURN = "no-turn"  # not tried: dumps of other guests took all the time
    OVERTAKEN = "overtaken"  # not tried: somebody has resumed the guest meanwhile
    UNFILTERED = "unfiltered"  # not tried: fewer pages could be left out than required
    NO_SPACE = "no-space"
    UNWRITABLE = "unwritable"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    QEMU = "qemu"  # QEMU says that it failed, or writes no valid dump
    TOO_LARGE = "too-large"  # the dump is larger than the guest's memory
    TOO_SLOW = "too-slow"  # the dump came more slowly than any QEMU writes
    INCOMPLETE = "incomplete"  # the dump ended before it was whole
    LOST = "lost"  # QEMU, or its monitor, was gone before the dump's end


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
        """Return the DumpError that stands for an error of the file system."""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        return cls(DumpFailure.NO_SPACE if full else DumpFailure.UNWRITABLE, str(error))
