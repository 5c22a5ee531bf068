"""A stopped guest's memory by libvirt's API: in parts, and all of it as a dump.

``virDomainMemoryPeek`` gives a part: QEMU writes it into a file, and libvirt reads that. It takes
10 to 34 ms, 20 to 30 MiB a second (libvirt 9.0). It also answers where no memory is, and reading a
device may change it. So panicd first learns where memory is, from the beginning of a whole dump.
That has the kernel's note on itself too. libvirt reports that dump as failed (SIGPIPE).

Sources: libvirt ``qemuDomainMemoryPeek``, ``qemuDomainCoreDumpWithFormat`` (``qemu_driver.c``).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from panicd.host.logs import get_logger
from panicd.libvirt import requests
from panicd.libvirt.client import Client, Standing
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtError,
    LibvirtLostError,
    LibvirtRefusedError,
    LibvirtSilentError,
)
from panicd.libvirt.one_start import call_on
from panicd.libvirt.protocol import PEEK_MOST, DomainRef, DomainState, DumpFormat, State
from panicd.qemu.dump_error import DumpByOther, DumpError, DumpFailure
from panicd.qemu.guest_memory import Beginning, GuestReader, beginning_of_dump, memory_file
from panicd.qemu.monitor_error import SessionLostError
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest

ANSWERS_WITHIN: Final = 5.0  # seconds; what libvirtd answers by itself takes a few milliseconds
FORMATS: Final = {"elf": DumpFormat.RAW, "kdump-zlib": DumpFormat.KDUMP_ZLIB}


def dumper(client: Client, domain: DomainRef) -> DumpByOther:
    """Return a function that has libvirt write a domain's memory to a path.

    The function refuses a domain that libvirt takes for running: libvirt would resume it
    afterwards. It raises ``SessionLostError`` if the connection to libvirt ends.

    Args:
        client: of the libvirt.
        domain: which, and which start of it.
    """

    async def dump(path: Path, kind: str, timeout: float) -> None:
        try:
            await _see_stopped(client, domain)
            await write_memory(client, domain, path, kind, timeout)
        except LibvirtError as error:
            if isinstance(error, LibvirtLostError) or client.standing is Standing.AWAY:
                raise SessionLostError(str(error)) from error  # it is begun again
            if isinstance(error, LibvirtSilentError):
                raise DumpError(DumpFailure.TIMEOUT, str(error)) from error
            raise DumpError(DumpFailure.REFUSED, str(error)) from error

    return dump


async def write_memory(
    client: Client, domain: DomainRef, path: Path, kind: str, timeout: float
) -> None:
    """Have libvirt write a domain's memory to a path; if panicd gives up, libvirt does as well.

    Args:
        client: of the libvirt.
        domain: which.
        path: of a file or of a pipe.
        kind: QAPI ``DumpGuestMemoryFormat``.
        timeout: seconds.

    Raises:
        LibvirtError: libvirt did not write it, or not in time.
    """
    request = requests.core_dump(domain, os.fspath(path), FORMATS[kind])
    may_go_on = True
    try:
        await call_on(client, domain, request, timeout=timeout, may=_is_stopped)
        may_go_on = False
    except (LibvirtAwayError, LibvirtRefusedError):
        may_go_on = False
        raise
    finally:
        if may_go_on:
            await _give_up_dump(client, domain)


def _is_stopped(stands: DomainState) -> bool:
    return stands.state != State.RUNNING


async def _see_stopped(client: Client, domain: DomainRef) -> None:
    """Check that this start of the domain is the present one, and that libvirt calls it stopped.

    Raises:
        LibvirtError: libvirt does not say.
        DumpError: the start is another, or not stopped.
    """
    there = await client.call(requests.look_up_id(domain.id), timeout=ANSWERS_WITHIN)
    stands = await client.call(requests.state_of(domain), timeout=ANSWERS_WITHIN)
    if there.uuid != domain.uuid or stands.state == State.RUNNING:
        raise DumpError(DumpFailure.OVERTAKEN, "libvirt does not say that the guest is stopped")


async def _give_up_dump(client: Client, domain: DomainRef) -> None:
    """Have libvirt give up a dump, but no other job, such as a migration: that is not panicd's."""
    with trio.CancelScope(shield=True):
        try:
            job = await client.call(requests.job(domain), timeout=ANSWERS_WITHIN)
            if job.operation == requests.OPERATION_DUMP:
                await client.call(requests.abort_job(domain), timeout=ANSWERS_WITHIN)
        except LibvirtError as error:  # the dump may have ended
            get_logger(domain=domain.name).debug("no dump was given up", libvirt=str(error))


class PeekReader(GuestReader):
    """Reads a stopped guest's memory in parts.

    Args:
        client: of the libvirt.
        domain: whose.
        deadline: when reading must end, on trio's clock.
    """

    def __init__(self, client: Client, domain: DomainRef, deadline: float) -> None:
        self.deadline = deadline
        self._client = client
        self._domain = domain
        self._beginning: Beginning | None = None

    async def notes(self) -> bytes:
        """Return the notes of a dump; see ``GuestReader``."""
        return (await self._know_beginning()).notes

    @asynccontextmanager
    async def range(self, request: ReadRequest) -> AsyncIterator[list[tuple[int, int, int]]]:
        """Yield where a range lies; see ``GuestReader``."""
        at, end = request.physical, request.physical + request.length
        beginning = await self._know_beginning()
        beginning.file.locate(at, request.length)
        with memory_file(request.length) as file:
            for start in range(at, end, PEEK_MOST):
                data = await self._peek(start, min(PEEK_MOST, end - start))
                os.pwrite(file, data, start - at)
            yield [(file, 0, request.length)]

    async def read(self, request: ReadRequest) -> bytes:
        """Return a range; see ``GuestReader``."""
        if request.length > PEEK_MOST:
            return await super().read(request)
        beginning = await self._know_beginning()
        beginning.file.locate(request.physical, request.length)
        return await self._peek(request.physical, request.length)

    async def _know_beginning(self) -> Beginning:
        if self._beginning is None:
            dump = dumper(self._client, self._domain)
            self._beginning = await beginning_of_dump(dump, self._left())
        return self._beginning

    async def _peek(self, physical: int, length: int) -> bytes:
        request = requests.peek(self._domain, physical, length)
        try:
            return await self._client.call(request, timeout=self._left())
        except LibvirtError as error:
            raise NotReadableError(f"libvirt gives no memory: {error}") from error

    def _left(self) -> float:
        left = self.deadline - trio.current_time()
        if left <= 0:
            raise NotReadableError("the time is over")
        return left
