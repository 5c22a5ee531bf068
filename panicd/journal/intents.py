"""What panicd is about to do, in memory that outlives it: quicker than any disk.

A panic's first entries must be safe before panicd acts. A disk takes longer for that than all
else together, and a busy one takes much longer. But nothing has to be safe for longer than the
guest: if the host loses its power, or its kernel crashes, the guest is gone too. So panicd records
them as an intent in a file of a tmpfs (tmpfs(5)), acts, and commits to the journal a moment later.
If panicd is killed in between, the next one finds the intent and commits it. A restart of the host
removes all intents, and all guests.

::

    0     MAGIC, generation
    32    the length of the journal's path, the path
    4096  intents: generation, length, CRC-32, 1 if the journal has it; incident's id and entries, a
          line each

Intents of earlier generations are over: a new one begins when all intents are in the journal.
"""

import fcntl
import math
import mmap
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

MAGIC: Final = b"panicd intent 1\n"
SPACE: Final = 1 << 22  # bytes; one panic needs some 2,000
_GENERATION: Final = struct.Struct("<Q")
_HEAD: Final = struct.Struct("<QIII")
_WRITTEN: Final = struct.Struct("<I")  # the last of a head
_PATH_LENGTH: Final = struct.Struct("<I")
_GENERATION_AT: Final = len(MAGIC)
_PATH_AT: Final = 32
_INTENTS_AT: Final = 4096

WAITS_AT_MOST: Final = 2.0
"""Seconds that an intent may wait for the journal. After that the disk hangs, and panicd takes no
more intents: a power cut would lose ever more."""

MOUNTS: Final = Path("/proc/self/mountinfo")
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOUNT: Final = re.compile(r"\S+ \S+ (?P<device>\d+:\d+) .* - (?P<type>\S+) ")


class IntentsError(Exception):
    """Intents can't be kept."""


class Intent(NamedTuple):
    """The first entries of an incident, as ``journal.codec`` has them."""

    incident_id: str
    entries: tuple[str, ...]


