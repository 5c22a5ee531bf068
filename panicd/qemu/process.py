"""Who is at the other end of a monitor's socket, and how to end exactly that process.

A process number is no identity: it may name another process by the time a signal is sent. What
is held here is a pidfd, which keeps naming the one process it was made for, dead or alive.

Sources: unix(7) (SO_PEERCRED), pidfd_open(2), pidfd_send_signal(2), proc(5).
"""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import trio

from panicd.qemu.file_rights import Rights

SO_PEERPIDFD: Final = 77  # Linux 6.5 and later; the socket module has no name for it
SO_PEERGROUPS: Final = 59  # Linux 4.13 and later; no name for it either
MOST_GROUPS: Final = 256  # as many as the socket module has room for
_GID: Final = struct.Struct("I")
_UCRED: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid

MAX_COMMAND_LINE: Final = 1 << 20  # bytes; libvirt's longest are some 20 KiB

# What belongs to QEMU, may hold a socket open, and is no virtual machine. Prefixes, for the
# kernel cuts a process's name to 15 characters.
_QEMU_TOOLS: Final = ("qemu-storage-d", "qemu-nbd", "qemu-ga", "qemu-pr-helper", "qemu-vmsr-helpe")


REAPED_CHECK: Final = 0.01
"""Seconds between two looks at whether a process that has ended was reaped."""

# struct pidfd_info and its ioctl (linux/pidfd.h): mask, cgroupid, eleven ids, exit_code.
_PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT: Final = 1 << 3
_PIDFD_GET_INFO: Final = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11


class PeerError(Exception):
    """Something could not be done to a monitor's peer process."""


class PeerUnknownError(PeerError):
    """It is not known which process is at the other end."""


class NotQemuError(PeerError):
    """The process at the other end is not a QEMU: a proxy, most likely. It gets no signal."""


