"""Opens a file that another user names, with no more rights than that user has.

The kernel checks rights for a process of that user. panicd does not become such a process: it would
need CAP_SETUID, and with that its service could read and write the memory of every user's
processes. setfsuid(2) and its kin change one thread, which shares memory, signals and dumpability
with the others. So this module walks the path as path_resolution(7) describes, one name at a time.
It checks each step through an O_PATH descriptor, which can't come to mean another file. It opens
only the last step.

In doubt it refuses: where an access control list says more than the mode (acl(5)), this module
knows only the owner's rights.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOST_LINKS: Final = 40  # symbolic links followed in one path: path_resolution(7)
READ: Final = 4
SEARCH: Final = 1
PSEUDO: Final = (Path("/proc"), Path("/sys"))
"""File systems whose files hold something else than a program wrote to them."""

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL: Final = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Rights:
    """A user's rights to files: the numbers of the user and the user's groups."""

    uid: int
    groups: frozenset[int]

    def allow(self, status: os.stat_result, wanted: int, *, has_list: bool) -> bool:
        """Tell whether the user may read or search a file (inode(7), 'The file type and mode').

        Args:
            status: the file's status.
            wanted: ``READ`` or ``SEARCH``.
            has_list: the file has an access control list.
        """
        if self.uid == 0:
            return True
        if status.st_uid == self.uid:
            return bool(status.st_mode >> 6 & wanted)
        if has_list:
            return False
        return bool(status.st_mode >> (3 if status.st_gid in self.groups else 0) & wanted)


def open_as(path: Path, users: Iterable[Rights]) -> int:
    """Open a regular file that each of these users may read, for reading. Blocking.

    If the last part of the path is a symbolic link, it is not followed.

    Args:
        path: absolute.
        users: the users who name the file.

    Raises:
        OSError: a user may not read the file, it does not exist, or it is not a regular file.
    """
    users = tuple(users)
    found = _walk(path, users)
    try:
        _require(found, users, READ)
        return _open_looked_at(found)
    finally:
        os.close(found)


def open_regular(path: Path) -> int:
    """Open a regular file for reading, with all of panicd's rights. Blocking.

    Raises:
        OSError: the file does not exist, or it is not a regular file.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _open_looked_at(found)
    finally:
        os.close(found)


def _open_looked_at(found: int) -> int:
    """Open a descriptor's file, if it is a regular one; don't wait for a lease."""
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode) or status.st_dev in _pseudo():
        raise OSError("it is no file")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(f"/proc/self/fd/{found}", flags)


def _walk(path: Path, users: tuple[Rights, ...]) -> int:
    """Return an O_PATH descriptor of the file that a path names."""
    left = list(reversed(path.parts[1:]))
    links: list[Path] = []
    here = os.open("/", _LOOK)
    try:
        while left:
            _require(here, users, SEARCH)
            there = os.open(left.pop(), _LOOK, dir_fd=here)
            if left and stat.S_ISLNK(os.fstat(there).st_mode):
                target = Path(_target(there))
                links.append(target)
                _require_few(links)
                left += reversed(target.parts[target.is_absolute() :])
                there = os.open("/" if target.is_absolute() else ".", _LOOK, dir_fd=here)
            os.close(here)
            here = there
    except BaseException:
        os.close(here)
        raise
    return here


def _require_few(links: list[Path]) -> None:
    if len(links) > MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _target(link: int) -> str:
    """Return a symbolic link's target, and close the link."""
    try:
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _require(file: int, users: tuple[Rights, ...], wanted: int) -> None:
    status, has_list = os.fstat(file), _has_list(file)
    for user in users:
        if not user.allow(status, wanted, has_list=has_list):
            refusal = f"user {user.uid} may not read it; the configuration may name it"
            raise PermissionError(errno.EACCES, refusal)


def _has_list(file: int) -> bool:
    try:
        return bool(os.getxattr(f"/proc/self/fd/{file}", _ACL))
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.EOPNOTSUPP, errno.ELOOP}:
            return False
        raise


def _pseudo() -> set[int]:
    return {path.stat().st_dev for path in PSEUDO if path.is_mount()}
