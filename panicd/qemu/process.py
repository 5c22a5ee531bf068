"""Finds the process at the other end of a monitor's socket, and ends exactly that process.

A process number is no identity: it may name another process by the time a signal is sent. So this
module holds a pidfd, which always names the one process it was made for, dead or alive.

Sources: unix(7) (SO_PEERCRED), pidfd_open(2), pidfd_send_signal(2), proc(5).
"""

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import trio

from panicd.qemu import pidfd_info
from panicd.qemu.file_rights import Rights
from panicd.qemu.other_end import UCRED, holds, inode_of, peer_inode, show_senders
from panicd.qemu.process_arguments import ArgumentsHangError, read_arguments
from panicd.qemu.process_identity import (
    LOOK_AGAIN,
    ProcessIdentity,
    boot_id,
    has_ended,
    read_of,
    start_time_of,
    uids_of,
)
from panicd.qemu.threads import NoThreadError

SO_PEERPIDFD: Final = 77  # Linux 6.5 and later; the socket module has no name for it
SO_PEERGROUPS: Final = 59  # Linux 4.13 and later; no name for it either
MOST_GROUPS: Final = 256  # as many as the socket module has room for
_GID: Final = struct.Struct("I")

# QEMU's programs that may hold a socket open and run no virtual machine. They are prefixes, because
# the kernel cuts a process's name to 15 characters.
_QEMU_TOOLS: Final = ("qemu-storage-d", "qemu-nbd", "qemu-ga", "qemu-pr-helper", "qemu-vmsr-helpe")


REAPED_CHECK: Final = 0.01
"""Seconds between two checks whether an ended process was reaped."""


class PeerError(Exception):
    """Something could not be done to a monitor's peer process."""


class PeerUnknownError(PeerError):
    """The process at the other end is not known."""


class NotQemuError(PeerError):
    """The process at the other end is not a QEMU: a proxy, most likely. It gets no signal."""


class SignalNotPermittedError(PeerError):
    """The kernel refused the signal: the daemon lacks CAP_KILL over this QEMU."""


def is_qemu_program(name: str) -> bool:
    """Tell whether a program of this name runs virtual machines.

    Such names are ``qemu-system-*``, ``qemu-kvm`` and ``kvm`` (from distributions), others that
    begin with ``qemu``, and all of these after a wrapper's leading dot (Nix); not QEMU's own tools.
    """
    name = name.removeprefix(".")
    return (name.startswith("qemu") and not name.startswith(_QEMU_TOOLS)) or name == "kvm"


def executed_by(pid: int) -> str:
    """Return the name of the file that a process executes.

    Raises:
        FileNotFoundError: none, or it frees its memory.
        PermissionError: panicd may not see it.
        ProcessLookupError: the process has ended.
        OSError: the file's path is too long by now (ENAMETOOLONG).
    """
    executable = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - a Path is slower
    name = executable.rpartition("/")[2]
    return name.removesuffix(" (deleted)")  # as after a package's upgrade


def uid_of(sock: socket.socket) -> int:
    """Return the user at a unix socket's other end, as of when it connected (unix(7))."""
    return _credentials(sock)[1]


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return pid, uid, gid


def _groups(sock: socket.socket) -> tuple[int, ...]:
    """Return a peer's supplementary groups as of then; none where the kernel doesn't tell."""
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MOST_GROUPS * _GID.size)
    except OSError:  # Linux before 4.13, or more groups than there is room for
        return ()
    return tuple(gid for (gid,) in _GID.iter_unpack(groups))


