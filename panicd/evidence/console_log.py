"""The logs of a guest's consoles: those of the configuration, and those of its QEMU's arguments.

QEMU's arguments are only a hint: a process can change the arguments that it shows, and can become a
program with more rights than its user has. So panicd keeps such a file only if two users may read
it: the user who connected, with the rights of that moment, and the user that the process runs as
now. So neither a QEMU that was taken over nor a process that poses as one gets another user's file
into a bundle. panicd does not look for the files of a QEMU in a container: they are not the host's.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from panicd.qemu.file_rights import Rights, open_as, open_regular
from panicd.qemu.process import Peer
from panicd.rules.consoles import console_files

MOST: Final = 4  # logs of one guest


@dataclass(frozen=True, slots=True)
class ConsoleLog:
    """A console's log.

    Attributes:
        path: where it is.
        users: who must all be allowed to read it; None: the configuration names it.
    """

    path: Path
    users: tuple[Rights, ...] | None = None


def find_logs(
    configured: tuple[Path, ...],
    peer: Peer,
    arguments: tuple[str, ...] | None,
    problems: dict[str, str],
) -> list[ConsoleLog]:
    """Return where a guest's consoles are logged, at most ``MOST``. Blocking.

    Args:
        configured: the paths of the configuration, which come first.
        peer: the QEMU.
        arguments: its argv; None if that is not known, or whether it is a QEMU.
        problems: takes why one can't be looked for.
    """
    logs = {path: ConsoleLog(path) for path in configured}
    named = console_files(arguments) if arguments is not None else ()
    for name in named[:MOST]:
        process = Path("/proc", str(peer.pid))
        try:
            # An absolute name replaces the directory that it is joined to.
            path = Path(name) if name.startswith("/") else (process / "cwd").readlink() / name
            users = peer.rights, _rights_of(process)
        except OSError as error:
            problems[name] = error.strerror or str(error)
        else:
            logs.setdefault(path, ConsoleLog(path, users))
    return list(logs.values())[: max(MOST, len(configured))]


def read_end(log: ConsoleLog, size: int) -> bytes:
    """Return the last bytes of a log. Blocking, but it does not wait for a pipe or a device.

    Raises:
        OSError: it can't be read, is no file, or whoever names it may not read it.
    """
    opened = open_regular(log.path) if log.users is None else open_as(log.path, log.users)
    with os.fdopen(opened, "rb") as file:
        length = os.fstat(opened).st_size
        file.seek(max(0, length - size))
        return file.read(min(size, length))


def _rights_of(process: Path) -> Rights:
    """Return what a process may do to files now (proc_pid_status(5)).

    Raises:
        OSError: that can't be read, or the process is in a container.
    """
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    lines = (line.partition(":") for line in status.split("\n"))
    fields = {key: value.split() for key, _, value in lines}
    users, groups = fields.get("Uid", []), fields.get("Gid", [])
    if len(users) != 4 or len(groups) != 4:  # real, effective, saved, and for files
        raise OSError("it is not known which user QEMU runs as")
    if len(fields.get("NSpid", [])) > 1:
        raise OSError("QEMU is in a container, and its files too; the configuration may name them")
    return Rights(int(users[3]), frozenset(map(int, [groups[3], *fields.get("Groups", [])])))
