"""The QEMU process of a domain, found by libvirt's own file.

The file lies where only libvirt writes, so it is the host's word. libvirtd may have other
directories than panicd (a container's, a mount namespace). So panicd looks for the file as libvirtd
sees it, by the root of libvirtd's process (proc(5)).
"""

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import trio

from panicd.libvirt.protocol import DomainRef
from panicd.qemu.file_rights import Rights
from panicd.qemu.process import MAX_COMMAND_LINE, Peer, is_qemu_program
from panicd.qemu.process_identity import (
    ProcessIdentity,
    boot_id,
    has_ended,
    read_of,
    start_time_of,
    uids_of,
)
from panicd.rules.libvirt import pid_file

READ_WITHIN: Final = 1.0
"""Seconds for a QEMU's argv, at most (``Peer.learn_command_line``); all else waits meanwhile."""

_READERS: Final = threading.BoundedSemaphore(8)
"""Threads that may read an argv, hanging ones included."""

LOOK_EVERY: Final = 0.25  # seconds; an idle Linux runs more often than that
LOOKS: Final = 4
_PROCESSOR: Final = re.compile(r"CPU \d+/")
"""QEMU's name for processors' threads (``debug-threads=on``, which libvirt gives it)."""

UNKNOWN: Final = "libvirt's file on its process can't be read, or tells of another one"


class DomainProcess(Peer):
    """The process of one start of a domain; if it is unknown, libvirt's word on its end.

    Args:
        owner: the libvirt's user.
        domain: which start of which.
        token: tells this start from others if no process does.
        pid: the process's number; 0: unknown.
    """

    def __init__(self, owner: int, domain: DomainRef, token: str, pid: int) -> None:
        self.pid, self.uid = 0, owner
        self.identity: ProcessIdentity | None = None
        self.unknown_because: str | None = UNKNOWN
        self._pidfd: int | None = None
        self._is_certain = True
        self._is_qemu_program = is_qemu_program
        self._token = token
        self._has_stopped = trio.Event()
        if pid:
            self._open(pid, domain)
        uids = uids_of(pid) if self._pidfd is not None else None
        self.rights = Rights(max(uids) if uids else owner, frozenset())

    @classmethod
    def find(
        cls,
        uri: str,
        domain: DomainRef,
        owner: int,
        libvirtd: int,
        environment: Mapping[str, str],
    ) -> Self:
        """Find the process of a domain.

        Args:
            uri: of the libvirt.
            domain: which.
            owner: the libvirt's user.
            libvirtd: the number of its daemon's process; 0: unknown.
            environment: panicd's own.
        """
        token = f"libvirt:{boot_id()}/{uri}#{domain.uuid}#{domain.id}"  # numbers begin anew
        path = str(pid_file(uri, domain.name, environment))
        roots = [f"/proc/{libvirtd}/root"] if libvirtd else []
        for root in (*roots, ""):
            try:
                pid = int(Path(root + path).read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue
            found = cls(owner, domain, token, pid)
            if found.identity is not None:
                return found
        return cls(owner, domain, token, 0)

    def _open(self, pid: int, domain: DomainRef) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, ValueError):
            return
        start_time = start_time_of(pid)
        # Its number may be of another PID namespace; libvirt tells QEMU the UUID.
        arguments = _command_line(pid).split(b"\0")
        if start_time is None or domain.uuid.encode() not in arguments or has_ended(pidfd):
            os.close(pidfd)
            return
        self.pid, self._pidfd, self.unknown_because = pid, pidfd, None
        self.identity = ProcessIdentity(boot_id(), pid, start_time)

    @property
    def token(self) -> str:
        """Tells this start of the domain from every other."""
        return str(self.identity) if self.identity is not None else self._token

    async def guest_runs(self) -> bool:
        """Tell whether the guest's processors are seen to run, again and again.

        A stopped guest's processors run only for a moment, when QEMU is asked about them.
        """
        before = self._time_of_processors()
        for _ in range(LOOKS):
            await trio.sleep(LOOK_EVERY)
            now = self._time_of_processors()
            if before is None or now is None or now <= before:
                return False
            before = now
        return True

    def _time_of_processors(self) -> int | None:
        """Return the processors' nanoseconds of running (proc(5), ``schedstat``); None: unknown."""
        if self._pidfd is None:
            return None
        total, tasks = 0, Path(f"/proc/{self.pid}/task")
        try:
            for task in tasks.iterdir():
                if _PROCESSOR.match((task / "comm").read_text(encoding="utf-8")):
                    total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return None if has_ended(self._pidfd) else total

    def note_stopped(self) -> None:
        """Note that libvirt says that the domain has ended."""
        self._has_stopped.set()

    def gone(self) -> bool:
        """Tell whether the process has ended; by libvirt's word if the process is unknown."""
        return super().gone() if self._pidfd is not None else self._has_stopped.is_set()

    async def wait_gone(self) -> None:
        """Wait for its end."""
        if self._pidfd is not None:
            await super().wait_gone()
        else:
            await self._has_stopped.wait()

    async def exit_status(self, timeout: float) -> int | None:
        """Return its exit status, if it can be had."""
        return await super().exit_status(timeout) if self._pidfd is not None else None


def _command_line(pid: int) -> bytes:
    """Return a process's argv; nothing if it can't be read in time."""
    read: list[bytes | None] = []
    readers = _READERS

    def look() -> None:
        try:
            read.append(read_of(pid, "cmdline", MAX_COMMAND_LINE))
        finally:
            readers.release()

    if not readers.acquire(blocking=False):
        return b""
    reader = threading.Thread(target=look, name="command line", daemon=True)
    try:
        reader.start()
    except RuntimeError:  # no thread is left
        readers.release()
        return b""
    reader.join(READ_WITHIN)
    return (read[0] if read else None) or b""
