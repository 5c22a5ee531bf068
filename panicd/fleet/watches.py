"""inotify's watches on directories, and what to do if the kernel has no more of them.

Sources: inotify(7); poll on ``/proc/self/mountinfo``, proc(5).
"""

import errno
import math
import select
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

import trio
from inotify_simple import Event, INotify, flags

WATCHED: Final = (
    flags.CREATE | flags.MOVED_TO | flags.DELETE | flags.MOVED_FROM | flags.ATTRIB
    | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
)  # fmt: skip
LOOK_EVERY: Final = 5.0  # seconds, if nothing reports a change
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
MOUNTS: Final = Path("/proc/self/mountinfo")

_LIMITS: Final = {
    errno.EMFILE: "no inotify instance, or no open file, is left"
    " (sysctl fs.inotify.max_user_instances, LimitNOFILE=)",
    errno.ENFILE: "this host has no open file left (sysctl fs.file-max)",
    errno.ENOMEM: "the kernel has no memory left for inotify",
    errno.ENOSPC: "no inotify watch is left (sysctl fs.inotify.max_user_watches)",
}


class Watches:
    """The watches of one consumer.

    If a limit of the kernel is reached, nothing is lost: ``wait`` returns every few seconds so
    that the consumer looks at everything, and then what could not be watched is tried again.

    Attributes:
        limit: which limit was reached; empty: none.
    """

    def __init__(self) -> None:
        self.limit = ""
        self._inotify: INotify | None = None
        self._all = False
        self._waiting: trio.CancelScope | None = None

    def open(self) -> None:
        """Begin, or try again what could not be done before."""
        self.limit = ""
        if self._inotify is None:
            try:
                self._inotify = INotify()
            except OSError as error:
                self._reach_limit(error)

    def close(self) -> None:
        """End all watches."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def add(self, path: Path, *, follow: bool) -> int | str | None:
        """Return a directory's watch descriptor, or why there is none, or None without one.

        The kernel gives the same descriptor for the same directory, and no number twice.
        """
        if self._inotify is None:
            return self._look_at(path, follow=follow)
        try:
            watch: int = self._inotify.add_watch(
                path, WATCHED if follow else WATCHED | flags.DONT_FOLLOW
            )
        except OSError as error:
            if error.errno in ABSENT:
                return None
            if error.errno in _LIMITS:
                return self._reach_limit(error)
            return str(error.strerror)
        return watch

    def remove(self, watch: int) -> None:
        """End one watch."""
        if self._inotify is None:
            return
        try:
            self._inotify.rm_watch(watch)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it ended with its directory
                raise

    def look_again(self) -> None:
        """Have ``wait`` return, so that the consumer looks at everything."""
        self._all = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait(self) -> None:
        """Wait until there is something to ``read``."""
        every = LOOK_EVERY if self.limit else math.inf
        with trio.move_on_after(every) as self._waiting:
            if self._all:
                await trio.lowlevel.checkpoint()
            elif self._inotify is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(self._inotify.fileno())
        self._all |= self._waiting.cancelled_caught
        self._waiting = None

    def read(self) -> list[Event] | None:
        """Return what inotify says; None: look at everything."""
        if self._all or self._inotify is None:
            self._all = False
            return None
        events: list[Event] = self._inotify.read(timeout=0)
        return None if any(event.mask & flags.Q_OVERFLOW for event in events) else events

    def _look_at(self, path: Path, *, follow: bool) -> str | None:
        """Return why a directory can't be watched; None if it can."""
        try:
            is_directory = stat.S_ISDIR(path.stat(follow_symlinks=follow).st_mode)
        except OSError as error:
            return None if error.errno in ABSENT else str(error.strerror)
        return self.limit if is_directory else None

    def _reach_limit(self, error: OSError) -> str:
        limit = _LIMITS.get(error.errno or 0)
        if limit is None:
            raise error
        self.limit = f"{limit}: panicd looks at it every {LOOK_EVERY:g} s"
        return self.limit


def _mounts() -> BinaryIO:
    return MOUNTS.open("rb")


async def mount_changes() -> AsyncIterator[None]:
    """Yield whenever a file system was mounted or unmounted, which inotify does not report.

    Raises:
        OSError: there is no such file, or no open file is left.
    """
    with _mounts() as mounts, select.epoll() as changed:
        # It can always be read; only more than that means a change.
        changed.register(mounts, select.EPOLLPRI)
        while True:
            await trio.lowlevel.wait_readable(changed.fileno())
            changed.poll(0)
            yield
