"""A fake and a real QEMU behind one small interface, for the contract tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from panicd.demo.guests import Guest
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.profile import RunState
from tests.parts.qemu import RealQemu
from tests.parts.qmp import QmpClient, connect_qmp

TIME_LIMIT = 20.0
"""Seconds for one test; a real QEMU needs less than one."""

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f50"


SIZE = 16 << 20
"""Bytes of a disk, and of memory that is not zero: pages of zeroes take no time to be sent."""


def to_work_on(directory: Path) -> tuple[str, ...]:
    """Arguments of a VM whose job and whose migration take for ever."""
    memory = directory / "memory"
    memory.write_bytes(bytes(range(1, 256)) * (SIZE // 255))
    loader = f"loader,file={memory},addr=0x200000,force-raw=on"
    disk = f"if=none,id=disk,driver=null-co,size={SIZE},read-zeroes=on"
    return ("-device", loader, "-drive", disk)


@dataclass(frozen=True)
class Setup:
    """What is started.

    Attributes:
        panic: ``-action panic=``; None: QEMU's default.
        reboot: ``-action reboot=``.
        shutdown: ``-action shutdown=``.
        devices: A ``-device`` each.
        paused: Started with ``-S``.
        firmware: Boots through a firmware.
        panics_at_boot: The guest panics at every boot.
        dial: Dials in to this socket.
        works: Has a disk for a job, and memory that takes long to be migrated.
        proxied: What its monitor is told is noted.
    """

    panic: str | None = None
    reboot: str = "reset"
    shutdown: str = "poweroff"
    devices: Sequence[str] = ("pvpanic",)
    paused: bool = False
    firmware: bool = False
    panics_at_boot: bool = False
    dial: Path | None = None
    works: bool = False
    proxied: bool = False
    name: str = "contract"
    uuid: str = field(default=UUID)


PAUSES = Setup(panic="pause")


class Subject(ABC):
    """One QEMU, real or fake. The monitor at :attr:`socket` is what is tested."""

    socket: Path

    @abstractmethod
    async def panic(self) -> None:
        """The guest panics."""

    @abstractmethod
    async def panic_while_stopped(self) -> None:
        """The panic device is written to while the guest does not run."""

    @abstractmethod
    async def crashload(self) -> None:
        """The guest's kdump kernel takes over."""

    @abstractmethod
    async def guest_reset(self) -> None:
        """The guest resets itself."""

    @abstractmethod
    async def begin(self, work: Work) -> None:
        """Somebody else has QEMU begin what does not end by itself."""

    @abstractmethod
    async def end(self, work: Work) -> None:
        """Somebody else has QEMU cancel it."""

    @property
    @abstractmethod
    def commands(self) -> list[str]:
        """The names of the commands that the monitor under test received, with ``proxied``."""

    @abstractmethod
    async def wait_exit(self) -> int:
        """Wait for QEMU's end; its exit status."""

    def client(self, *, negotiate: bool = True) -> AbstractAsyncContextManager[QmpClient]:
        """A client of the monitor."""
        return connect_qmp(self.socket, negotiate=negotiate)


class Work(StrEnum):
    """What a QEMU can be busy with, by panicd's name for it."""

    JOB = "a block job"
    MIGRATION = "a migration"


Start = Callable[[Setup], AbstractAsyncContextManager[Subject]]


class FakeSubject(Subject):
    """The fake QEMU."""

    def __init__(self, fake: FakeQemu) -> None:
        self.socket = fake.socket
        self._fake = fake

    async def panic(self) -> None:
        self._fake.panic()

    async def panic_while_stopped(self) -> None:
        self._fake.panic()

    async def crashload(self) -> None:
        self._fake.crashload()

    async def guest_reset(self) -> None:
        self._fake.guest_reset()

    async def begin(self, work: Work) -> None:
        if work is Work.JOB:
            self._fake.machine.begin_job("disk")
        else:
            self._fake.machine.begin_migration()

    async def end(self, work: Work) -> None:
        if work is Work.JOB:
            self._fake.machine.end_job("disk")
        else:
            self._fake.machine.end_migration()

    @property
    def commands(self) -> list[str]:
        return self._fake.commands

    async def wait_exit(self) -> int:
        await self._fake.exited.wait()
        status = self._fake.machine.exit_status
        assert status is not None
        return status


class RealSubject(Subject):
    """A real QEMU. The guest panics from inside, at a key press."""

    def __init__(self, vm: RealQemu) -> None:
        self.socket = vm.socket
        self._vm = vm

    async def panic(self) -> None:
        await self._vm.press_key()

    async def panic_while_stopped(self) -> None:
        await self._vm.panic()

    async def crashload(self) -> None:
        await self._vm.crashload()

    async def guest_reset(self) -> None:
        await self._vm.guest_reset()

    async def begin(self, work: Work) -> None:
        execute = self._vm.witness.execute
        if work is Work.JOB:
            target = {"target": f"{self.socket}.backup", "format": "raw"}
            backup = {"device": "disk", "sync": "full", "speed": 1, **target}
            await execute("drive-backup", backup)
        else:
            await execute("migrate-set-parameters", {"max-bandwidth": 16 * 1024})
            await execute("migrate", {"uri": "exec:cat >/dev/null"})
            while (await execute("query-migrate"))["status"] != "active":
                pass  # each look is a round trip to QEMU

    async def end(self, work: Work) -> None:
        execute = self._vm.witness.execute
        if work is Work.JOB:
            await execute("block-job-cancel", {"device": "disk", "force": True})
            while await execute("query-jobs"):
                pass
        else:
            await execute("migrate_cancel")
            while (await execute("query-migrate"))["status"] != "cancelled":
                pass

    @property
    def commands(self) -> list[str]:
        return self._vm.proxy.commands

    async def wait_exit(self) -> int:
        return await self._vm.wait_exit()


@asynccontextmanager
async def start_fake(directory: Path, setup: Setup) -> AsyncIterator[Subject]:
    fake = FakeQemu(
        directory / "fake.qmp",
        name=setup.name,
        uuid=setup.uuid,
        devices=setup.devices,
        state=RunState.PRELAUNCH if setup.paused else RunState.RUNNING,
        panic_action=setup.panic or "shutdown",
        reboot_action=setup.reboot,
        shutdown_action=setup.shutdown,
        firmware=setup.firmware,
        dial=setup.dial,
    )
    if setup.panics_at_boot:
        fake.panic_at_boot()
    with fail_after(TIME_LIMIT):
        async with fake.running():
            yield FakeSubject(fake)


@asynccontextmanager
async def start_real(directory: Path, setup: Setup) -> AsyncIterator[Subject]:
    actions = f"reboot={setup.reboot},shutdown={setup.shutdown}"
    if setup.panic:
        actions += f",panic={setup.panic}"
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            directory,
            guest=Guest.PANIC_ONCE if setup.panics_at_boot else Guest.PANIC_ON_KEY,
            firmware=setup.firmware,
            devices=setup.devices,
            name=setup.name,
            uuid=setup.uuid,
            paused=setup.paused,
            dial=setup.dial,
            proxied=setup.proxied,
            extra=("-action", actions, *(to_work_on(directory) if setup.works else ())),
        ) as vm:
            yield RealSubject(vm)
