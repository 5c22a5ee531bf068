"""Identifies a process for ever, as its number alone does not.

Sources: proc(5), pidfd_open(2).
"""

import os
import re
import select
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import trio

LOOK_AGAIN: Final = 1.0  # seconds, while no file descriptor is left
_PART: Final = 1 << 15  # bytes, read at once
_IDENTITY: Final = re.compile("([^/]+)/([1-9][0-9]{0,8})/([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """The identity of a process: unique on this host, for ever.

    A socket's path and inode number don't tell one QEMU from its successor; this does. The boot is
    part of it because the journal outlives a boot: virtual machines that start with the host get
    much the same numbers at much the same time after each boot.

    Attributes:
        boot_id: ``/proc/sys/kernel/random/boot_id``, a UUID.
        pid: Process number in this daemon's PID namespace.
        start_time: Clock ticks since boot, field 22 of ``/proc/PID/stat``.
    """

    boot_id: str
    pid: int
    start_time: int

    def __str__(self) -> str:
        return f"{self.boot_id}/{self.pid}/{self.start_time}"

    @classmethod
    def parse(cls, text: str) -> "ProcessIdentity | None":
        """Return the identity that a text stands for; None where it is none."""
        found = _IDENTITY.fullmatch(text)
        return cls(found[1], int(found[2]), int(found[3])) if found else None

    def has_ended(self) -> bool:
        """Tell whether the process has ended; in doubt as ``wait_ended`` does.

        Raises:
            OSError: no file descriptor is left.
        """
        if self.boot_id != boot_id():
            return True
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            return start_time_of(self.pid) not in {self.start_time, None} or has_ended(pidfd)
        finally:
            os.close(pidfd)

    async def wait_ended(self) -> None:
        """Wait until the process has ended (a zombie has), on this boot of this host.

        Where panicd can't look at processes (hidepid, ProtectProc=), any process with the same
        number counts as this one. While no file descriptor is left, it looks again and again.
        """
        await trio.lowlevel.checkpoint()
        is_over = self.boot_id != boot_id()
        while not is_over:
            try:
                pidfd = os.pidfd_open(self.pid)
                try:
                    if start_time_of(self.pid) in {self.start_time, None}:
                        await trio.lowlevel.wait_readable(pidfd)
                finally:
                    os.close(pidfd)
            except ProcessLookupError:
                is_over = True
            except OSError:  # no file descriptor is left
                await trio.sleep(LOOK_AGAIN)
            else:
                is_over = True


def has_ended(pidfd: int) -> bool:
    """Tell whether a pidfd's process has ended (a zombie has)."""
    # pidfd_open(2): readable once the process has ended; with POLLHUP once it was reaped too.
    return _poll(pidfd, select.POLLIN) != 0


def _poll(fd: int, mask: int) -> int:
    poll = select.poll()
    poll.register(fd, mask)
    return next((events for _, events in poll.poll(0)), 0)


def start_time_of(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat, None where that can't be read."""
    text = read_of(pid, "stat", 4096)
    if not text:
        return None
    # Field 2 is the process's name in parentheses, and may itself hold spaces and parentheses.
    _, _, rest = text.rpartition(b")")
    return int(rest.split()[22 - 3])


def uids_of(pid: int) -> set[int] | None:
    """Return the users that a process is or may become: real, effective, saved; None unread."""
    text = read_of(pid, "status", 4096)
    found = re.search(rb"^Uid:\t(\d+)\t(\d+)\t(\d+)", text or b"", re.MULTILINE)
    return set(map(int, found.groups())) if found else None


@cache
def boot_id() -> str:
    """Return the identity of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_of(pid: int, name: str, limit: int) -> bytes | None:
    """Return the first bytes of a file in /proc/PID, None if it is not there or not to be read."""
    read = b""
    try:
        file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while wanted := min(limit - len(read), _PART):
                read += (part := os.read(file, wanted))
                if len(part) < wanted:  # proc(5) gives as much as is wanted, but at the end
                    break
        finally:
            os.close(file)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return read
