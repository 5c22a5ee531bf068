"""A client of libvirt's, and what it has heard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from panicd.libvirt.client import Client, Standing
from panicd.libvirt.protocol import DomainRef, Event, Lifecycle, QemuEvent
from panicd.libvirt.requests import list_domains

QEMU_EVENTS = ("GUEST_PANICKED", "STOP", "RESET", "RESUME", "SHUTDOWN")
ANSWERED_WITHIN = 30.0  # seconds; a real libvirtd asks QEMU what it can do when a domain starts


class Listener:
    """What a client has heard, in order.

    Attributes:
        events: of all domains.
        standings: of the libvirt.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.standings: list[Standing] = []
        self.client: Client
        self._more = trio.Event()

    def hear(self, event: Event) -> None:
        """Take an event."""
        self.events.append(event)
        self._wake()

    def see(self, standing: Standing) -> None:
        """Take a new standing."""
        self.standings.append(standing)
        self._wake()

    async def wait(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, which is looked at whenever there was something to hear."""
        while not holds():
            self._more = trio.Event()
            await self._more.wait()

    async def wait_standing(self, standing: Standing) -> None:
        """Wait until the libvirt stands so."""
        await self.wait(lambda: self.client.standing is standing)

    async def wait_event(self, event: int, detail: int) -> DomainRef:
        """Wait until a domain's life went so; return which domain."""
        found: list[DomainRef] = []

        def heard() -> bool:
            lives = (each for each in self.events if isinstance(each, Lifecycle))
            found.extend(
                each.domain for each in lives if (each.event, each.detail) == (event, detail)
            )
            return bool(found)

        await self.wait(heard)
        return found[0]

    def of_qemu(self) -> list[str]:
        """Return the names of QEMU's own events so far."""
        return [event.name for event in self.events if isinstance(event, QemuEvent)]

    async def domain(self) -> DomainRef:
        """Return the domain that runs."""
        (domain,) = await self.client.call(list_domains(), timeout=ANSWERED_WITHIN)
        return domain

    def _wake(self) -> None:
        self._more.set()


@asynccontextmanager
async def connected(
    uri: str, *, qemu_events: tuple[str, ...] = QEMU_EVENTS, waits: bool = True
) -> AsyncIterator[Listener]:
    """Have a client connected while this lasts.

    Args:
        uri: to which libvirt.
        qemu_events: what it is to hear of QEMU itself.
        waits: until it is.
    """
    listener = Listener()
    listener.client = Client(
        uri, heard=listener.hear, changed=listener.see, qemu_events=qemu_events
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.client.run)
        if waits:
            await listener.wait_standing(Standing.UP)
        yield listener
        nursery.cancel_scope.cancel()
