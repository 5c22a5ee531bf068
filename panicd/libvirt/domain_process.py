"""The QEMU process of a domain, found by libvirt's own file.

The file lies where only libvirt writes, so it is the host's word. libvirtd may have other
directories than panicd (a container's, a mount namespace). So panicd looks for the file as libvirtd
sees it, by the root of libvirtd's process (proc(5)).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import trio

from panicd.libvirt.protocol import DomainRef
from panicd.qemu.file_rights import Rights
from panicd.qemu.process import Peer, is_qemu_program
from panicd.qemu.process_identity import (
    ProcessIdentity,
    boot_id,
    has_ended,
    start_time_of,
    uids_of,
)
from panicd.rules.libvirt import pid_file

LOOK_EVERY: Final = 0.25  # seconds; an idle Linux runs more often than that
LOOKS: Final = 4
_PROCESSOR: Final = re.compile(r"CPU \d+/")
"""QEMU's name for processors' threads (``debug-threads=on``, which libvirt gives it)."""

UNKNOWN: Final = "libvirt's file on its process can't be read, or tells of another one"


class DomainProcess(Peer):
    """The process of one start of a domain; if it is unknown, libvirt's word on its end.

    Args:
        owner: the libvirt's user.
        token: tells this start from others if no process does.
    """

    def __init__(self, owner: int, token: str) -> None:
        self.pid, self.uid = 0, owner
        self.identity: ProcessIdentity | None = None
        self.unknown_because: str | None = UNKNOWN
        self.rights = Rights(owner, frozenset())
        self._pidfd: int | None = None
        self._is_certain = True
        self._is_qemu_program = is_qemu_program
        self._token = token
        self._has_stopped = trio.Event()

    @classmethod
    async def find(
        cls,
        uri: str,
        domain: DomainRef,
        owner: int,
        libvirtd: int,
        environment: Mapping[str, str],
    ) -> Self:
        """Find the process of a domain; whoever gets it closes it.

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
        found = cls(owner, token)
        for root in (*roots, ""):
            pid = _number_in(Path(root + path))
            if pid is not None and await found._is(pid, domain):
                break
        return found

    async def _is(self, pid: int, domain: DomainRef) -> bool:
        """Take a process for the domain's, if it is; return whether it is."""
        try:
            self._pidfd = os.pidfd_open(pid)
        except (OSError, ValueError, OverflowError):
            return False
        self.pid, start_time, users = pid, None, None
        try:
            await self.learn_command_line()
            users, start_time = uids_of(pid), start_time_of(pid)
        except OSError:  # no file descriptor is left: it remains unknown
            pass
        except BaseException:
            self.close()
            raise
        # Its number may be of another PID namespace; libvirt tells QEMU the UUID.
        if start_time is None or domain.uuid not in (self.command_line() or ()):
            self.close()
            self.pid, self.unknown_because = 0, UNKNOWN
            return False
        self.identity, self.unknown_because = ProcessIdentity(boot_id(), pid, start_time), None
        if users:
            self.rights = Rights(max(users), frozenset())
        return True

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


def _number_in(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
