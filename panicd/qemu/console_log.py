"""The logs of a guest's consoles: those of the configuration, and those of its QEMU's arguments.

What a QEMU's arguments name is only a hint: a process can change what it seems to have been started
with. Such a file is kept only where it belongs to the user that the process runs as, so that a QEMU
which was taken over gets nobody else's file into a bundle.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from panicd.qemu.process import Peer
from panicd.rules.consoles import console_files

MOST: Final = 4  # logs of one guest


@dataclass(frozen=True, slots=True)
class ConsoleLog:
    """A console's log.

    Attributes:
        path: where it is.
        owner: the user that it must belong to; None: whoever's it is.
    """

    path: Path
    owner: int | None = None


def find_logs(
    configured: tuple[Path, ...],
    peer: Peer,
    arguments: tuple[str, ...] | None,
    problems: dict[str, str],
) -> list[ConsoleLog]:
    """Return where a guest's consoles are written to, at most ``MOST``. Blocking.

    Args:
        configured: the paths of the configuration, which come first.
        peer: the QEMU.
        arguments: its argv, where that is known.
        problems: takes why one can't be looked for.
    """
    logs = {path: ConsoleLog(path) for path in configured}
    named = console_files(arguments) if arguments is not None else ()
    for name in named[:MOST]:
        try:
            process = Path("/proc", str(peer.pid))
            # An absolute name replaces the directory that it is joined to.
            path = Path(name) if name.startswith("/") else (process / "cwd").readlink() / name
            owner = _user_of(process)
        except OSError as error:
            problems[name] = error.strerror or str(error)
        else:
            logs.setdefault(path, ConsoleLog(path, owner))
    return list(logs.values())[: max(MOST, len(configured))]


def read_end(log: ConsoleLog, size: int) -> bytes:
    """Return the last bytes of a log. Blocking, but a pipe or a device is not waited for.

    Raises:
        OSError: it can't be read, is no file, or belongs to somebody else.
    """
    # The last part of a name that a QEMU chose is not followed anywhere.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    flags |= 0 if log.owner is None else os.O_NOFOLLOW
    with os.fdopen(os.open(log.path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no file")
        if log.owner not in {None, status.st_uid}:
            raise OSError("it belongs to another user than QEMU; the configuration may name it")
        file.seek(max(0, status.st_size - size))
        return file.read(size)


def _user_of(process: Path) -> int:
    """Return the user that a process runs as now (proc_pid_status(5): real, effective, …)."""
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    users = status.partition("\nUid:")[2].split()
    if len(users) < 2:
        raise OSError("it is not known which user QEMU runs as")
    return int(users[1])
