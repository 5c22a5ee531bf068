"""Which monitor sockets there are: a glob pattern, kept up to date by inotify.

Every directory on the pattern's way is watched, also those without wildcards. So a directory that
does not exist yet, or is removed and made again, is noticed: a directory that a process has open
reports its removal only to its parent. Each directory is first watched and then scanned, so that
what is made in between is seen twice rather than missed. If the kernel's queue overflows, or a
mount changes (``look_again``), everything is scanned and compared again. Nothing is polled, unless
the kernel has no watches left (``watches``).

One thing is not noticed, because the kernel does not report it: a change behind a symbolic link, if
that link is a component of the pattern without wildcards.

Sources: inotify(7), glob(7).
"""

import fnmatch
import glob
import re
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import trio
from inotify_simple import flags

from panicd.fleet.watches import ABSENT, Watches
from panicd.rules.socket_path import pattern_problem

AT_ONCE: Final = 16  # changes, before other tasks have their turn
_SOMETHING_WENT: Final = flags.DELETE | flags.MOVED_FROM
_ITSELF_WENT: Final = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
LINK: Final = "it is a symbolic link, which wildcards pass over: name it without wildcards"
UNPRINTABLE: Final = "its name has characters that can't be printed"


@dataclass(frozen=True, slots=True)
class Appeared:
    """A socket at this path. Nobody may listen on it yet, or any more."""

    path: Path


@dataclass(frozen=True, slots=True)
class Vanished:
    """The socket at this path is gone. A connection that was made through it may still exist."""

    path: Path


