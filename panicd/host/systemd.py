"""Has systemd start a unit, over D-Bus, and waits for the result.

The bus is the system's, or the one at ``DBUS_SYSTEM_BUS_ADDRESS``. Any local user may send signals
to any connection on it, so signals from others than systemd are ignored.

Source: org.freedesktop.systemd1(5), 'The Manager Object' (``Subscribe``, ``StartUnit``,
``JobRemoved``); the D-Bus Specification, 'Authentication Protocol' and 'Message Bus Specification'.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import trio
from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.bus import get_bus
from jeepney.bus_messages import message_bus
from jeepney.low_level import Parser

NAME: Final = "org.freedesktop.systemd1"
PATH: Final = "/org/freedesktop/systemd1"
INTERFACE: Final = f"{NAME}.Manager"
MANAGER: Final = DBusAddress(PATH, bus_name=NAME, interface=INTERFACE)
JOB_REMOVED: Final = MatchRule(type="signal", sender=NAME, interface=INTERFACE, member="JobRemoved")
OWNER_CHANGED: Final = MatchRule(
    type="signal",
    sender=message_bus.bus_name,
    interface=message_bus.interface,
    member="NameOwnerChanged",
)
OWNER_CHANGED.add_arg_condition(0, NAME)
MODE: Final = "replace"  # as systemctl does: cancels a job of the unit that contradicts this one
SAID_MAX: Final = 400  # most characters kept of an error


class SystemdError(Exception):
    """The unit was not started."""


class NoSystemdError(SystemdError):
    """There is no bus, or no systemd on it, or the connection broke."""


class AccessDeniedError(SystemdError):
    """This user may not start this unit."""


class NoSuchUnitError(SystemdError):
    """systemd finds no unit of that name."""


class UnitRefusedError(SystemdError):
    """systemd made no job of it: the unit is masked, or has bad settings, for example."""


class JobFailedError(SystemdError):
    """The job ended, and the unit was not started."""


class JobLateError(SystemdError):
    """The time is over; the job goes on in systemd."""


_NAMED: Final[dict[str, type[SystemdError]]] = {
    "org.freedesktop.DBus.Error.AccessDenied": AccessDeniedError,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": AccessDeniedError,
    "org.freedesktop.DBus.Error.NameHasNoOwner": NoSystemdError,
    "org.freedesktop.DBus.Error.NoReply": NoSystemdError,
    "org.freedesktop.DBus.Error.ServiceUnknown": NoSystemdError,
    "org.freedesktop.systemd1.NoSuchUnit": NoSuchUnitError,
}

_RESULTS: Final = {
    "canceled": "its job was cancelled",
    "timeout": "its job took longer than the unit allows",
    "failed": "it failed to start",
    "dependency": "a unit that it needs failed to start",
    "skipped": "systemd skipped it, by a condition of the unit",
}
"""Texts for ``JobRemoved``'s results, where the result's own word says too little."""


async def start_unit(unit: str, timeout: float) -> None:
    """Start a unit, and wait until its job is done.

    A job that has not ended in time is not cancelled.

    Args:
        unit: its full name.
        timeout: seconds for the whole call.

    Raises:
        SystemdError: the unit was not started in time; the subclass says why.
    """
    try:
        with trio.fail_after(timeout):
            async with _connect() as bus:
                result = await bus.start(unit)
    except trio.TooSlowError:
        raise JobLateError(f"{unit}: not started within {timeout:g} s") from None
    except SystemdError as error:
        raise type(error)(f"{unit}: {error}") from error
    if result != "done":
        raise JobFailedError(f"{unit}: {_RESULTS.get(result, result)} (journalctl -u '{unit}')")


class _Bus:
    """A connection that one task uses, from request to reply.

    Attributes:
        _systemd: systemd's unique name on the bus; it changes when systemd re-executes.
        _ended: the results of ended jobs, by their object's path.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._parser = Parser()
        self._serials = count(1)
        self._systemd = ""
        self._ended: dict[str, str] = {}

    async def start(self, unit: str) -> str:
        """Start a unit, and return its job's result."""
        await self.call(message_bus.Hello())
        for rule in (OWNER_CHANGED, JOB_REMOVED):
            await self.call(message_bus.AddMatch(rule))
        (self._systemd,) = await self.call(message_bus.GetNameOwner(NAME))
        await self.call(new_method_call(MANAGER, "Subscribe"))
        (job,) = await self.call(new_method_call(MANAGER, "StartUnit", "ss", (unit, MODE)))
        while job not in self._ended:
            await self._receive()
        return self._ended[job]

    async def call(self, message: Message) -> tuple[Any, ...]:
        """Call a method, and return what its reply holds."""
        serial = next(self._serials)
        await self._stream.send_all(message.serialise(serial))
        while True:
            reply = await self._receive()
            # The bus lets only the call's receiver answer.
            if reply.header.fields.get(HeaderFields.reply_serial) == serial:
                break
        if reply.header.message_type is MessageType.error:
            name = str(reply.header.fields.get(HeaderFields.error_name))
            said = reply.body[0] if reply.body and isinstance(reply.body[0], str) else name
            raise _NAMED.get(name, UnitRefusedError)(said[:SAID_MAX])
        return tuple(reply.body)

    async def _receive(self) -> Message:
        while (message := self._parse()) is None:
            data = await self._stream.receive_some()
            if not data:
                raise NoSystemdError("the bus closed the connection")
            self._parser.add_data(data)
        fields = message.header.fields
        if message.header.message_type is MessageType.signal:
            match fields.get(HeaderFields.sender), fields.get(HeaderFields.member):
                case self._systemd, "JobRemoved":
                    _, job, _, result = message.body
                    self._ended[job] = result
                case message_bus.bus_name, "NameOwnerChanged":
                    _, _, self._systemd = message.body
        return message

    def _parse(self) -> Message | None:
        """Return the next readable message; None where none has come."""
        while True:
            try:
                message: Message | None = self._parser.get_next_message()
            except ValueError:  # a type or a header field of a later D-Bus, which any user may send
                self._parser.next_msg_size = None  # it was taken out all the same
            else:
                return message


def bus_that_is_missing() -> str:
    """Return the address of a system bus that is missing; empty where it seems to be there."""
    try:
        path = get_bus("SYSTEM")
    except (ValueError, RuntimeError) as error:  # see _connect
        return str(error)
    return "" if path.startswith("\0") or Path(path).is_socket() else path


@asynccontextmanager
async def _connect() -> AsyncIterator[_Bus]:
    """Connect to the bus; any fault of the bus is a ``NoSystemdError``."""
    try:
        async with await trio.open_unix_socket(get_bus("SYSTEM")) as stream:
            authenticator = Authenticator()
            for line in authenticator:
                await stream.send_all(line)
                said = await stream.receive_some()
                if not said:
                    raise NoSystemdError("the bus closed the connection")
                authenticator.feed(said)
            await stream.send_all(BEGIN)
            yield _Bus(stream)
    except AuthenticationError as error:
        raise NoSystemdError(f"the bus refuses this user: {error}") from error
    except trio.BrokenResourceError as error:
        raise NoSystemdError(f"the connection to the bus broke: {error}") from error
    # jeepney raises ValueError for an address that it can't read, RuntimeError for an address
    # without a Unix socket.
    except (OSError, ValueError, RuntimeError) as error:
        raise NoSystemdError(f"no D-Bus system bus: {error}") from error
