"""What the fake QEMU and the recording proxy share: a log of commands, and faults on command."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.parts.wire import Message

_ASKING_PREFIXES = ("query-", "x-query-", "qom-", "qmp_capabilities", "device-list-")
FOLLOWS = "migrate-set-capabilities"
"""The command by which panicd asks to be told of migrations. It changes nothing else."""


class FaultKind(enum.Enum):
    """What goes wrong with a command."""

    CUT_BEFORE = enum.auto()
    """The connection is cut; QEMU never hears of the command."""

    CUT_AFTER = enum.auto()
    """QEMU carries it out; the connection is cut in place of the reply."""

    SWALLOW = enum.auto()
    """QEMU carries it out; the reply is lost, the session goes on."""

    HOLD = enum.auto()
    """Neither this command nor a later one is carried out until it is released."""

    HOLD_REPLY = enum.auto()
    """QEMU carries it out; its reply and what comes after wait until it is released."""

    REFUSE = enum.auto()
    """Answered with an error, not carried out."""

    GARBLE = enum.auto()
    """Carried out, and answered with some other bytes."""


@dataclass(eq=False)
class Fault:
    """One fault, waiting for its command. Made by the methods of :class:`RecordedMonitor`.

    Attributes:
        kind: What goes wrong.
        command: The command that it waits for.
        times: How often it still happens; None: always.
        payload: The reply, for REFUSE (a QMP error) and GARBLE (bytes).
        reached: Set when it happened: for HOLD before the command is carried out, for the others
            after.
    """

    kind: FaultKind
    command: str
    times: int | None
    payload: Any = None
    reached: trio.Event = field(default_factory=trio.Event)
    _released: trio.Event = field(default_factory=trio.Event)
    _cut: bool = False

    def release(self) -> None:
        """Let a held command or reply continue."""
        self._released.set()

    def cut(self) -> None:
        """Cut the connection of a held command or reply; what was held is lost."""
        self._cut = True
        self._released.set()

    async def before(self) -> bool:
        """Do what goes wrong before the command is carried out; return whether it is carried out.

        Raises:
            CutError: The connection shall end.
        """
        match self.kind:
            case FaultKind.CUT_BEFORE:
                self.reached.set()
                raise CutError
            case FaultKind.HOLD:
                await self._hold()
            case FaultKind.REFUSE:
                self.reached.set()
                return False
        return True

    async def after(self, reply: bytes) -> bytes:
        """Do what goes wrong after the command is carried out; return what is sent as its reply.

        Raises:
            CutError: The connection shall end.
        """
        match self.kind:
            case FaultKind.CUT_AFTER:
                self.reached.set()
                raise CutError
            case FaultKind.HOLD_REPLY:
                await self._hold()
            case FaultKind.SWALLOW:
                self.reached.set()
                return b""
            case FaultKind.GARBLE:
                self.reached.set()
                garbage: bytes = self.payload
                return garbage
        return reply

    async def _hold(self) -> None:
        self.reached.set()
        await self._released.wait()
        if self._cut:
            raise CutError


class CutError(Exception):
    """A fault asks for the end of this connection."""


class RecordedMonitor:
    """A monitor that records every command and can spoil any.

    Attributes:
        calls: Every command received, complete and in order, over all sessions.
    """

    def __init__(self) -> None:
        self.calls: list[Message] = []
        self._faults: list[Fault] = []
        self._call_came = trio.lowlevel.ParkingLot()

    @property
    def commands(self) -> list[str]:
        """The names of the commands received, in order."""
        return [str(call.get("execute")) for call in self.calls]

    @property
    def changing_commands(self) -> list[str]:
        """The names of the commands received that do more than ask, or ask to be told."""
        asks = (*_ASKING_PREFIXES, FOLLOWS)
        return [name for name in self.commands if not name.startswith(asks)]

    @property
    def acting_commands(self) -> list[str]:
        """The names of the commands received that do more than ask, or arm."""
        return [name for name in self.changing_commands if name != "set-action"]

    async def wait_command(self, name: str, *, since: int = 0, count: int = 1) -> Message:
        """Wait until ``count`` commands of that name have come; return the last of them, whole.

        Args:
            name: The command.
            since: Look only at ``calls[since:]``.
            count: How many.
        """
        while True:
            found = [call for call in self.calls[since:] if call.get("execute") == name]
            if len(found) >= count:
                return found[count - 1]
            await self._call_came.park()

    # -- faults; each happens ``times`` times (None: always), the oldest first

    def cut_before(self, command: str, *, times: int | None = 1) -> Fault:
        """Cut the connection when ``command`` comes, before it takes effect."""
        return self._add_fault(FaultKind.CUT_BEFORE, command, times)

    def cut_after(self, command: str, *, times: int | None = 1) -> Fault:
        """Cut the connection when ``command`` has taken effect, in place of its reply."""
        return self._add_fault(FaultKind.CUT_AFTER, command, times)

    def swallow(self, command: str, *, times: int | None = 1) -> Fault:
        """Lose the reply to ``command``, which takes effect."""
        return self._add_fault(FaultKind.SWALLOW, command, times)

    def hold(self, command: str, *, times: int | None = 1) -> Fault:
        """Keep ``command`` from taking effect until :meth:`Fault.release`.

        Never released, it is a QEMU whose main loop hangs.
        """
        return self._add_fault(FaultKind.HOLD, command, times)

    def hold_reply(self, command: str, *, times: int | None = 1) -> Fault:
        """Keep back the reply to ``command``, which takes effect, until :meth:`Fault.release`."""
        return self._add_fault(FaultKind.HOLD_REPLY, command, times)

    def refuse(
        self,
        command: str,
        desc: str = "refused by the test",
        *,
        error_class: str = "GenericError",
        times: int | None = 1,
    ) -> Fault:
        """Answer ``command`` with an error; it takes no effect."""
        error = {"class": error_class, "desc": desc}
        return self._add_fault(FaultKind.REFUSE, command, times, error)

    def garble(self, command: str, reply: bytes, *, times: int | None = 1) -> Fault:
        """Answer ``command``, which takes effect, with the bytes ``reply``."""
        return self._add_fault(FaultKind.GARBLE, command, times, reply)

    # -- for the fake and the proxy

    def record(self, call: Message) -> Fault | None:
        """Record a command, and return what shall go wrong with it."""
        self.calls.append(call)
        self._call_came.unpark_all()
        for fault in self._faults:
            if fault.command == call.get("execute"):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault
        return None

    def _add_fault(
        self, kind: FaultKind, command: str, times: int | None, payload: Any = None
    ) -> Fault:
        fault = Fault(kind, command, times, payload)
        self._faults.append(fault)
        return fault
