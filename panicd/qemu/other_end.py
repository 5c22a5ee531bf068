"""Tells whether a process holds the other end of a connected unix socket.

SO_PEERCRED gives the number of the process that listened or connected. That process may have passed
the connection to another since, and a third process may have its number now. For certain the kernel
tells only the other end's inode, the descriptors that a process has open, and the number of the
process that sent a message.

Sources: sock_diag(7), include/uapi/linux/unix_diag.h; proc(5), /proc/PID/fd; unix(7), SO_PASSCRED.
"""

import os
import socket
import struct
import sys
from contextlib import suppress
from itertools import islice
from typing import Final

UCRED: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_UDIAG_SHOW_PEER: Final = 4
_UNIX_DIAG_PEER: Final = 2
_ANY_STATE: Final = 0xFFFFFFFF
_NO_COOKIE: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST: Final = struct.Struct("=BBHIIIII")  # struct unix_diag_req
_MESSAGE: Final = struct.Struct("=BBBBIII")  # struct unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_ANSWER_MAX: Final = 4096  # bytes; one with a peer has some 60
MOST_DESCRIPTORS: Final = 16_384  # of a process to look at; they take some 20 ms
_ANSWERS_WITHIN: Final = 1.0  # seconds; the kernel answers while it is asked


def inode_of(sock: socket.socket) -> int:
    """Return the inode number of this end of a connection."""
    return os.fstat(sock.fileno()).st_ino


def peer_inode(inode: int) -> int | None:
    """Return the inode of the other end of a unix socket.

    Args:
        inode: of panicd's end, a socket in this process's network namespace.

    Returns:
        0 while nobody has accepted the connection; None where the kernel does not tell, because it
        is built without CONFIG_UNIX_DIAG, or netlink is not allowed.
    """
    request = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _UDIAG_SHOW_PEER, _NO_COOKIE, _NO_COOKIE
    )
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_ANSWERS_WITHIN)
            netlink.sendto(header + request, (0, 0))
            return _peer_in(netlink.recv(_ANSWER_MAX), inode)
    except OSError:
        return None


def _peer_in(answer: bytes, inode: int) -> int | None:
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:  # NLMSG_ERROR
        return None
    *_, told, _, _ = _MESSAGE.unpack_from(answer, _HEADER.size)
    if told != inode:
        return None
    place = _HEADER.size + _MESSAGE.size
    while place + _ATTRIBUTE.size <= len(answer):
        length, name = _ATTRIBUTE.unpack_from(answer, place)
        if name == _UNIX_DIAG_PEER:
            return int.from_bytes(answer[place + _ATTRIBUTE.size : place + length], sys.byteorder)
        place += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return 0


def holds(pid: int, inode: int) -> bool | None:
    """Tell whether a process has a socket open; None where panicd may not see its descriptors.

    To see them takes the rights of ptrace(2), PTRACE_MODE_READ: the same user, or CAP_SYS_PTRACE.
    At most ``MOST_DESCRIPTORS`` are looked at, more than any QEMU needs, so that no process can
    delay panicd. The newest come first: a connection is younger than the descriptors that QEMU was
    started with.
    """
    target = f"socket:[{inode}]"
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(directory) as descriptors:
                names = [each.name for each in islice(descriptors, MOST_DESCRIPTORS)]
                is_all = next(descriptors, None) is None
            for name in reversed(names):
                with suppress(OSError):  # closed meanwhile; or a file whose path is too long
                    if os.readlink(name, dir_fd=directory) == target:
                        return True
            return False if is_all else None
        finally:
            os.close(directory)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return None


def show_senders(sock: socket.socket) -> None:
    """Have the kernel name the sender of each message from now on (unix(7), SO_PASSCRED)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def hide_senders(sock: socket.socket) -> None:
    """End what ``show_senders`` began."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)


def receive(sock: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Receive bytes that one process sent.

    Args:
        sock: a socket that ``show_senders`` was called for.
        size: most bytes to receive.

    Returns:
        The bytes, and the number of the process, None where the kernel names none. There is room
        for the number alone: the kernel closes descriptors that are sent along.

    Raises:
        OSError: as of recvmsg(2).
    """
    data, control, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(UCRED.size))
    for level, kind, value in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = UCRED.unpack(value)[0]
            return data, pid
    return data, None