class SignalNotPermittedError(PeerError):
    """The kernel refused the signal: the daemon lacks CAP_KILL over this QEMU."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Which process this is: equal for one process only, on this host, for ever.

    A socket's path and inode number don't tell one QEMU from its successor; this does. The boot
    is part of it because the journal outlives it: virtual machines that start with the host get
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
        """Return the identity that was written as this text; None where none was."""
        try:
            boot_id, pid, start_time = text.split("/")
            return cls(boot_id, int(pid), int(start_time))
        except ValueError:
            return None

    async def wait_ended(self) -> None:
        """Wait until the process has ended (a zombie has), on this boot of this host.

        A process that can't be looked at (hidepid, ProtectProc=) is taken for this one as long as
        there is one of its number.

        Raises:
            OSError: no file descriptor is left.
        """
        await trio.lowlevel.checkpoint()
        if self.boot_id != _boot_id():
            return
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if _start_time(self.pid) in {self.start_time, None}:
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


def is_qemu_program(name: str) -> bool:
    """Tell whether a program of that name runs virtual machines.

    ``qemu-system-*``, ``qemu-kvm`` and ``kvm`` as distributions call them, other names that begin
    with ``qemu``, and all of these behind a wrapper's leading dot (Nix); not QEMU's own tools.
    """
    name = name.removeprefix(".")
    return (name.startswith("qemu") and not name.startswith(_QEMU_TOOLS)) or name == "kvm"


def uid_of(sock: socket.socket) -> int:
    """Return the user at the other end of a unix socket, as it was when it connected (unix(7))."""
    return _credentials(sock)[1]


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return pid, uid, gid


def _groups(sock: socket.socket) -> tuple[int, ...]:
    """Return a peer's supplementary groups as of then; none where they can't be had."""
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MOST_GROUPS * _GID.size)
    except OSError:  # Linux before 4.13, or more groups than there is room for
        return ()
    return tuple(gid for (gid,) in _GID.iter_unpack(groups))


class Peer:
    """The process at the other end of one connection.

    A domain whose peer is not known can still be watched and commanded; it only can't be signalled
    or waited for. So that is a state of this object and not a failure to make it: ``identity`` is
    then None, ``unknown_because`` says why, and what needs the process raises PeerUnknownError.

    Holds a file descriptor until ``close``; usable in a ``with`` statement.

    Attributes:
        pid: Process number, 0 where the process is in a PID namespace that is not ours to see.
        uid: User number that it had when it called listen or connect.
        rights: That user's rights to files, with the groups that the process had then.
        identity: Which process it is, None where that is not known.
        unknown_because: Why it is not known, None where it is.
    """

    def __init__(self, sock: socket.socket, is_qemu_program: Callable[[str], bool]) -> None:
        self.pid, self.uid, gid = _credentials(sock)
        self.rights = Rights(self.uid, frozenset((gid, *_groups(sock))))
        self.identity: ProcessIdentity | None = None
        self.unknown_because: str | None = None
        self._pidfd: int | None = None
        self._is_qemu_program = is_qemu_program
        try:
            self._pidfd, self.identity = _identify(sock, self.pid)
        except PeerUnknownError as error:
            self.unknown_because = str(error)

    @classmethod
    def of(
        cls,
        sock: socket.socket,
        *,
        is_qemu_program: Callable[[str], bool] = is_qemu_program,
    ) -> Self:
        """Find out who is connected to a socket.

        Ask as soon as the connection is made. Behind a proxy it is the proxy that is found.

        Args:
            sock: A connected AF_UNIX stream socket; it is not kept.
            is_qemu_program: Tells from a program's name whether it may be signalled.

        Raises:
            OSError: No file descriptor is left.
        """
        return cls(sock, is_qemu_program)

    def close(self) -> None:
        """Let go of the process. A wait in progress goes on."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
            self.unknown_because = "it was closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command_line(self) -> tuple[str, ...] | None:
        r"""Return the process's argv, None where it can't be read.

        Bytes that are no UTF-8 are spelt as ``\xNN``. None as well where it is longer than
        MAX_COMMAND_LINE, for the end of it may say the opposite of its beginning.
        """
        if self._pidfd is None:
            return None
        text = _read(self.pid, "cmdline", MAX_COMMAND_LINE + 1)
        if not text or len(text) > MAX_COMMAND_LINE or _has_ended(self._pidfd):
            return None
        arguments = text.removesuffix(b"\0").split(b"\0")
        return tuple(argument.decode(errors="backslashreplace") for argument in arguments)

    def is_qemu(self) -> bool:
        """Tell whether the process is a QEMU that runs a virtual machine, and alive.

        The file that it executes decides, where it may be seen (that takes ptrace rights). Where it
        may not, the process's own word is taken, its name or its argv[0]: who lies there brings a
        signal upon himself only, for the process that is asked is the one that is signalled.
        """
        return self._pidfd is not None and any(map(self._is_qemu_program, self._program_names()))

    def gone(self) -> bool:
        """Tell whether the process has ended (a zombie has).

        Raises:
            PeerUnknownError: It is not known which process it is.
        """
        return _has_ended(self._known())

    async def wait_gone(self) -> None:
        """Wait until the process has ended. Cancellable, and any number of tasks may wait.

        Raises:
            PeerUnknownError: It is not known which process it is.
        """
        # trio lets one task wait for a file descriptor, which must then stay open: so each its own.
        pidfd = os.dup(self._known())
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)

    async def exit_status(self, timeout: float) -> int | None:
        """Return the exit status of a process that has ended, as wait(2) gives it.

        The kernel tells it once the parent has reaped the process; nothing wakes who waits for
        that, so it is asked for again and again, for a short time.

        Args:
            timeout: seconds to wait for that.

        Returns:
            None where it can't be had: before Linux 6.15 (``PIDFD_GET_INFO`` with
            ``PIDFD_INFO_EXIT``, linux/pidfd.h), or where the process is not reaped in time.
        """
        deadline = trio.current_time() + timeout
        while True:
            status = _exit_status(self._known())
            if status is not None or trio.current_time() >= deadline:
                return status
            await trio.sleep(REAPED_CHECK)

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal to this process and no other.

        Returns:
            True if it was sent, False if the process had ended already.

        Raises:
            PeerUnknownError: It is not known which process it is.
            NotQemuError: It is not a QEMU.
            SignalNotPermittedError: The daemon may not signal it.
        """
        pidfd = self._known()
        if not self.is_qemu():
            if _has_ended(pidfd):
                return False
            raise NotQemuError(f"process {self.pid} is not a QEMU: no {number.name} was sent")
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise SignalNotPermittedError(
                f"{number.name} to process {self.pid} of user {self.uid}: {error.strerror}"
                " (signalling another user's process takes CAP_KILL)"
            ) from error
        return True

    def _known(self) -> int:
        if self._pidfd is None:
            raise PeerUnknownError(f"the peer process is not known: {self.unknown_because}")
        return self._pidfd

    def _program_names(self) -> tuple[str, ...]:
        """Return by what names the program goes, none if the process has ended."""
        names: tuple[str, ...]
        try:
            executable = Path(f"/proc/{self.pid}/exe").readlink()
            # After a package upgrade the running program is a deleted one.
            names = (executable.name.removesuffix(" (deleted)"),)
        except (FileNotFoundError, ProcessLookupError):
            return ()
        except PermissionError:
            comm = _read(self.pid, "comm", 64) or b""
            argv = self.command_line() or ("",)
            names = (comm.decode(errors="replace").rstrip("\n"), Path(argv[0]).name)
        return () if self._pidfd is None or _has_ended(self._pidfd) else names


def _identify(sock: socket.socket, pid: int) -> tuple[int, ProcessIdentity]:
    """Return a pidfd of a socket's peer, and which process that is."""
    if pid == 0:
        raise PeerUnknownError("it runs in a PID namespace outside this daemon's")
    pidfd = _peer_pidfd(sock, pid)
    if pidfd is None:
        raise PeerUnknownError("it has ended already")
    try:
        return pidfd, _identity(pidfd, pid)
    except BaseException:  # no file descriptor may be left to read /proc with
        os.close(pidfd)
        raise


