"""A guest that panicked and is preserved, for what others then do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from panicd.demo.guests import Guest
from tests.parts.daemon import DaemonInside, LoggedIncident
from tests.parts.qemu import RealQemu


@asynccontextmanager
async def preserved(
    directory: Path, **policy: object
) -> AsyncIterator[tuple[DaemonInside, RealQemu, LoggedIncident]]:
    """A daemon, and a guest that panicked and is preserved, with its incident."""
    async with (
        DaemonInside.start(directory, {"on_crash": "preserve", **policy}) as daemon,
        RealQemu.start(directory, guest=Guest.COUNT, proxied=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        yield daemon, vm, incident
