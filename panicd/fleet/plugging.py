"""Gives a running VM a panic device, and takes it away again (``panicd arm``, ``disarm``).

By the domain's monitor, or where libvirt alone can reach it, by libvirt's way to QEMU's own. What
is known of a domain by its session does not show it then: so it is noted at the domain, and for
later sessions by libvirt in this start's metadata, which ends as the device does.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from panicd.incident.domains import Domain
from panicd.libvirt import requests
from panicd.libvirt.errors import LibvirtError
from panicd.libvirt.known_domains import Libvirt, Start
from panicd.libvirt.one_start import call_on
from panicd.qemu.monitor import CommandError, MonitorError
from panicd.qemu.session import ANSWER_TIMEOUT
from panicd.rules.libvirt import PLUGGED_KEY, PLUGGED_URI, plugged_element
from panicd.rules.plugging import DEVICE, DEVICE_ID, Plugged, places, plugged

LOOKS: Final = 20  # whether the guest has taken it, or let go: a second was seen, at load 24
LOOK_EVERY: Final = 0.2  # seconds

Ask = Callable[..., Awaitable[object]]
"""Has QEMU carry out a command; it takes its arguments by their names."""


class PluggingError(Exception):
    """It is not done; the message says why."""


async def plug_in(libvirt: Libvirt, domain: Domain) -> Plugged:
    """Give a VM a panic device, unless it has this one already; wait until its guest has taken it.

    Raises:
        PluggingError: it has none, as far as is known.
    """
    try:
        ask = _way_to(libvirt, domain)
        found = await _find(ask)
        if found is None:
            await _add(ask)
            found = await _find(ask)
        if found is None:  # its guest may have refused it at once
            raise PluggingError("QEMU accepted the device, but does not have it")
        await _note(libvirt, domain, found)
        for _ in range(LOOKS):
            if found.is_taken:
                break
            await trio.sleep(LOOK_EVERY)
            found = await _find(ask) or found
    except (MonitorError, LibvirtError) as error:
        raise PluggingError(str(error)) from error
    return found


async def take_out(libvirt: Libvirt, domain: Domain) -> None:
    """Take the device away, which the guest has to let go of.

    Raises:
        PluggingError: it is there all the same.
    """
    try:
        ask = _way_to(libvirt, domain)
        if await _find(ask) is not None:
            await ask("device_del", id=DEVICE_ID)
        for _ in range(LOOKS):
            if await _find(ask) is None:
                await _note(libvirt, domain, None)
                return
            await trio.sleep(LOOK_EVERY)
    except (MonitorError, LibvirtError) as error:
        raise PluggingError(str(error)) from error
    raise PluggingError("the guest has not released the device; it can once it has booted")


async def _find(ask: Ask) -> Plugged | None:
    return plugged(await ask("query-pci"))


async def _add(ask: Ask) -> None:
    """Add the device where QEMU takes it.

    Raises:
        CommandError: nowhere.
    """
    refused: CommandError | None = None
    for place in places(await ask("query-pci")):
        try:
            await ask("device_add", driver=DEVICE, id=DEVICE_ID, **place)
        except CommandError as error:
            refused = refused or error  # what comes last is a guess
        else:
            return
    assert refused is not None, "there is one place at least"
    raise refused


def _way_to(libvirt: Libvirt, domain: Domain) -> Ask:
    """Return the way to a domain's QEMU.

    Raises:
        PluggingError: it has just ended.
    """
    session = domain.session
    if session is None:
        raise PluggingError("it is not connected")
    if not session.capability.by_api:

        async def ask(command: str, **arguments: object) -> object:
            return await session.execute(command, arguments)

        return ask
    start = _start_of(libvirt, domain)

    async def ask_by_libvirt(command: str, **arguments: object) -> object:
        text = json.dumps({"execute": command, "arguments": arguments})
        request = requests.monitor_command(start.ref, text)
        return _answer(await call_on(libvirt.client, start.ref, request, timeout=ANSWER_TIMEOUT))

    return ask_by_libvirt


def _start_of(libvirt: Libvirt, domain: Domain) -> Start:
    start = libvirt.start_of(domain.uuid)
    if start is None:
        raise PluggingError("it has just ended")
    return start


def _answer(reply: str) -> object:
    """Return what QEMU said, as libvirt hands it on.

    Raises:
        CommandError: it refused.
    """
    match json.loads(reply):
        case {"return": answer}:
            return answer
        case {"error": {"class": str(kind), "desc": str(text)}}:
            raise CommandError(kind, text)
    raise CommandError("GenericError", "QEMU's answer makes no sense")


async def _note(libvirt: Libvirt, domain: Domain, found: Plugged | None) -> None:
    session = domain.session
    if session is None or not session.capability.by_api:
        domain.plugged = found is not None
        return
    start = _start_of(libvirt, domain)
    element = None if found is None else plugged_element(found.argument)
    request = requests.set_metadata(start.ref, PLUGGED_URI, PLUGGED_KEY, element)
    await call_on(libvirt.client, start.ref, request, timeout=ANSWER_TIMEOUT)
    await libvirt.describe(start)
