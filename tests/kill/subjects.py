"""The VMs of the matrix, with one face for all: a QEMU and a libvirt's domain, fake and real."""

from __future__ import annotations

import os
import re
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import trio

from panicd.demo.guests import Guest
from panicd.demo.qemu import machine_arguments, monitor_arguments
from tests.kill.scenarios import GONE, Scenario
from tests.parts.fake import FakeQemu
from tests.parts.qemu import RealQemu, accelerator, qemu_binary
from tests.parts.qmp import QmpClosedError
from tests.parts.wire import Message

_ASKING = ("query-", "qom-", "qmp_", "qmp-", "human-")


class Spoil(Protocol):
    """A command to which something happens.

    Attributes:
        command: which.
        reached: that has happened.
    """

    command: str
    reached: trio.Event

    def cut(self) -> None:
        """Cut the connection: it is not carried out."""

    def release(self) -> None:
        """Have it carried out."""


class Subject(ABC):
    """A VM whose guest is to panic.

    Attributes:
        identified: panicd knows its process, and so its end.
        config: what panicd is configured with, so that it finds it.
    """

    identified: bool
    config: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    async def panic(self) -> None:
        """Have the guest panic."""

    @abstractmethod
    async def guest(self) -> str:
        """QEMU's run state, or ``GONE``."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether QEMU has ended."""

    @property
    @abstractmethod
    def carried_out(self) -> list[str]:
        """The commands that QEMU carried out, in order, over all sessions."""

    @abstractmethod
    async def wait_dealt_with(self, command: str, number: int) -> None:
        """Wait until QEMU has dealt with a command so often."""

    def hold(self, command: str) -> Spoil:
        """Keep a command from being carried out; for a fake, as are the next two."""
        raise NotImplementedError

    def swallow(self, command: str) -> Spoil:
        """Lose the answer to a command that is carried out."""
        raise NotImplementedError

    def cut(self) -> None:
        """Cut panicd's connection."""
        raise NotImplementedError

    async def freeze(self) -> None:
        """Stop who carries the commands out in his tracks; for a real one, as are the next two."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let him go on."""
        raise NotImplementedError

    async def kill(self) -> None:
        """End QEMU by SIGKILL."""
        raise NotImplementedError

    async def kill_libvirtd(self) -> None:
        """End libvirtd by SIGKILL, and start it anew; for a real one."""
        raise NotImplementedError

    @property
    def changing(self) -> list[str]:
        """The commands carried out that do more than ask."""
        return [name for name in self.carried_out if not name.startswith(_ASKING)]


class FakeSubject(Subject):
    """A fake; panicd can't tell its process, as behind a proxy."""

    identified = False

    def __init__(self, fake: _WatchedFake) -> None:
        self.fake = fake

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, scenario: Scenario) -> AsyncIterator[Self]:
        """Run one for a scenario."""
        fake = _WatchedFake(directory / "vm.qmp", **scenario.machine)
        for command in scenario.refused:
            fake.refuse(command, times=None)
        async with fake.running():
            yield cls(fake)

    async def panic(self) -> None:
        self.fake.panic()

    async def guest(self) -> str:
        return GONE if self.ended else str(self.fake.machine.state)

    @property
    def ended(self) -> bool:
        return self.fake.exited.is_set()

    @property
    def carried_out(self) -> list[str]:
        return self.fake.carried_out

    def hold(self, command: str) -> Spoil:
        return self.fake.hold(command)

    def swallow(self, command: str) -> Spoil:
        return self.fake.swallow(command)

    def cut(self) -> None:
        self.fake.close_session()

    async def wait_dealt_with(self, command: str, number: int) -> None:
        while self.fake.dealt_with.count(command) < number:
            await self.fake.changed.park()


class _WatchedFake(FakeQemu):
    """A fake that also writes down what it carried out, and what it has dealt with at all."""

    def __init__(self, path: Path, **keywords: Any) -> None:
        super().__init__(path, **keywords)
        self.carried_out: list[str] = []
        self.dealt_with: list[str] = []
        self.changed = trio.lowlevel.ParkingLot()

    async def _carry_out(self, session: Any, call: Message) -> Message:
        reply = await super()._carry_out(session, call)
        if "return" in reply:
            part = "begin" in call.get("arguments", {})
            self.carried_out.append(f"{call['execute']} of a range" if part else call["execute"])
        return reply

    async def _answer(self, session: Any, text: bytes) -> None:
        number = len(self.calls)
        await super()._answer(session, text)
        self.dealt_with.append(self.commands[number])
        self.changed.unpark_all()


class RealSubject(Subject):
    """A real QEMU, which writes every command that it carries out to a trace file."""

    identified = True

    def __init__(self, vm: RealQemu, trace: Path, first: int) -> None:
        self.vm = vm
        self._trace = trace
        self._first = first

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, scenario: Scenario) -> AsyncIterator[Self]:
        """Run one for a scenario."""
        trace = directory / "trace"
        traced = ("-trace", "qmp_exit_*", "-trace", "vm_state_notify", "-D", str(trace))
        extra = (*traced, *(scenario.arguments or ()))
        async with RealQemu.start(directory, guest=Guest.COUNT, extra=extra) as vm:
            yield cls(vm, trace, len(carried_out(trace)))

    async def panic(self) -> None:
        await self.vm.panic()

    async def guest(self) -> str:
        if not self.ended:
            with suppress(QmpClosedError):
                return await self.vm.status()
        await self.vm.wait_exit()
        return GONE

    @property
    def ended(self) -> bool:
        return self.vm.returncode is not None

    @property
    def carried_out(self) -> list[str]:
        # What came before is the start of the guest, by the test.
        return carried_out(self._trace)[self._first :]

    async def wait_dealt_with(self, command: str, number: int) -> None:
        # QEMU's main loop takes its monitors in turn: each answer to the witness is one more turn.
        with suppress(QmpClosedError):
            while self.carried_out.count(command) < number:
                await self.vm.status()

    async def kill(self) -> None:
        self.vm.kill()
        await self.vm.wait_exit()

    async def freeze(self) -> None:
        await self.vm.freeze()

    def thaw(self) -> None:
        os.kill(self.vm.pid, signal.SIGCONT)


def relaunch_arguments(directory: Path, uuid: str, pid_file: Path) -> list[str]:
    """The command line of a QEMU in place of the one that a ``RealSubject`` was."""
    rom, monitor = directory / "vm.guest", directory / "vm.qmp"
    return [
        *machine_arguments(qemu_binary(), accelerator()),
        *("-bios", str(rom), "-device", "pvpanic", "-name", "vm", "-uuid", uuid),
        *monitor_arguments("monitor", f"path={monitor},server=on,wait=off"),
        *("-daemonize", "-pidfile", str(pid_file)),
    ]


# A command that succeeded: its name, its answer, and 1. Or a guest that runs now.
_SUCCESS = re.compile(r"^(?:qmp_exit_(\w+) .* 1|vm_state_notify running 1 .*)$", re.MULTILINE)
_RUNS = ""


def carried_out(trace: Path) -> list[str]:
    """The commands in a trace, without the witness's questions.

    A guest runs before ``cont`` has ended: QEMU may be killed in between.
    """
    names = _SUCCESS.findall(trace.read_text())
    if names and names[-1] == _RUNS:
        names.append("cont")
    done = [name.replace("_", "-") for name in names if name != _RUNS]
    return [name.replace("system-reset", "system_reset") for name in done]
