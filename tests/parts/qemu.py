"""A real QEMU, with a monitor for panicd and a second one for the test's own eyes."""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import uuid as uuid_module
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import trio

from panicd.demo.guests import (
    COUNTER_ADDRESS,
    PVPANIC_PORT,
    Guest,
    write_boot_sector,
    write_rom,
)
from tests.parts.background import background
from tests.parts.proxy import RecordingProxy
from tests.parts.qmp import QmpClient, QmpClosedError, qmp_over
from tests.parts.wire import MAX_SOCKET_PATH, Message

_KVM_TRIAL_SECONDS = 5.0
_MEMORY = "16M"


class QemuMissingError(Exception):
    """There is no QEMU on this machine."""


class QemuStartError(Exception):
    """QEMU ended before its monitors were ready; carries what it wrote."""


def qemu_binary() -> str:
    """The QEMU to test with: ``$PANICD_TEST_QEMU``, else qemu-system-x86_64 from the PATH.

    Raises:
        QemuMissingError: There is none.
    """
    name = os.environ.get("PANICD_TEST_QEMU", "qemu-system-x86_64")
    binary = shutil.which(name)
    if binary is None:
        raise QemuMissingError(
            f"{name} is not installed, and tests marked 'real' need it:"
            " apt-get install --no-install-recommends qemu-system-x86"
        )
    return binary


@functools.cache
def accelerator() -> str:
    """``kvm`` where it really runs a guest, else ``tcg``; ``$PANICD_TEST_ACCEL`` overrules.

    /dev/kvm alone proves little: it may be forbidden, or nested and stuck. So a guest is run that
    panics at once, in a QEMU whose exit status 0 says that it did (``-action panic=shutdown``).
    """
    if asked := os.environ.get("PANICD_TEST_ACCEL"):
        return asked
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory(prefix="panicd-kvm-") as directory:
        rom = Path(directory, "rom")
        write_rom(Guest.PANIC_ONCE, rom)
        command = [*_base_arguments("kvm"), "-device", "pvpanic", "-bios", str(rom)]
        try:
            trial = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_KVM_TRIAL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "tcg"
    return "kvm" if trial.returncode == 0 else "tcg"


def _base_arguments(accel: str) -> list[str]:
    return [
        *(qemu_binary(), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"pc,accel={accel}", "-m", _MEMORY),
    ]


