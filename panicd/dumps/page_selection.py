"""Finds out before a dump which pages of a stopped guest it leaves out.

The program ``panicd.dumps.filter.page_bitmap`` works on what the guest wrote, in a separate
process. It asks for the memory that it needs. This module gives it that memory, range by range,
within limits. If anything goes wrong, the dump has all pages and says why.
"""

import json
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from panicd.dumps.filter.core_stream import FRAME
from panicd.dumps.own_program import ONE_THREAD, own_program
from panicd.qemu.guest_memory import GuestReader
from panicd.qemu.threads import needing_a_thread
from panicd.rules.guest_memory.dump_file import DumpFile, find_vmcoreinfo
from panicd.rules.guest_memory.page_map import check_page_size
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo
from panicd.rules.settings import DumpFormat

PROGRAM: Final = "panicd.dumps.filter.page_bitmap"
REQUEST: Final = struct.Struct("<QQ")  # as the program's own
ANSWER: Final = struct.Struct("<q")
MAX_LENGTH: Final = 16 << 20  # bytes of a range: some 10 ms in which QEMU does nothing else
LONGEST_RANGE: Final = 2 << 20
"""Bytes read at once for the dump itself. QEMU writes so many in a millisecond, in which it gives
the processor to nobody; each range costs both some time of its own."""
MAX_RESULT: Final = 1 << 16  # bytes
PIECE: Final = 1 << 20  # bytes handed on at once
LEAST_SHARE: Final = 1 / 32
"""The share of a guest's memory to read at most, besides ``SPARE``: twice its page structures."""
SPARE: Final = 256 << 20  # bytes


@dataclass(frozen=True, slots=True)
class PageSelection:
    """What a dump leaves out.

    Attributes:
        level: the dump level in force, in makedumpfile's numbers.
        bitmap: a file in memory with a bit for each kept page; None: the dump keeps all.
        left_out: how many pages it leaves out, by their use.
        structures: bytes of page structures among what it keeps; 0 if that is unknown.
        reason: why it leaves out fewer than configured; empty if it does not.
        windows: a file in memory with the other parts of a dump for WinDbg; None: it is none.
        beginning: the headers and notes of a whole dump, if only ``ranges`` of the memory are read;
            else empty.
        ranges: the ranges to read, each a moment's work for QEMU.
        of_kdump: an ELF core is made of QEMU's kdump (``panicd.dumps.filter.kdump_stream``).
    """

    level: int
    bitmap: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    structures: int = 0
    reason: str = ""
    windows: int | None = None
    beginning: bytes = b""
    ranges: tuple[ReadRequest, ...] = ()
    of_kdump: bool = False

    def qemus_format(self, kind: DumpFormat) -> str:
        """Return the format that panicd asks QEMU for, to write a file of that kind."""
        return DumpFormat.KDUMP_ZLIB.value if self.of_kdump else kind.of_qemu

    @property
    def stream_size(self) -> int:
        """How many bytes of ``ranges`` the filter gets."""
        return len(self.beginning) + sum(FRAME.size + each.length for each in self.ranges)

    def about(self) -> str:
        """Return the dump's text about itself, as JSON."""
        return json.dumps(
            {"level": self.level, "left_out": dict(self.left_out), "reason": self.reason}
        )


@asynccontextmanager
async def selected_pages(
    reader: GuestReader, level: int, size: int | None
) -> AsyncIterator[PageSelection]:
    """Find out which pages of a stopped guest a dump of a level leaves out.

    Args:
        reader: of its memory.
        level: makedumpfile's dump level.
        size: bytes of the guest's memory, None if QEMU does not tell.

    Raises:
        SessionLostError: the session ended.
    """
    empty = level & 1
    try:
        vmcoreinfo = find_vmcoreinfo(await reader.notes())
        check_page_size(Vmcoreinfo.parse(vmcoreinfo))
    except NotReadableError as error:
        yield PageSelection(empty, reason=str(error))
        return
    if level <= 1 or size is None:
        yield PageSelection(empty)
        return
    bitmap = os.memfd_create("panicd-pages", os.MFD_CLOEXEC)
    try:
        try:
            beginning = await _beginning(reader)
            memory = DumpFile.parse(beginning).kernels() if beginning else ()
            asked = {
                "level": level,
                "size": size,
                "vmcoreinfo": vmcoreinfo.decode("latin-1"),
                "memory": [(piece.physical, piece.length) for piece in memory],
            }
            found = await _run(reader, asked, bitmap, size)
        except (NotReadableError, OSError) as error:
            selection = PageSelection(empty, reason=str(error))
        else:
            ranges = tuple(_cut(found["ranges"]))
            if not ranges:
                beginning = b""
            selection = PageSelection(
                level,
                bitmap,
                found["left_out"],
                found["structures"],
                beginning=beginning,
                ranges=ranges,
            )
        yield selection
    finally:
        os.close(bitmap)


async def _beginning(reader: GuestReader) -> bytes:
    """Return a whole dump's beginning; empty if it can't be had: then all memory is read."""
    with suppress(NotReadableError):
        return await reader.beginning()
    return b""


def _cut(ranges: Iterable[tuple[int, int]]) -> Iterator[ReadRequest]:
    """Yield ranges, none longer than ``LONGEST_RANGE``."""
    for physical, length in ranges:
        for at in range(0, length, LONGEST_RANGE):
            yield ReadRequest(physical + at, min(LONGEST_RANGE, length - at))


async def _run(
    reader: GuestReader, asked: Mapping[str, object], bitmap: int, size: int
) -> dict[str, Any]:
    """Run the program to its end; return what it found.

    Raises:
        NotReadableError: the program found nothing, or exceeded a limit; the text says why.
        OSError: the process can't be started.
    """
    with needing_a_thread():
        process = await trio.lowlevel.open_process(
            own_program(PROGRAM, str(bitmap)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(bitmap,),
            cwd="/",
            env=os.environ | ONE_THREAD,
        )
    try:
        with trio.move_on_at(reader.deadline):
            return await _serve(process, reader, json.dumps(asked).encode() + b"\n", size)
        raise NotReadableError("the time for it is over")
    except trio.BrokenResourceError as error:
        raise NotReadableError("the process that looks for them ended") from error
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                await stream.aclose()


async def _serve(
    process: trio.Process, reader: GuestReader, asked: bytes, size: int
) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    allowed = int(size * LEAST_SHARE) + SPARE
    await stdin.send_all(asked)
    received = bytearray()
    while True:
        while len(received) < REQUEST.size:
            await _receive(stdout, received)
        physical, length = REQUEST.unpack_from(received)
        del received[: REQUEST.size]
        if length == 0:
            break
        allowed -= length
        if length > MAX_LENGTH or allowed < 0:
            raise NotReadableError("more memory to read than the limit allows")
        try:
            async with reader.range(ReadRequest(physical, length)) as pieces:
                await stdin.send_all(ANSWER.pack(length))
                for descriptor, offset, end in pieces:
                    for at in range(offset, end, PIECE):
                        await stdin.send_all(os.pread(descriptor, min(PIECE, end - at), at))
        except NotReadableError:
            await stdin.send_all(ANSWER.pack(-1))
    while not received.endswith(b"\n"):
        await _receive(stdout, received)
    result: dict[str, Any] = json.loads(received)
    if "reason" in result:
        raise NotReadableError(result["reason"])
    return result


async def _receive(stdout: trio.abc.ReceiveStream, received: bytearray) -> None:
    part = await stdout.receive_some(MAX_RESULT)
    if not part or len(received) > MAX_RESULT:
        raise NotReadableError("the process that looks for them ended")
    received += part
