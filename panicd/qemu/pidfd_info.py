"""What the kernel tells of a process by its pidfd: of this process and no other, without /proc.

Source: ``PIDFD_GET_INFO`` of linux/pidfd.h, since Linux 6.13.
"""

import fcntl
import struct
from typing import Final

# struct pidfd_info and its ioctl: mask, cgroupid; pid, tgid, ppid, ruid, rgid, euid, egid, suid,
# sgid, fsuid, fsgid; exit_code.
_PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
_PIDFD_INFO_CREDS: Final = 1 << 1
_PIDFD_INFO_EXIT: Final = 1 << 3
_PIDFD_GET_INFO: Final = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_REAL, _EFFECTIVE, _SAVED = 5, 7, 9  # places of user numbers in the struct


def users(pidfd: int) -> set[int] | None:
    """Return the users that a process is or may become: real, effective, saved.

    Returns:
        None where the kernel does not tell, or the process was reaped.
    """
    info = _ask(pidfd, _PIDFD_INFO_CREDS)
    return {info[_REAL], info[_EFFECTIVE], info[_SAVED]} if info else None


def exit_status(pidfd: int) -> int | None:
    """Return the exit status of a process that was reaped, as wait(2) gives it.

    Returns:
        None where the kernel does not tell: before Linux 6.15 it does not keep the status.
    """
    info = _ask(pidfd, _PIDFD_INFO_EXIT)
    return info[-1] if info else None


def _ask(pidfd: int, wanted: int) -> tuple[int, ...] | None:
    try:
        info = fcntl.ioctl(pidfd, _PIDFD_GET_INFO, _PIDFD_INFO.pack(wanted, *[0] * 13))
    except OSError:  # before Linux 6.13, or reaped
        return None
    told = _PIDFD_INFO.unpack(info)
    return told if told[0] & wanted else None