class RealQemu:
    """A running QEMU. Made by :meth:`start`, and killed and reaped when that ends.

    Attributes:
        name: The VM's name, ``-name``.
        uuid: Its UUID, ``-uuid``.
        socket: Where panicd finds its monitor (the proxy's socket, if there is one). With ``dial``
            nobody listens there.
        witness: The test's own monitor: commands, and every event since the start.
        proxy: The proxy before the monitor, with ``proxied=True``.
    """

    def __init__(
        self,
        *,
        name: str,
        uuid: str,
        monitor: Path,
        process: trio.Process,
        witness: QmpClient,
        stderr: Path,
    ) -> None:
        self.name = name
        self.uuid = uuid
        self.socket = monitor
        self.witness = witness
        self._process = process
        self._stderr = stderr
        self._proxy: RecordingProxy | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *,
        guest: Guest | None = Guest.IDLE,
        firmware: bool = False,
        devices: Sequence[str] = ("pvpanic",),
        name: str = "vm",
        uuid: str | None = None,
        paused: bool = False,
        dial: Path | None = None,
        proxied: bool = False,
        accel: str | None = None,
        extra: Sequence[str] = (),
    ) -> AsyncIterator[Self]:
        """Start a QEMU, and its guest as soon as the witness listens.

        Unless ``extra`` says otherwise (``-action panic=pause``, ``-no-shutdown``) it exits on a
        panic, as QEMU does since 2.8 when nobody asks for anything else.

        Args:
            directory: For its sockets and files. Unix sockets have short paths: take the fixture
                ``socket_dir``, not ``tmp_path``.
            guest: What runs in it; None: nothing that panicd's tests bring (give ``extra``).
            firmware: Boot the guest from a floppy through SeaBIOS, under TCG: slower, and with the
                second RESET that a firmware makes after a reset. Otherwise the guest is the
                firmware.
            devices: A ``-device`` each.
            name: The VM's name and the stem of its socket.
            uuid: Its UUID; None: a random one.
            paused: Leave the guest waiting for a ``cont``, as ``-S`` does.
            dial: Dial in to this listening socket (``reconnect=1``) instead of listening.
            proxied: Put a :class:`RecordingProxy` between panicd and the monitor.
            accel: ``kvm`` or ``tcg``; None: see :func:`accelerator`.
            extra: Further arguments.

        Raises:
            QemuMissingError: There is no QEMU on this machine.
            QemuStartError: QEMU ended at once.
            ValueError: A socket's path would be too long.
        """
        uuid = uuid or str(uuid_module.uuid4())
        accel = accel or ("tcg" if firmware else accelerator())
        public, private = directory / f"{name}.qmp", directory / f"{name}.behind-proxy"
        for path in (public, private):
            if len(bytes(path)) > MAX_SOCKET_PATH:
                raise ValueError(f"{path}: too long for a unix socket; use the fixture socket_dir")
        own, theirs = socket.socketpair()
        own.setblocking(False)
        arguments = [
            *_base_arguments(accel),
            *("-name", name.replace(",", ",,"), "-uuid", uuid),
            *_guest_arguments(guest, directory / f"{name}.guest", firmware=firmware),
            *(argument for device in devices for argument in ("-device", device)),
            *_monitor_arguments("witness", f"fd={theirs.fileno()}"),
            *_monitor_arguments(
                "monitor",
                f"path={private if proxied else dial},reconnect=1"
                if dial
                else f"path={private if proxied else public},server=on,wait=off",
            ),
            "-S",  # so that nothing happens before the witness sees it
            *extra,
        ]
        async with AsyncExitStack() as stack:
            proxy = None
            if proxied:
                proxy = await stack.enter_async_context(
                    RecordingProxy.start(private, dial, panicd_side="connected")
                    if dial
                    else RecordingProxy.start(public, private)
                )
            stderr = directory / f"{name}.stderr"
            with theirs, stderr.open("wb") as stderr_file:
                process = await trio.lowlevel.open_process(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr_file,
                    stderr=stderr_file,
                    pass_fds=[theirs.fileno()],
                )
            stack.push_async_callback(_kill, process)
            try:
                witness = await stack.enter_async_context(
                    qmp_over(trio.socket.from_stdlib_socket(own))
                )
            except QmpClosedError as error:
                await process.wait()
                raise QemuStartError(_last_words(process, stderr)) from error
            vm = cls(
                name=name,
                uuid=uuid,
                monitor=public,
                process=process,
                witness=witness,
                stderr=stderr,
            )
            if proxy is not None:
                vm._proxy = proxy
                nursery = await stack.enter_async_context(background())
                nursery.start_soon(vm._stop_proxy_with_process)
            if not paused:
                await witness.execute("cont")
            try:
                yield vm
            except BaseException as error:
                error.add_note(_last_words(process, stderr))
                raise

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def stderr(self) -> str:
        """What QEMU has written to its standard error and output."""
        return self._stderr.read_text(errors="replace")

    @property
    def proxy(self) -> RecordingProxy:
        """The proxy before the monitor under test; only with ``proxied=True``."""
        assert self._proxy is not None, "start it with proxied=True"
        return self._proxy

    @property
    def events(self) -> list[Message]:
        """Every event since the start, in order."""
        return self.witness.events

    # -- doing

    async def hmp(self, command: str) -> str:
        """Run a command of the human monitor and return what it printed."""
        return str(
            await self.witness.execute("human-monitor-command", {"command-line": command})
        ).strip()

    async def panic(self) -> None:
        """Raise a panic from outside the guest, and see it reported."""
        await self._provoke("GUEST_PANICKED", f"o /b {PVPANIC_PORT:#x} 1")

    async def crashload(self) -> None:
        """Say, from outside the guest, that its kdump kernel takes over, and see it reported."""
        await self._provoke("GUEST_CRASHLOADED", f"o /b {PVPANIC_PORT:#x} 2")

    async def press_key(self) -> None:
        """Have ``Guest.PANIC_ON_KEY`` panic from inside, and see it reported."""
        await self._provoke("GUEST_PANICKED", "sendkey a")

    async def guest_reset(self) -> None:
        """Reset the machine as a guest does, by the keyboard controller."""
        await self.hmp("o /b 0x64 0xfe")

    async def set_panic_action(self, action: str) -> None:
        """``set-action panic=…``, from the witness."""
        await self.witness.execute("set-action", {"panic": action})

    def kill(self) -> None:
        """SIGKILL: a QEMU that dies without a word and leaves its socket's file behind."""
        self._process.kill()

    # -- seeing

    async def status(self) -> str:
        """The run state, as ``query-status`` tells it."""
        return str((await self.witness.execute("query-status"))["status"])

    async def counter(self) -> int:
        """How far a counting guest has come."""
        printed = await self.hmp(f"xp /1wx {COUNTER_ADDRESS:#x}")
        match = re.search(r": 0x([0-9a-f]+)", printed)
        assert match is not None, printed
        return int(match[1], base=16)

    # -- waiting

    async def wait_event(self, name: str, *, since: int = 0, count: int = 1) -> Message:
        """Wait until ``count`` events of that name have come since ``witness.mark()``."""
        return await self.witness.wait_event(name, since=since, count=count)

    async def wait_status(self, status: str) -> None:
        """Wait until the run state is ``status``. Every change of it brings an event."""
        while True:
            mark = self.witness.mark()
            if await self.status() == status:
                return
            own_reply = 1
            while len(self.witness.messages) <= mark + own_reply:
                await self.witness.wait_any_message(since=mark + own_reply)

    async def wait_counting(self) -> None:
        """Wait until the guest is seen to count: it really runs."""
        first = await self.counter()
        while await self.counter() == first:
            pass  # each look is a round trip to QEMU, which lets the guest run meanwhile

    async def wait_exit(self) -> int:
        """Wait for QEMU's end and return its exit status, negative for a signal."""
        return await self._process.wait()

    async def _provoke(self, event: str, command: str) -> None:
        """Run a command of the human monitor and wait for an event, not for the reply.

        QEMU may end before it replies.
        """
        mark = self.witness.mark()
        await self.witness.send("human-monitor-command", {"command-line": command})
        await self.witness.wait_event(event, since=mark)

    async def _stop_proxy_with_process(self) -> None:
        await self._process.wait()
        self.proxy.stop_listening()


def _guest_arguments(guest: Guest | None, path: Path, *, firmware: bool) -> list[str]:
    if guest is None:
        return []
    if firmware:
        write_boot_sector(guest, path)
        return ["-drive", f"file={path},if=floppy,format=raw", "-boot", "a"]
    write_rom(guest, path)
    return ["-bios", str(path)]


def _monitor_arguments(name: str, where: str) -> list[str]:
    return ["-chardev", f"socket,id={name},{where}", "-mon", f"chardev={name},mode=control"]


async def _kill(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()


def _last_words(process: trio.Process, stderr: Path) -> str:
    return (
        f"QEMU {process.pid}, exit status {process.returncode}, wrote:"
        f" {stderr.read_text(errors='replace') or 'nothing'}"
    )