@dataclass(frozen=True, slots=True)
class Unreadable:
    """panicd may not see all sockets in this directory.

    It is reported once for each reason. If the permissions change, the directory is looked at
    again.
    """

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Readable:
    """What ``Unreadable`` said of a directory is no longer true."""

    path: Path


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A matching socket or directory that is not used, and why; ``Vanished`` ends it."""

    path: Path
    reason: str


Change = Appeared | Vanished | Unreadable | Readable | PassedOver


@dataclass(frozen=True, slots=True)
class _Component:
    """One component of a pattern: a plain name, or one with wildcards."""

    text: str
    wild: re.Pattern[str] | None

    @classmethod
    def parse(cls, text: str) -> Self:
        if not glob.has_magic(text):
            return cls(text, None)
        return cls(text, re.compile(fnmatch.translate(text)))

    def matches(self, name: str) -> bool:
        if self.wild is None:
            return name == self.text
        if name.startswith(".") and not self.text.startswith("."):
            return False
        return self.wild.match(name) is not None


@dataclass(frozen=True, slots=True)
class _SocketFile:
    """Which file this is. A number may be used again for the next file, hence the time."""

    device: int
    inode: int
    modified: int  # nanoseconds; of a socket, when it was bound


@dataclass(eq=False, slots=True)
class _Directory:
    """A directory on the pattern's way, and what matches in it.

    Attributes:
        path: Its path.
        parent: The directory that it was found in; None for the root.
        depth: Which of the pattern's components its entries are compared with.
        watch: inotify's watch descriptor, or why there is none.
        sockets: Those that were announced, by name; on the last level only.
        directories: Those that are followed, by name; on the other levels.
        complaint: Why panicd can't see everything in it, as it was last announced.
        passed: The entries that were announced as passed over, by name.
    """

    path: Path
    parent: Self | None
    depth: int
    watch: int | str
    sockets: dict[str, _SocketFile] = field(default_factory=dict)
    directories: dict[str, Self] = field(default_factory=dict)
    complaint: str | None = None
    passed: set[str] = field(default_factory=set)


class Discovery:
    """The sockets that match a pattern, as a stream of changes: first those that exist.

    For each path Appeared and Vanished alternate, beginning with Appeared. If another socket
    replaces one, by unlink and bind or by rename, Vanished and Appeared follow each other
    directly. So they can start and end one task for each path. A task whose connection still lives
    may keep it after Vanished, because the QEMU behind it lives too. If sockets come and go while
    a directory is scanned, such a pair may rarely stand for a change that was announced already.

    Wildcards find no symbolic links, or one monitor could be found twice. They find no name that
    can't be printed, because names end up in logs and reports. Both are PassedOver. A component
    without wildcards may be a symbolic link. Entries that are no sockets are not reported.

    The kernel's queue and the number of sockets limit what waits: nothing is read while the
    consumer is busy.

    Usage::

        with Discovery("/run/qemu/*.qmp") as changes:
            async for change in changes:
                ...

    Args:
        pattern: One that has no ``pattern_problem``.

    Raises:
        ValueError: It has one.
    """

    def __init__(self, pattern: str) -> None:
        if problem := pattern_problem(pattern):
            raise ValueError(f"{pattern!r}: expected {problem}")
        self._components = tuple(_Component.parse(text) for text in pattern[1:].split("/"))
        self._changes: deque[Change] = deque()
        self._taken = 0
        self._watched: dict[int, list[_Directory]] = {}
        self._watches = Watches()

    def __enter__(self) -> Self:
        self._root = _Directory(Path("/"), None, 0, "not looked at yet")
        try:
            self._look_at_all()
        except BaseException:
            self._watches.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._watches.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        self._taken += 1
        if self._taken % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        while not self._changes:
            await self._watches.wait()
            self._read()
        return self._changes.popleft()

    def _read(self) -> None:
        """Take in what inotify said, or look at everything."""
        events = self._watches.read()
        if events is None:
            self._look_at_all()
            return
        for event in events:
            # More than one: links may lead to the same directory, and inotify watches inodes.
            for directory in tuple(self._watched.get(event.wd, ())):
                if directory.watch == event.wd:  # the one before may have led to its end
                    self._take(directory, event.mask, event.name)

    def look_again(self) -> None:
        """Have everything scanned and compared soon: something was mounted or unmounted."""
        self._watches.look_again()

    def _look_at_all(self) -> None:
        self._watches.open()
        watch = self._watches.add(self._root.path, follow=True)
        if self._root.watch != watch:
            self._root.watch = watch or "not there"
            self._register(self._root)
        self._scan(self._root)

    def _take(self, directory: _Directory, mask: int, name: str) -> None:
        """Take in one event of one directory."""
        if mask & _ITSELF_WENT:
            if directory.parent is None:
                return
            directory, name = directory.parent, directory.path.name
            self._forget(directory, name)
        elif name == "":
            self._scan(directory)
            return
        elif not self._components[directory.depth].matches(name):
            return
        elif mask & _SOMETHING_WENT:
            self._forget(directory, name)
        reason = self._look(directory, name) or self._blindness(directory)
        if reason is not None:  # one entry that panicd can see does not prove that it can see all
            self._complain(directory, reason)

    def _scan(self, directory: _Directory) -> None:
        """Compare a directory, and those in it, with what exists now."""
        component = self._components[directory.depth]
        reason: str | None = None
        if component.wild is None:
            reason = self._look(directory, component.text)
        else:
            try:
                found = {entry.name for entry in directory.path.iterdir()}
            except OSError as error:
                reason = None if error.errno in ABSENT else str(error.strerror)
            else:
                found = set(filter(component.matches, found))
                known = {*directory.sockets, *directory.directories, *directory.passed}
                for name in known - found:
                    self._forget(directory, name)
                for name in sorted(found):
                    reason = self._look(directory, name) or reason
        self._complain(directory, reason or self._blindness(directory))

    def _look(self, directory: _Directory, name: str) -> str | None:
        """Compare one matching entry with what exists now.

        Returns:
            None, or why that can't be seen.
        """
        follow = self._components[directory.depth].wild is None
        if not follow and not name.isprintable():
            self._pass_over(directory, name, UNPRINTABLE)
            return None
        if directory.depth == len(self._components) - 1:
            return self._look_at_socket(directory, name, follow=follow)
        self._look_at_directory(directory, name, follow=follow)
        return None  # a directory has complaints of its own

    def _look_at_socket(self, directory: _Directory, name: str, *, follow: bool) -> str | None:
        path = directory.path / name
        there: _SocketFile | None = None
        try:
            status = path.stat(follow_symlinks=follow)
        except OSError as error:
            if error.errno not in ABSENT:
                return error.strerror
        else:
            if stat.S_ISLNK(status.st_mode):
                self._pass_over(directory, name, LINK)
                return None
            if stat.S_ISSOCK(status.st_mode):
                there = _SocketFile(status.st_dev, status.st_ino, status.st_mtime_ns)
        if there != directory.sockets.get(name) or name in directory.passed:
            self._forget(directory, name)
            if there is not None:
                directory.sockets[name] = there
                self._changes.append(Appeared(path))
        return None

    def _look_at_directory(self, directory: _Directory, name: str, *, follow: bool) -> None:
        path = directory.path / name
        known = directory.directories.get(name)
        watch = self._watches.add(path, follow=follow)
        if watch is None:
            if follow or not path.is_symlink():
                self._forget(directory, name)
            else:
                self._pass_over(directory, name, LINK)
            return
        if known is not None and isinstance(known.watch, int) and isinstance(watch, str):
            watch = known.watch  # no longer readable, but its watch still works
        if known is None or (isinstance(known.watch, int) and known.watch != watch):
            self._forget(directory, name)
            known = _Directory(path, directory, directory.depth + 1, watch)
            directory.directories[name] = known
            self._register(known)
        elif known.watch != watch:
            known.watch = watch
            self._register(known)
        self._scan(known)

    def _pass_over(self, directory: _Directory, name: str, reason: str) -> None:
        """Report once that an entry is not used, if it would be without that reason."""
        path = directory.path / name
        try:
            status = path.stat()  # of what a link leads to
        except OSError:
            status = None
        last = directory.depth == len(self._components) - 1
        fits = status and (stat.S_ISSOCK if last else stat.S_ISDIR)(status.st_mode)
        if not fits or name not in directory.passed:
            self._forget(directory, name)
        if fits and name not in directory.passed:
            directory.passed.add(name)
            self._changes.append(PassedOver(path, reason))

    def _forget(self, directory: _Directory, name: str) -> None:
        """Drop one entry, with everything in it."""
        if directory.sockets.pop(name, None) is not None or name in directory.passed:
            directory.passed.discard(name)
            self._changes.append(Vanished(directory.path / name))
        gone = directory.directories.pop(name, None)
        if gone is None:
            return
        self._unwatch(gone)
        for inside in (*gone.sockets, *gone.directories, *gone.passed):
            self._forget(gone, inside)
        self._complain(gone, None)

    def _blindness(self, directory: _Directory) -> str | None:
        """Return why new entries of a directory would not be noticed; None if they would."""
        if isinstance(directory.watch, int):
            return None
        # It can be passed through without being read: that is enough, while the next one is there.
        return None if directory.directories else directory.watch

    def _complain(self, directory: _Directory, reason: str | None) -> None:
        if reason != directory.complaint:
            directory.complaint = reason
            readable = Readable(directory.path)
            told = readable if reason is None else Unreadable(directory.path, reason)
            self._changes.append(told)

    def _register(self, directory: _Directory) -> None:
        if isinstance(directory.watch, int):
            self._watched.setdefault(directory.watch, []).append(directory)

    def _unwatch(self, directory: _Directory) -> None:
        if not isinstance(directory.watch, int):
            return
        sharing = self._watched[directory.watch]
        sharing.remove(directory)
        if not sharing:
            del self._watched[directory.watch]
            self._watches.remove(directory.watch)
        directory.watch = "no longer followed"
