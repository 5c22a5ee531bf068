"""Calls to one start of a domain, and never to the next one.

libvirt goes by UUID, and a call may have to wait for its turn. So when its turn has come, panicd
asks once more which start there is and how it stands. The call then takes that question's room.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import trio

from panicd.libvirt import requests
from panicd.libvirt.client import Asked, Client
from panicd.libvirt.connection import Awaited
from panicd.libvirt.errors import LibvirtAwayError, LibvirtNoRoomError
from panicd.libvirt.protocol import DomainRef, DomainState
from panicd.libvirt.requests import Request

T = TypeVar("T")

LOOK_AGAIN: Final = 0.1  # seconds, if there was no room


async def call_on(
    client: Client,
    domain: DomainRef,
    request: Request[T],
    *,
    timeout: float,
    may: Callable[[DomainState], bool] = lambda _state: True,
) -> T:
    """Ask something of one start of a domain.

    Args:
        client: of the libvirt.
        domain: which start of which.
        request: the call.
        timeout: seconds.
        may: whether a domain that stands so allows the call.

    Raises:
        LibvirtError: there is no answer; ``LibvirtAwayError``: the call was not made.
    """
    deadline = trio.current_time() + timeout
    while True:
        try:
            return await _try(client, domain, request, deadline, may)
        except LibvirtNoRoomError:
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(LOOK_AGAIN)


async def _try(
    client: Client,
    domain: DomainRef,
    request: Request[T],
    deadline: float,
    may: Callable[[DomainState], bool],
) -> T:
    awaited, asked, found = Awaited(), list[Asked](), list[object]()

    def ask(what: Request[Any], done: Callable[[Any], None], *, may_wait: bool = True) -> None:
        left = max(0.0, deadline - trio.current_time())
        asked.append(client.ask(what, done, timeout=left, may_wait=may_wait))

    def seen(answer: object) -> None:
        found.append(answer)
        if len(found) < 2:
            return
        starts = [each.id for each in found if isinstance(each, DomainRef)]
        states = [each for each in found if isinstance(each, DomainState)]
        if starts == [domain.id] and states and may(states[0]):
            ask(request, awaited.tell, may_wait=False)
        else:
            awaited.tell(LibvirtAwayError(f"{request.name}: {domain.name} is not as it was"))

    look_up = replace(requests.look_up(domain.uuid), domain=domain.uuid, lane=request.lane)
    try:
        ask(look_up, seen)
        ask(replace(requests.state_of(domain), lane=request.lane), seen)
        return cast("T", await awaited.get())
    finally:
        for each in asked:
            each.give_up()
