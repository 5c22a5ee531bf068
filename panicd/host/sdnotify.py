"""Tells systemd the daemon's state: readiness, status, watchdog.

The protocol is one datagram of `KEY=value` lines (sd_notify(3)). Outside systemd, where
`$NOTIFY_SOCKET` is not set, nothing is sent.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

SEND_TIMEOUT = 1.0
"""Seconds that a send may wait for the service manager.

`READY=1` is sent once and must not be lost to a queue that is full for a moment. But a manager
that does not read must not hold up the domains.
"""

OF_ONE_PROCESS: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "MAINPID",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
)
"""Variables that systemd sets for the started process, not for its children (systemd.exec(5)).

With them a QEMU or a hook could speak for panicd. Children keep the variables that describe the
unit, which they belong to: `INVOCATION_ID`, `JOURNAL_STREAM`, `RUNTIME_DIRECTORY` and others.
"""


class ServiceManager:
    """The service manager that started this process, if one did.

    Args:
        variables: Its variables from the environment: `OF_ONE_PROCESS`.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> "ServiceManager":
        """Take its variables out of the environment, so that no child process inherits them."""
        there = [name for name in OF_ONE_PROCESS if name in environment]
        return cls({name: environment.pop(name) for name in there})

    def notify(self, **fields: str | int) -> bool:
        """Send state to the manager, such as `notify(READY=1, STATUS="4 domains")`.

        A line break in a value becomes a space: it would start a field of its own (sd_notify(3)).

        Args:
            fields: Names and values as sd_notify(3) lists them.

        Returns:
            True if it was sent. False outside systemd, and when the manager can't be reached: the
            daemon goes on.
        """
        path = self._variables.get("NOTIFY_SOCKET", "")
        if not path.startswith(("/", "@")):
            return False
        # An abstract socket is written with '@' and addressed with a NUL byte (unix(7)).
        address = path.replace("@", "\0", 1) if path.startswith("@") else path
        lines = (f"{key}={' '.join(str(value).split())}" for key, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT)
                sender.connect(address)
                sender.send("\n".join(lines).encode(errors="replace"))
        except OSError:
            return False
        return True

    def watchdog_interval(self) -> float | None:
        """Return how often `notify(WATCHDOG=1)` is due.

        Returns:
            Seconds: half of `$WATCHDOG_USEC`, as sd_watchdog_enabled(3) recommends. None when no
            watchdog is set, or when `$WATCHDOG_PID` names another process.
        """
        limit = self._variables.get("WATCHDOG_USEC", "")
        if not (limit.isascii() and limit.isdecimal()) or int(limit) == 0:
            return None
        if self._variables.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        return int(limit) / 2 / 1_000_000
