"""A connection to a libvirt for a single question."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from panicd.libvirt.client import Client, Standing
from panicd.libvirt.errors import LibvirtAwayError
from panicd.rules.libvirt_place import UnusableUriError

CONNECTED_WITHIN: Final = 5.0  # seconds


@asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Client]:
    """Be connected to a libvirt while the block lasts.

    Raises:
        LibvirtAwayError: libvirt is not there, or does not let panicd in.
    """
    stands = trio.Event()

    def changed(standing: Standing) -> None:
        if standing is Standing.UP:
            stands.set()

    try:
        client = Client(uri, heard=lambda _event: None, changed=changed)
    except UnusableUriError as error:
        raise LibvirtAwayError(str(error)) from error
    problem: Exception | None = None  # not in a group of the nursery's
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        with trio.move_on_after(CONNECTED_WITHIN):
            await stands.wait()
        is_up = client.standing is Standing.UP
        if is_up:
            try:
                yield client
            except Exception as error:  # noqa: BLE001 - raised again below
                problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    if not is_up:
        raise LibvirtAwayError(client.problem)
