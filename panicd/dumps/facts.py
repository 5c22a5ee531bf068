"""Tells from its file what a finished dump is: its size, what it leaves out and why, what opens it.

panicd's kdump says this in a note. A packed ELF core says it in a frame at its end, which unpackers
skip. QEMU and its guest helped to write the file, so this module skips whatever it does not
understand.
"""

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Final

from panicd.dumps.filter.elf_filter import LENGTH, MARK
from panicd.dumps.repair import KDUMP_START, kdump_head_size
from panicd.rules.foreign_json import loads
from panicd.rules.guest_memory.kdump_head import own_note

USES: Final = ("cache", "cache_private", "user", "free")
MAX_ABOUT: Final = 1 << 16  # bytes
SYMBOLS: Final = "/usr/lib/debug/boot/vmlinux-"  # Debian's linux-image-…-dbg

_RELEASE_AT: Final = 12 + 2 * 65  # utsname's third part
_RELEASE_SIZE: Final = 65
_NOTES_AT: Final = 48  # offset_note and size_note in kdump_sub_header
_NOTES: Final = struct.Struct("<QQ")
_MAX_REASON: Final = 500  # characters


@dataclass(frozen=True, slots=True)
class DumpFacts:
    """A finished dump.

    Attributes:
        path: where it lies.
        size: of the file, in bytes.
        level: makedumpfile's dump level; None if the file does not tell.
        left_out: numbers of pages that it leaves out, by their use.
        reason: why it leaves out less than configured; empty if it does not.
        open: commands that open it.
    """

    path: str
    size: int
    level: int | None
    left_out: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    open: tuple[str, ...] = ()


def dump_facts(path: Path) -> DumpFacts:
    """Return what a dump's file tells. Blocking.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(KDUMP_START)
        head = start + file.read(max(0, kdump_head_size(start) - len(start)))
        file.seek(max(0, size - MAX_ABOUT))
        about = _about(head) if path.suffix != ".zst" else _about_packed(file.read())
    return DumpFacts(
        str(path),
        size,
        level=_whole(about.get("level")),
        left_out=_left_out(about.get("left_out")),
        reason=str(about.get("reason", ""))[:_MAX_REASON],
        open=_commands(path, _release(head)),
    )


def _about_packed(end: bytes) -> dict[str, Any]:
    mark = len(end) - len(MARK) - LENGTH.size
    if mark < 0 or not end.endswith(MARK):
        return {}
    (length,) = LENGTH.unpack_from(end, mark)
    return _read(end[max(0, mark - length) : mark])


def _about(head: bytes) -> dict[str, Any]:
    block = 4096
    if not kdump_head_size(head) or len(head) < block + _NOTES_AT + _NOTES.size:
        return {}
    at, size = _NOTES.unpack_from(head, block + _NOTES_AT)
    return _read(own_note(head[at : at + size]) or b"{}")


def _read(text: bytes) -> dict[str, Any]:
    try:
        about = loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _left_out(value: object) -> dict[str, int]:
    given = value if isinstance(value, dict) else {}
    counts = {use: _whole(given.get(use)) for use in USES}
    return {use: count for use, count in counts.items() if count is not None}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _release(head: bytes) -> str:
    """Return the kernel's release from the header; empty if the header has none."""
    if not kdump_head_size(head):
        return ""
    name = head[_RELEASE_AT : _RELEASE_AT + _RELEASE_SIZE].partition(b"\0")[0]
    release = name.decode("ascii", "replace")
    return release if release.replace(".", "").replace("-", "").replace("+", "").isalnum() else ""


def _commands(path: Path, release: str) -> tuple[str, ...]:
    core = path.with_suffix("") if path.suffix == ".zst" else path
    named = quote(str(core))  # the configuration names the directory
    unpack = (f"zstd -d {quote(str(path))}",) if path.suffix == ".zst" else ()
    if core.suffix == ".dmp":
        return (*unpack, f"windbg -z {named}", f"vol -f {named} windows.crashinfo")
    symbols = SYMBOLS + (release or "VERSION")
    return (*unpack, f"crash {symbols} {named}", f"drgn -c {named} -s {symbols}")
