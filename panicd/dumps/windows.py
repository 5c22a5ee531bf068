"""Finds out over QMP, before the dump, what a stopped Windows guest's dump has besides memory.

It works on the guest's data, within limits. It asks QEMU only for ranges of memory, never for
``win-dmp``: ``panicd.rules.guest_memory.windows_dump`` says why.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from panicd.qemu.guest_memory import GuestReader
from panicd.qemu.monitor import CommandError, NoReplyError
from panicd.qemu.session import Session
from panicd.rules.guest_memory.memory import Limits
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows import OtherWindowsError, WindowsHeader
from panicd.rules.guest_memory.windows_dump import read_dump, read_registers
from panicd.rules.qapi import printed

LIMITS: Final = Limits(lines=0, size=64 << 20, requests=1 << 14)
"""A few pages for each processor, of which QEMU has at most 4096."""


@asynccontextmanager
async def windows_parts(
    session: Session, reader: GuestReader, size: int
) -> AsyncIterator[int | None]:
    """Yield a file in memory with the parts that the filter adds; None: the guest is no Windows.

    Args:
        session: the VM.
        reader: of its memory.
        size: bytes of memory that the guest has.

    Raises:
        NotReadableError: the guest is a Windows, but no dump for WinDbg can be made.
        SessionLostError: the session ended.
    """
    domain = session.capability.libvirt
    if domain is not None and not domain.has_vmcoreinfo:
        yield None  # to ask libvirt would be in vain
        return
    try:
        header = WindowsHeader.find(await reader.notes())
    except OtherWindowsError:
        raise
    except NotReadableError:  # whoever looks for something else says why
        header = None
    if header is None:
        yield None
        return
    command = {"command-line": "info registers -a"}
    registers = ""  # without, processors' contexts stay as the guest saved them
    with suppress(CommandError, NoReplyError):
        registers = printed(await session.execute("human-monitor-command", command))
    parts = await reader.serve(read_dump(header, read_registers(registers), size, LIMITS))
    file = os.memfd_create("panicd-windows", os.MFD_CLOEXEC)
    try:
        os.pwrite(file, parts.written(), 0)
        yield file
    finally:
        os.close(file)