class Peer:
    """The process at the other end of one connection.

    panicd can watch and command a domain whose peer is not known; it only can't signal the process
    or wait for it. So an unknown peer is a state of this object, not a failure to make it:
    ``identity`` is None, ``unknown_because`` says why, and methods that need the process raise
    PeerUnknownError.

    Holds a file descriptor until ``close``; usable in a ``with`` statement.

    Attributes:
        pid: Process number, 0 where the process is in a PID namespace that panicd can't see.
        uid: User number of the process when it called listen or connect.
        rights: That user's rights to files, with the groups that the process had then.
        identity: The process's identity, None where the process is not known.
        unknown_because: Why the process is not known, None where it is known.
    """

    _arguments: tuple[str, ...] | None = None

    def __init__(self, sock: socket.socket, is_qemu_program: Callable[[str], bool]) -> None:
        self.pid, self.uid, gid = _credentials(sock)
        self.rights = Rights(self.uid, frozenset((gid, *_groups(sock))))
        self.identity: ProcessIdentity | None = None
        self.unknown_because: str | None = None
        self._pidfd: int | None = None
        self._is_certain = False
        self._inode = inode_of(sock)
        self._is_qemu_program = is_qemu_program
        try:
            self._pidfd, self._is_certain, self.identity = _identify(sock, self.pid)
            show_senders(sock)
        except PeerUnknownError as error:
            self.unknown_because = str(error)

    @classmethod
    def of(
        cls,
        sock: socket.socket,
        *,
        is_qemu_program: Callable[[str], bool] = is_qemu_program,
    ) -> Self:
        """Find the process that is connected to a socket.

        Call this as soon as the connection is made, and ``confirm`` once the other end has spoken.
        Behind a proxy this finds the proxy.

        Args:
            sock: A connected AF_UNIX stream socket; it is not kept.
            is_qemu_program: Tells from a program's name whether it may be signalled.

        Raises:
            OSError: No file descriptor is left.
        """
        return cls(sock, is_qemu_program)

    def confirm(self, answered_by: int | None = None) -> None:
        """Check that the process holds the other end, and treat it as unknown where it does not.

        Call this once something was read: before, the connection may not have been accepted. It is
        proof that the process answered a question that was asked after this object was made.
        Without such an answer the process must have the other end open, where panicd may see its
        descriptors (CAP_SYS_PTRACE, or the same user). Elsewhere SO_PEERPIDFD is enough, unless
        another process answered. The process must also belong to the user who listened or
        connected, unless that user is root. A set-uid program that a user executed in place of his
        own does not.

        Args:
            answered_by: the number of the process that sent the answer; None where it is not known.
        """
        if self._pidfd is None:
            return
        problem = self._doubt(self._pidfd, answered_by)
        if problem:
            self.close()
            self.identity, self.unknown_because = None, problem
        self._is_certain = True

    def recognise(self, known: ProcessIdentity | None) -> bool:
        """Return whether this is an already known process, which needs no new proof.

        Used before Linux 6.5, for a connection that was not accepted yet.
        """
        if known is None or self.identity != known:
            return False
        self._is_certain = True
        return True

    def _doubt(self, pidfd: int, answered_by: int | None) -> str:
        held = True if answered_by == self.pid else self._holds()
        uids = _users(pidfd, self.pid)
        if has_ended(pidfd):
            return "it has ended already"
        if held is False:
            return f"process {self.pid} has left the connection to another"
        if held is None and (answered_by is not None or not self._is_certain):
            return f"whether process {self.pid} holds the connection is not known"
        if uids is None or (uids != {self.uid} and self.uid != 0):
            return f"process {self.pid} does not belong to user {self.uid}, who made the connection"
        return ""

    def _holds(self) -> bool | None:
        inode = peer_inode(self._inode)
        return holds(self.pid, inode) if inode else None

    def close(self) -> None:
        """Let go of the process. A wait in progress goes on."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = self._arguments = None
            self.unknown_because = "it was closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def learn_command_line(self) -> None:
        """Read the process's argv, within a time limit."""
        text = None
        if self._pidfd is not None:
            with suppress(ArgumentsHangError, NoThreadError):
                text = await read_arguments(self.pid, _users(self._pidfd, self.pid))
        self._arguments = self._parse(text)

    def command_line(self) -> tuple[str, ...] | None:
        r"""Return the process's argv as it was learnt, None where it was not, or can't be read.

        Bytes that are not UTF-8 are spelt as ``\xNN``. None also where argv is too long, because
        its end may contradict its beginning.
        """
        ended = self._pidfd is None or has_ended(self._pidfd)
        return None if ended else self._arguments

    def _parse(self, text: bytes | None) -> tuple[str, ...] | None:
        if not text or self._pidfd is None or has_ended(self._pidfd):
            return None
        arguments = text.removesuffix(b"\0").split(b"\0")
        return tuple(argument.decode(errors="backslashreplace") for argument in arguments)

    def is_qemu(self) -> bool:
        """Tell whether the process is a QEMU that runs a virtual machine, and alive.

        The file that it executes decides, where panicd may see it (that takes ptrace rights). It is
        not seen either while the process frees its memory, which takes a large one seconds. Then
        its name or its argv[0] decides: a process that lies there gets only itself signalled.
        """
        return self._pidfd is not None and any(map(self._is_qemu_program, self._program_names()))

    def beyond_signals(self, *, is_qemu: bool | None = None) -> str:
        """Return why a signal could not end the process; empty where it could.

        Args:
            is_qemu: what ``is_qemu`` returned just now, where it was called.
        """
        if self._pidfd is None:
            return self.unknown_because or ""
        if not (self.is_qemu() if is_qemu is None else is_qemu):
            return f"process {self.pid} is not a QEMU"
        try:
            signal.pidfd_send_signal(self._pidfd, 0)  # only checks, sends nothing (kill(2))
        except PermissionError:
            return f"user {self.uid}'s processes take CAP_KILL"
        except ProcessLookupError:
            return "it has ended already"
        return ""

    def gone(self) -> bool:
        """Tell whether the process has ended (a zombie has).

        Raises:
            PeerUnknownError: It is not known which process it is.
        """
        return has_ended(self._known())

    async def wait_gone(self) -> None:
        """Wait until the process has ended. Cancellable, and any number of tasks may wait.

        While no file descriptor is left, it looks again and again.

        Raises:
            PeerUnknownError: It is not known which process it is.
        """
        # trio lets only one task wait for a file descriptor, which must stay open: so each task
        # has its own.
        await trio.lowlevel.checkpoint()
        while not has_ended(self._known()):
            try:
                pidfd = os.dup(self._known())
            except OSError:
                await trio.sleep(LOOK_AGAIN)
                continue
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
            return

    async def exit_status(self, timeout: float) -> int | None:
        """Return the exit status of a process that has ended, as wait(2) gives it.

        The kernel tells the status once the parent has reaped the process. It does not announce
        that, so this method asks again and again for a short time.

        Args:
            timeout: seconds to wait for the status.

        Returns:
            The status, or None: before Linux 6.15 (``PIDFD_GET_INFO`` with ``PIDFD_INFO_EXIT``,
            linux/pidfd.h), or where the process is not reaped in time.
        """
        deadline = trio.current_time() + timeout
        while True:
            status = pidfd_info.exit_status(self._known())
            if status is not None or trio.current_time() >= deadline:
                return status
            await trio.sleep(REAPED_CHECK)

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal to this process and no other; if need be, ``confirm`` it first.

        Returns:
            True if it was sent, False if the process had ended already.

        Raises:
            PeerUnknownError: It is not known which process it is.
            NotQemuError: It is not a QEMU.
            SignalNotPermittedError: The daemon may not signal it.
        """
        if not self._is_certain:
            self.confirm()
        pidfd = self._known()
        if not self.is_qemu():
            if has_ended(pidfd):
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
        """Return the program's names, none if the process has ended."""
        names: tuple[str, ...]
        try:
            names = (executed_by(self.pid),)
        except ProcessLookupError:
            return ()
        except OSError:  # none any more: it frees its memory; or it is not to be seen
            comm = read_of(self.pid, "comm", 64) or b""
            argv = self.command_line() or ("",)
            names = (comm.decode(errors="replace").rstrip("\n"), Path(argv[0]).name)
        return () if self._pidfd is None or has_ended(self._pidfd) else names