def _identity(pidfd: int, pid: int) -> ProcessIdentity:
    start_time = _start_time(pid)
    if _has_ended(pidfd):  # then pid may be another's by now, and start_time with it
        raise PeerUnknownError("it has ended already")
    if start_time is None:
        raise PeerUnknownError(f"/proc/{pid} can't be read (hidepid, or systemd's ProtectProc=)")
    return ProcessIdentity(_boot_id(), pid, start_time)


def _peer_pidfd(sock: socket.socket, pid: int) -> int | None:
    """Return a pidfd of a socket's peer, None if the peer has ended."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # Linux before 6.5
            return _open_pidfd(sock, pid)
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENODATA}:  # reaped; Linux before 6.16
            return None
        raise


def _open_pidfd(sock: socket.socket, pid: int) -> int | None:
    """Return a pidfd of a socket's peer by its number, None if the peer has ended.

    Between the connection and this call the peer may have ended and its number gone to another
    process. Then the kernel has closed its end of the connection as well. So if that is still open
    once the pidfd is made, the number was still the peer's when it was made.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _poll(sock.fileno(), 0) & (select.POLLHUP | select.POLLERR):
        os.close(pidfd)
        return None
    return pidfd


def _exit_status(pidfd: int) -> int | None:
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:  # before Linux 6.13; or reaped, where it does not keep the status
        return None
    mask, *_, status = _PIDFD_INFO.unpack(info)
    return status if mask & _PIDFD_INFO_EXIT else None


def _has_ended(pidfd: int) -> bool:
    # pidfd_open(2): readable once the process has ended; with POLLHUP once it was reaped too.
    return _poll(pidfd, select.POLLIN) != 0


def _poll(fd: int, mask: int) -> int:
    poll = select.poll()
    poll.register(fd, mask)
    return next((events for _, events in poll.poll(0)), 0)


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat, None where that can't be read."""
    text = _read(pid, "stat", 4096)
    if not text:
        return None
    # Field 2 is the process's name in parentheses, and may itself hold spaces and parentheses.
    _, _, rest = text.rpartition(b")")
    return int(rest.split()[22 - 3])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _read(pid: int, name: str, limit: int) -> bytes | None:
    """Return the first bytes of a file in /proc/PID, None if it is not there or not to be read."""
    try:
        with Path(f"/proc/{pid}/{name}").open("rb") as file:
            return file.read(limit)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
