"""Gives a dump's writer the ranges of a guest's memory that have kept pages.

QEMU writes a whole dump page by page, wanted or not. That takes longer than all that panicd does
with it. So panicd asks for the ranges with kept pages, one by one. QEMU writes each into a file in
memory, where it waits for nobody. panicd moves the range on through the pipe that a whole dump
would use, while QEMU writes the next one.

These dumps are not detached: QEMU tells of a detached dump's end before it frees the dump's state,
and a new dump shares that state (QEMU ``dump/dump.c``, ``dump_process``).

Between two ranges somebody may reset or resume the guest. QEMU forbids that only during a dump. The
dump then ends.
"""

import os
from collections.abc import Callable

import trio

from panicd.dumps.filter.core_stream import FRAME
from panicd.dumps.page_selection import PageSelection
from panicd.dumps.writer import CHUNK
from panicd.qemu.dump_error import DumpError
from panicd.qemu.guest_memory import GuestReader
from panicd.qemu.monitor_error import MonitorError
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest

Part = tuple[bytes, int, int, int]
"""A frame, if the part begins one; a file, and the part's start and end in it."""


async def feed_ranges(
    pipe: trio.lowlevel.FdStream,
    selection: PageSelection,
    reader: GuestReader,
    check: Callable[[], None],
) -> None:
    """Write a dump's beginning and its ranges, each in its frame.

    Args:
        pipe: goes to the writer.
        selection: the ranges.
        reader: of the stopped guest's memory.
        check: called after each range; raises if the guest is no longer as it was.

    Raises:
        NotReadableError: a range can't be had.
        DumpError: from ``check``.
        SessionLostError: the session ended.
        trio.BrokenResourceError: nobody reads any more.
    """
    await pipe.send_all(selection.beginning)
    problem: Exception | None = None
    # With capacity 0 there are at most two files: the one that is handed on, and the next one.
    send, receive = trio.open_memory_channel[Part](0)

    async def read_ahead() -> None:
        nonlocal problem
        async with send:
            try:
                for request in selection.ranges:
                    await _read(reader, request, send, check)
            except (NotReadableError, DumpError, MonitorError, OSError) as error:
                problem = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_ahead)
        try:
            await _hand_on(receive, pipe)
        except (trio.BrokenResourceError, OSError) as error:
            problem = error
            nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


async def _hand_on(parts: "trio.MemoryReceiveChannel[Part]", pipe: trio.lowlevel.FdStream) -> None:
    async for frame, file, start, end in parts:
        try:
            await pipe.send_all(frame)
            await _move(file, start, end, pipe)
        finally:
            os.close(file)


async def _read(
    reader: GuestReader,
    request: ReadRequest,
    to: "trio.MemorySendChannel[Part]",
    check: Callable[[], None],
) -> None:
    frame = FRAME.pack(request.physical, request.length)
    async with reader.range(request) as pieces:
        check()
        for file, start, end in pieces:
            copy = os.dup(file)  # whoever gets it closes it
            try:
                await to.send((frame, copy, start, end))
            except BaseException:
                os.close(copy)
                raise
            frame = b""


async def _move(file: int, start: int, end: int, pipe: trio.lowlevel.FdStream) -> None:
    """Move a part of a file to a pipe, without a copy of it (splice(2))."""
    while start < end:
        await trio.lowlevel.wait_writable(pipe.fileno())
        try:
            size = min(CHUNK, end - start)
            start += os.splice(
                file, pipe.fileno(), size, offset_src=start, flags=os.SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            continue
        except BrokenPipeError as error:
            raise trio.BrokenResourceError from error