def _identify(sock: socket.socket, pid: int) -> tuple[int, bool, ProcessIdentity]:
    """Return a pidfd of a socket's peer, whether it is certain, and the process's identity."""
    if pid == 0:
        raise PeerUnknownError("it runs in a PID namespace outside this daemon's")
    pidfd, certain = _peer_pidfd(sock, pid)
    if pidfd is None:
        raise PeerUnknownError("it has ended already")
    try:
        return pidfd, certain, _identity(pidfd, pid)
    except BaseException:  # no file descriptor may be left to read /proc with
        os.close(pidfd)
        raise


def _identity(pidfd: int, pid: int) -> ProcessIdentity:
    start_time = start_time_of(pid)
    if has_ended(pidfd):  # then pid may be another's by now, and start_time with it
        raise PeerUnknownError("it has ended already")
    if start_time is None:
        raise PeerUnknownError(f"/proc/{pid} can't be read (hidepid, or systemd's ProtectProc=)")
    return ProcessIdentity(boot_id(), pid, start_time)


def _peer_pidfd(sock: socket.socket, pid: int) -> tuple[int | None, bool]:
    """Return a pidfd of a socket's peer, None if the peer has ended; and whether it is certain.

    Before Linux 6.5 the kernel gives only a number, which may be another process's by now.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD), True
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # Linux before 6.5
            try:
                return os.pidfd_open(pid), False
            except ProcessLookupError:
                return None, False
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENODATA}:  # reaped; Linux before 6.16
            return None, True
        raise


def _users(pidfd: int, pid: int) -> set[int] | None:
    """Return the users that a process is or may become; None: not known."""
    told = pidfd_info.users(pidfd)
    return uids_of(pid) if told is None else told
