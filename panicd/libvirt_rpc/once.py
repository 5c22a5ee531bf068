"""A libvirt that is asked something once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from panicd.libvirt_rpc.client import Client, Standing
from panicd.libvirt_rpc.errors import LibvirtAwayError
from panicd.libvirt_rpc.sockets import UnusableUriError

CONNECTED_WITHIN: Final = 5.0  # seconds


@asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Client]:
    """Be connected to a libvirt for as long as this lasts.

    Raises:
        LibvirtAwayError: it is not there, or does not let panicd in.
    """
    stands = trio.Event()

    def changed(standing: Standing) -> None:
        if standing is Standing.UP:
            stands.set()

    try:
        client = Client(uri, heard=lambda _event: None, changed=changed)
    except UnusableUriError as error:
        raise LibvirtAwayError(str(error)) from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        with trio.move_on_after(CONNECTED_WITHIN):
            await stands.wait()
        is_up = client.standing is Standing.UP
        if is_up:
            yield client
        nursery.cancel_scope.cancel()
    if not is_up:
        raise LibvirtAwayError(client.problem)
