"""The domains of the matrix: on a fake libvirtd, and on a real one."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import trio

from panicd.demo.guests import Guest
from panicd.libvirt.wire import REMOTE_PROGRAM, Kind, Message, Status
from panicd.rules.libvirt_state import run_state
from tests.kill.gated import BY_LIBVIRT
from tests.kill.scenarios import GONE, Scenario
from tests.kill.subjects import Spoil, Subject
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd
from tests.parts.libvirt import Libvirtd, LibvirtVm
from tests.parts.qmp import QmpClosedError

_PROCEDURES = {command: procedure for procedure, command in BY_LIBVIRT.items()}
_OF_EVENTS = {"RESET": "system_reset", "RESUME": "cont", "DUMP_COMPLETED": "dump-guest-memory"}


def _config(uri: str) -> dict[str, Any]:
    """Return what has panicd look after a libvirt's domains, by the policy of the scenario."""
    return {"monitors": [], "libvirt": {"uri": uri, "on_crash": "ignore"}}


class FakeDomainSubject(Subject):
    """A domain of a fake libvirtd; panicd can't tell its process."""

    identified = False

    def __init__(self, libvirtd: _WatchedLibvirtd) -> None:
        self.libvirtd = libvirtd
        self.config = _config(libvirtd.uri)

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, scenario: Scenario) -> AsyncIterator[Self]:
        """Run one for a scenario."""
        async with _WatchedLibvirtd.start(directory, FakeDomain("vm", 1)) as libvirtd:
            assert isinstance(libvirtd, _WatchedLibvirtd)
            for command in scenario.refused:
                libvirtd.faults.refuses[_PROCEDURES[command]] = "refused by the test"
            yield cls(libvirtd)

    async def panic(self) -> None:
        self.libvirtd.panic()

    async def guest(self) -> str:
        return GONE if self.ended else str(run_state(*self.libvirtd.domain().state))

    @property
    def ended(self) -> bool:
        return self.libvirtd.domain().id < 0

    @property
    def carried_out(self) -> list[str]:
        return self.libvirtd.carried_out

    async def wait_dealt_with(self, command: str, number: int) -> None:
        while self.libvirtd.dealt_with.count(command) < number:
            await self.libvirtd.changed.park()

    def hold(self, command: str) -> Spoil:
        return self.libvirtd.spoil(command, is_held=True)

    def swallow(self, command: str) -> Spoil:
        return self.libvirtd.spoil(command, is_held=False)

    def cut(self) -> None:
        self.libvirtd.hang_up()


class _Spoil:
    """One command that is held, or whose answer is lost."""

    def __init__(self, command: str, *, is_held: bool, go_on: Callable[[], None]) -> None:
        self.command = command
        self.is_held = is_held
        self.reached = trio.Event()
        self.cut: Callable[[], None] = lambda: None  # whoever has sent it is gone already
        self.release = go_on


class _WatchedLibvirtd(FakeLibvirtd):
    """A fake that writes down what it carried out, and what it has dealt with at all."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.carried_out: list[str] = []
        self.dealt_with: list[str] = []
        self.changed = trio.lowlevel.ParkingLot()
        self._spoil: _Spoil | None = None
        self._held: list[tuple[Any, Message]] = []

    def spoil(self, command: str, *, is_held: bool) -> _Spoil:
        """Hold the next command of a name, or lose the answer to it."""
        self._spoil = _Spoil(command, is_held=is_held, go_on=self._release)
        return self._spoil

    def hang_up(self) -> None:
        """End all connections at once."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.stream.socket.close()

    def _release(self) -> None:
        for client, message in self._held:
            self._carry_out(client, message)
        self._held = []

    async def _take(self, client: Any, message: Message) -> None:
        command = _command(message)
        spoil = self._spoil
        if command and spoil is not None and spoil.command == command and spoil.is_held:
            self._spoil = None
            self._held.append((client, message))
            spoil.reached.set()
            return
        await super()._take(client, message)
        if command:
            self.dealt_with.append(command)
            self.changed.unpark_all()

    def _carry_out(self, client: Any, message: Message) -> None:
        """Carry a command out that was held; nobody waits for its answer any more."""
        with suppress(Exception):
            self._answer(client, message)
        self.dealt_with.append(_command(message))
        self.changed.unpark_all()

    def _answer(self, client: Any, message: Message) -> bytes:
        payload = super()._answer(client, message)
        if command := _command(message):
            self.carried_out.append(command)
        return payload

    def _reply(
        self, client: Any, to: Message, kind: Kind, status: Status, payload: bytes = b""
    ) -> None:
        spoil = self._spoil
        if spoil is not None and spoil.command == _command(to):
            self._spoil = None
            spoil.reached.set()
            return
        super()._reply(client, to, kind, status, payload)


def _command(message: Message) -> str:
    """Return what a QMP monitor would have been told in place of a call; empty of all others."""
    if message.program != REMOTE_PROGRAM or message.kind != Kind.CALL:
        return ""
    return BY_LIBVIRT.get(message.procedure, "")


class RealDomainSubject(Subject):
    """A domain of a real libvirtd. What was done to it is told by its QEMU's events."""

    identified = True

    def __init__(self, libvirtd: Libvirtd, vm: LibvirtVm) -> None:
        self._libvirtd = libvirtd
        self._vm = vm
        self._since = vm.witness.mark()
        self.config = _config(libvirtd.uri)

    @classmethod
    @asynccontextmanager
    async def start(
        cls, libvirtd: Libvirtd, directory: Path, _scenario: Scenario
    ) -> AsyncIterator[Self]:
        """Run one for a scenario."""
        async with libvirtd.domain(directory, "restart", guest=Guest.COUNT) as vm:
            yield cls(libvirtd, vm)

    async def panic(self) -> None:
        await self._vm.panic()

    async def guest(self) -> str:
        with suppress(QmpClosedError):
            return str((await self._vm.witness.execute("query-status"))["status"])
        return GONE

    @property
    def ended(self) -> bool:
        return self._vm.witness.closed

    @property
    def carried_out(self) -> list[str]:
        heard = (event["event"] for event in self._vm.events)
        done = [_OF_EVENTS[name] for name in heard if name in _OF_EVENTS]
        return [*done, *(["quit"] if self.ended else [])]

    async def wait_dealt_with(self, command: str, number: int) -> None:
        with suppress(QmpClosedError):
            while self.carried_out.count(command) < number:
                await self._vm.witness.execute("query-status")

    async def freeze(self) -> None:
        self._libvirtd.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._libvirtd.send_signal(signal.SIGCONT)

    async def kill_libvirtd(self) -> None:
        with self._libvirtd.away(signal.SIGKILL):
            pass
