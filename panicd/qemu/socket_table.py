"""Tells whether a client is connected to a monitor's socket, from the kernel's table of sockets.

A QEMU serves one client at a time. If it says nothing, another client has it, or it hangs. A
waiting client can't tell these apart; the table can. One reading of the table serves all callers
within a few seconds: with 10,000 domains it has some 30,000 lines.

Source: ``/proc/net/unix`` (proc(5)), and its fields as Linux prints them (``net/unix/af_unix.c``):
a socket that was accepted is in state 03 and has an inode; its references are three while its
client has its end open, and fewer afterwards.
"""

import re
from enum import Enum, auto
from pathlib import Path
from typing import Final

import trio

from panicd.qemu.threads import NoThreadError, in_thread

TABLE: Final = Path("/proc/net/unix")
READ_AGAIN_AFTER: Final = 5.0  # seconds
TAKEN: Final = "another client has this monitor, and QEMU serves one at a time"
DOES_NOT_ANSWER: Final = "QEMU does not answer: it takes no connection"
# Anybody may give a socket a name with line breaks, and the kernel prints it as it is.
_ENTRY: Final = re.compile(
    "^[0-9a-fA-F]+: ([0-9A-F]{8}) [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} ([0-9A-F]{2})"
    " +([0-9]+) (.+)$",
    re.MULTILINE,
)
_LISTENS: Final = 0x10000  # __SO_ACCEPTCON (linux/net.h)
_CONNECTED: Final = 3  # SS_CONNECTED (linux/net.h)
_HELD_BY_CLIENT: Final = 3  # references


class Service(Enum):
    """Whether a listening socket's owner serves a client."""

    TAKEN = auto()  # it has accepted a client, which is still there
    FREE = auto()  # it serves no client
    UNKNOWN = auto()  # the socket is not in the table: another network namespace, or path


class SocketTable:
    """The table as last read."""

    def __init__(self) -> None:
        self._read_at = -READ_AGAIN_AFTER
        self._reading = trio.Lock()
        self._services: dict[str, Service] = {}

    async def service(self, path: str) -> Service:
        """Tell whether the owner of a socket serves a client, by a table some seconds old."""
        async with self._reading:
            if trio.current_time() - self._read_at >= READ_AGAIN_AFTER:
                try:
                    self._services = await in_thread(_read)
                except NoThreadError:
                    return Service.UNKNOWN
                self._read_at = trio.current_time()
        return self._services.get(path, Service.UNKNOWN)

    async def why_silent(self, path: str, said: str, *, greeted: bool = False) -> tuple[str, bool]:
        """Tell a QEMU that does not answer from one that serves another client.

        Args:
            path: the path of its monitor.
            said: the fault that panicd met.
            greeted: QEMU has sent its greeting.

        Returns:
            Why there is no session, and whether QEMU is known not to answer.
        """
        if greeted:
            return f"QEMU does not answer: {said}", True
        match await self.service(path):
            case Service.TAKEN:
                return TAKEN, False
            case Service.FREE:
                return DOES_NOT_ANSWER, True
            case Service.UNKNOWN:
                return f"{said}: QEMU does not answer, or another client has this monitor", False


def _read() -> dict[str, Service]:
    try:
        text = TABLE.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # a /proc without it
        return {}
    return services(text)


def services(table: str) -> dict[str, Service]:
    """Return the table's answer for each path with a listening socket."""
    found: dict[str, Service] = {}
    taken = set()
    for entry in _ENTRY.finditer(table):
        references, flags, state = (int(number, 16) for number in entry.group(1, 2, 3))
        inode, path = entry.group(4, 5)
        if flags & _LISTENS:
            found[path] = Service.FREE
        elif state == _CONNECTED and inode != "0":
            taken |= {path} if references >= _HELD_BY_CLIENT else set()
    return {path: Service.TAKEN if path in taken else known for path, known in found.items()}