class Intents:
    """The open file.

    Args:
        memory: of the file.
        left: what a killed panicd intended, by its place.

    Attributes:
        left: what a killed panicd intended; the last of it may be in the journal.
    """

    def __init__(self, memory: mmap.mmap, left: Mapping[int, Intent]) -> None:
        self.left = tuple(left.values())
        self._memory = memory
        (self._generation,) = _GENERATION.unpack_from(memory, _GENERATION_AT)
        self._end = _INTENTS_AT
        self._is_at_end = False
        self._waiting = {  # by id: since when, and where; the oldest first
            intent.incident_id: (-math.inf, at) for at, intent in left.items()
        }
        if not left:
            self._forget()

    @classmethod
    def open(cls, path: Path, journal: Path) -> Self:
        """Open the intents of a journal, or begin new ones.

        None is taken until the journal has all that was left.

        Args:
            path: of the intents, in an existing directory.
            journal: the journal's absolute path. What was intended for another is not touched.

        Raises:
            IntentsError: the file is not in memory, is another's, or can't be made.
        """
        try:
            _check_in_memory(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _check(descriptor)
                os.posix_fallocate(descriptor, 0, SPACE)  # else a full tmpfs would raise SIGBUS
                memory = mmap.mmap(descriptor, SPACE)  # it duplicates the descriptor, and its lock
            finally:
                os.close(descriptor)
            return cls(memory, _begin(memory, bytes(journal)))
        except OSError as error:
            raise IntentsError(f"{path}: {error.strerror}") from error
        except IntentsError as error:
            raise IntentsError(f"{path}: {error}") from None

    def take(self, incident_id: str, entries: Sequence[str]) -> bool:
        """Record the first entries of an incident.

        Args:
            incident_id: the incident's.
            entries: as ``journal.codec`` has them.

        Returns:
            True if they are safe from the end of this process; False: there is no room, earlier
            intents have waited for the journal for too long, or ``end`` was called.
        """
        now = time.monotonic()
        since, _ = next(iter(self._waiting.values()), (now, 0))
        if self._is_at_end or now - since > WAITS_AT_MOST:
            return False
        intent = "\n".join((incident_id, *entries)).encode(errors="surrogatepass")
        end = self._end + _HEAD.size + len(intent)
        if end > SPACE:
            return False
        _put(self._memory, self._end + _HEAD.size, intent)
        _put(
            self._memory,
            self._end,
            _HEAD.pack(self._generation, len(intent), zlib.crc32(intent), 0),
        )
        self._waiting[incident_id] = now, self._end
        self._end = end
        return True

    def written(self, incident_id: str) -> None:
        """Take in that the journal has the entries; an unknown id changes nothing.

        The journal may lose the incident again, if it is old or damaged. The intent must not bring
        it back.
        """
        _, at = self._waiting.pop(incident_id, (0.0, 0))
        if at:
            _put(self._memory, at + _HEAD.size - _WRITTEN.size, _WRITTEN.pack(1))
            if not self._waiting:
                self._forget()

    @property
    def are_all_written(self) -> bool:
        """True if the journal has all that was intended."""
        return not self._waiting

    def end(self) -> None:
        """Take no more intents."""
        self._is_at_end = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave what waits to the next panicd."""
        self._memory.close()

    def _forget(self) -> None:
        """Begin anew: the journal has all that was intended."""
        self.left = ()
        self._generation += 1
        _put(self._memory, _GENERATION_AT, _GENERATION.pack(self._generation))
        self._end = _INTENTS_AT


def _begin(memory: mmap.mmap, owner: bytes) -> dict[int, Intent]:
    """Return what was intended for a journal, whose intents these are from now on, by its place.

    Raises:
        IntentsError: they are still another's, or it is a file of another kind.
    """
    if len(owner) > _INTENTS_AT - _PATH_AT - _PATH_LENGTH.size:
        raise IntentsError("the path of the journal is too long")
    kind = memory[: len(MAGIC)]
    if kind == bytes(len(MAGIC)):  # a new file, or one that was cut off
        _put(memory, _GENERATION_AT, _GENERATION.pack(1))
        left = {}
    elif kind == MAGIC:
        left = read_intents(memory)
    else:
        raise IntentsError("it is no file of this panicd's")
    if left and _owner(memory) != owner:
        raise IntentsError(f"it has intents for {os.fsdecode(_owner(memory))}")
    if not left:
        _put(memory, _PATH_AT, _PATH_LENGTH.pack(len(owner)) + owner)
        _put(memory, 0, MAGIC)
    return left


def _put(memory: mmap.mmap, at: int, data: bytes) -> None:
    memory[at : at + len(data)] = data


def _owner(memory: mmap.mmap) -> bytes:
    (length,) = _PATH_LENGTH.unpack_from(memory, _PATH_AT)
    start = _PATH_AT + _PATH_LENGTH.size
    return memory[start : min(start + length, _INTENTS_AT)]


def read_intents(memory: mmap.mmap | bytes) -> dict[int, Intent]:
    """Return the last generation's intents that the journal may not have, by their places.

    An intent that was cut off is not one.
    """
    (generation,) = _GENERATION.unpack_from(memory, _GENERATION_AT)
    intents, at = {}, _INTENTS_AT
    while at + _HEAD.size <= SPACE:
        of, length, checksum, is_written = _HEAD.unpack_from(memory, at)
        start = at + _HEAD.size
        intent = memory[start : start + length]
        if of != generation or not length or zlib.crc32(intent) != checksum:
            break
        if not is_written:
            incident_id, *entries = intent.decode(errors="surrogatepass").split("\n")
            intents[at] = Intent(incident_id, tuple(entries))
        at = start + length
    return intents


def _check(descriptor: int) -> None:
    """Check that nobody else could have written the file, or uses it.

    Raises:
        IntentsError: somebody could, or does.
        OSError: that can't be found out.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise IntentsError("it is no regular file")
    if status.st_nlink != 1:
        raise IntentsError("it has another name too")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise IntentsError("another process has it open") from None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IntentsError("another user may have written it")


def _check_in_memory(directory: Path) -> None:
    """Check that a directory's files are gone when the host starts anew.

    Raises:
        IntentsError: they are not.
        OSError: that can't be found out.
    """
    device = directory.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    mounts = map(_MOUNT.match, MOUNTS.read_text(errors="replace").splitlines())
    if not any(m and m["device"] == name and m["type"] in IN_MEMORY for m in mounts):
        raise IntentsError("it is not on a tmpfs, so it could outlive the guests")
