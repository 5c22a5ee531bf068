"""An incident as one archive, for whoever debugs it: a ``.tar.gz``, which everybody can open.

::

    panicd-ID/record.json     the journal's record, as ``panicd incident ID --json`` prints it
    panicd-ID/timeline.txt    what ``panicd incident ID`` shows
    panicd-ID/bundle/…        the evidence that was kept
    panicd-ID/dump/…          the memory dump

A file that is longer than anything that panicd keeps is left out, and named: a sparse file could
take hours. The names in the archive are panicd's own; no guest's text and no domain's name is in
them.
"""

import contextlib
import errno
import gzip
import io
import os
import secrets
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from panicd.cli.documents import written
from panicd.cli.filtering import leaves_out, write_filtered
from panicd.cli.render_incident import page
from panicd.evidence.screen import MOST
from panicd.host.terminal import Terminal
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.service.control_client import Answer

FAST: Final = 1  # levels of gzip
STORED: Final = 0
LONGEST: Final = MOST  # bytes: apart from its dump, panicd keeps nothing longer of a guest
UNCOMPRESSED: Final = frozenset({".elf", ".dmp"})  # others were compressed when they were written
BUFFER: Final = 1 << 20  # bytes
THERE: Final = "is there already (--force replaces it)"
NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class ExportError(Exception):
    """panicd could not make the archive; nothing is left of it."""


def archive_name(incident_id: str) -> str:
    """Return the name of an incident's archive."""
    return f"panicd-{incident_id}.tar.gz"


def write_archive(
    record: Answer,
    target: Path,
    *,
    dump: bool,
    force: bool,
    now: float,
    level: int | None = None,
) -> list[str]:
    """Write an incident's archive, with mode 0600; all of it or nothing.

    Args:
        record: of the incident, as ``read_record`` returns it.
        target: the archive.
        dump: with the memory dumps.
        force: replace an existing file.
        now: in seconds since the epoch.
        level: makedumpfile's dump level, to filter full dumps by; None: they are not filtered.

    Returns:
        What was left out, each with the reason.

    Raises:
        ExportError: the target exists or can't be written, or something can't be read.
    """
    partial = target.with_name(f".panicd-{secrets.token_hex(8)}.partial")
    if not force and os.path.lexists(target):  # before a dump is read for nothing
        raise ExportError(f"{target}: {THERE}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
            try:
                left_out = _write(file, record, target.parent, dump=dump, now=now, level=level)
                file.flush()
                os.fsync(file.fileno())
                _publish(partial, target, force=force)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    partial.unlink()
    except FileExistsError as error:
        raise ExportError(f"{target}: {THERE}") from error
    except NotReadableError as error:
        raise ExportError(f"the dump can't be filtered: {error}") from error
    except OSError as error:
        raise ExportError(f"{error.filename or target}: {error.strerror or error}") from error
    return left_out


def _publish(partial: Path, target: Path, *, force: bool) -> None:
    """Give a finished file its name; leave a file that appeared meanwhile."""
    if force:
        partial.replace(target)
        return
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        partial.rename(target)  # a file system without links has nothing better


def _write(
    file: IO[bytes], record: Answer, room: Path, *, dump: bool, now: float, level: int | None
) -> list[str]:
    folder = f"panicd-{record['id']}"
    left_out: list[str] = []
    with (
        contextlib.closing(_Members(file)) as packed,
        # It is only written to: tarfile's 'w|' needs no other method of a file.
        tarfile.open(
            fileobj=cast("IO[bytes]", packed),
            mode="w|",
            bufsize=BUFFER,
            format=tarfile.PAX_FORMAT,
        ) as archive,
    ):
        texts = {"record.json": written("incident", record), "timeline.txt": _page(record, now)}
        for name, text in texts.items():
            content = text.encode(errors="backslashreplace")
            _add(archive, f"{folder}/{name}", io.BytesIO(content), len(content), now)
        sources = [("bundle", path) for path in _bundle(Path(record["evidence_directory"]))]
        if dump:
            sources += [("dump", Path(path)) for path in record["dumps"]]
        for kind, path in sources:
            if kind == "dump" and level is not None and not leaves_out(path, level):
                packed.level = STORED
                _add_filtered(archive, f"{folder}/dump", path, level, room)
                continue
            packed.level = STORED if kind == "dump" and path.suffix not in UNCOMPRESSED else FAST
            why_not = _add_file(
                archive,
                f"{folder}/{kind}/{path.name}",
                path,
                longest=LONGEST if kind == "bundle" else None,
            )
            if why_not:
                left_out.append(f"{path}: {why_not}")
    return left_out


class _Members:
    """A gzip file of one or more members, each with its own level (RFC 1952, 2.2).

    Compressing again what is compressed takes minutes for nothing.

    Attributes:
        level: of what is written next.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.level = FAST
        self._written_at = FAST
        self._member = self._begin()

    def write(self, data: bytes) -> int:
        """Write a piece of the archive."""
        if self.level != self._written_at:
            self._member.close()
            self._written_at = self.level
            self._member = self._begin()
        return self._member.write(data)

    def close(self) -> None:
        """End the last member; the file itself stays open."""
        self._member.close()

    def _begin(self) -> gzip.GzipFile:
        return gzip.GzipFile(
            filename="", mode="wb", compresslevel=self._written_at, fileobj=self._file
        )


def _page(record: Answer, now: float) -> str:
    text = io.StringIO()
    Terminal(file=text).print(*page(record, now, None))
    return text.getvalue()


def _bundle(directory: Path) -> Iterator[Path]:
    """Yield the files of an incident's bundle, without partial and hidden ones."""
    if directory.exists():
        paths = sorted(directory.iterdir())
        yield from (p for p in paths if not p.name.startswith(".") and not p.is_symlink())


def _add_file(archive: tarfile.TarFile, name: str, path: Path, *, longest: int | None) -> str:
    """Add a file up to a maximum size; return why it was left out, if it was."""
    # This follows no link, and waits for no pipe.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return "it is no file"
        if longest is not None and status.st_size > longest:
            return f"{status.st_size} bytes are more than any evidence has"
        _add(archive, name, file, status.st_size, status.st_mtime)
    return ""


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int, at: float) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, at, 0o600
    archive.addfile(entry, content)


def _add_filtered(
    archive: tarfile.TarFile, folder: str, path: Path, level: int, room: Path
) -> None:
    """Add what is made of a dump. It lies beside the archive for a moment, where there is room."""
    with tempfile.TemporaryFile(dir=room) as filtered:
        write_filtered(path, level, filtered)
        size = filtered.seek(0, os.SEEK_END)
        filtered.seek(0)
        name = f"{folder}/{path.name.partition('.')[0]}.kdump"
        _add(archive, name, filtered, size, path.stat().st_mtime)
