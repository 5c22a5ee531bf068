"""Gives a running VM a panic device, and removes it again (``panicd arm``, ``disarm``).

It uses the domain's monitor, or, if only libvirt can reach the domain, libvirt's way to QEMU's. The
session's knowledge of the domain does not show the device. So it is noted at the domain. For later
sessions libvirt notes it in the metadata of this start, which ends when the device does.
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
from panicd.libvirt.qmp_words import data
from panicd.qemu.monitor import CommandError, MonitorError
from panicd.qemu.session import ANSWER_TIMEOUT
from panicd.rules.libvirt import PLUGGED_KEY, PLUGGED_URI, plugged_element
from panicd.rules.plugging import DEVICE, DEVICE_ID, Plugged, places, plugged

LOOKS: Final = 20  # whether the guest has taken or released it: a second was seen, at load 24
LOOK_EVERY: Final = 0.2  # seconds

Ask = Callable[..., Awaitable[object]]
"""Has QEMU carry out a command; its arguments are given by name."""


class PluggingError(Exception):
    """It was not done; the message says why."""


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
        if found is None:  # the guest may have refused it immediately
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
    """Remove the device, which the guest must release.

    Raises:
        PluggingError: it is still there.
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
    """Add the device in a place where QEMU accepts it.

    Raises:
        CommandError: there is none.
    """
    refused: CommandError | None = None
    for place in places(await ask("query-pci")):
        try:
            await ask("device_add", driver=DEVICE, id=DEVICE_ID, **place)
        except CommandError as error:
            refused = refused or error  # the last place is a guess
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
    """Return QEMU's answer, as libvirt hands it on.

    Raises:
        CommandError: it refused.
    """
    match data(reply):
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
