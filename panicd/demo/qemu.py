"""A real QEMU, with one monitor for panicd and a second one to watch it from."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import trio

from panicd.demo.guests import COUNTER_ADDRESS, PVPANIC_PORT, Guest, write_rom
from panicd.demo.process import freeze
from panicd.demo.qmp import Message, QmpClient, QmpClosedError, qmp_over

QEMU: Final = "qemu-system-x86_64"

MAX_SOCKET_PATH: Final = 107
"""The longest path of a unix socket in bytes: ``sun_path`` less its final NUL, unix(7)."""

_KVM_TRIAL_SECONDS: Final = 5.0
_MEMORY: Final = "16M"


class QemuMissingError(Exception):
    """There is no QEMU on this machine."""


class QemuStartError(Exception):
    """QEMU ended before its monitors were ready; carries what it wrote."""


class SocketPathError(ValueError):
    """A path is too long for a unix socket."""


def find_qemu(name: str = QEMU) -> str:
    """The path of a QEMU.

    Args:
        name: Its name, looked for in the PATH, or its path.

    Raises:
        QemuMissingError: There is none.
    """
    binary = shutil.which(name)
    if binary is None:
        raise QemuMissingError(
            f"{name} is not installed: apt-get install --no-install-recommends qemu-system-x86"
            " (Fedora: dnf install qemu-system-x86-core)"
        )
    return binary


def usable_accelerator(binary: str) -> str:
    """``kvm`` where it really runs a guest, else ``tcg``.

    /dev/kvm alone proves little: it may be forbidden, or nested and stuck. So a guest is run that
    panics at once, in a QEMU whose exit status 0 says that it did: it exits on panic by default.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory(prefix="panicd-kvm-") as directory:
        rom = Path(directory, "rom")
        write_rom(Guest.PANIC_ONCE, rom)
        command = [*machine_arguments(binary, "kvm"), "-device", "pvpanic", "-bios", str(rom)]
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


def machine_arguments(binary: str, accelerator: str) -> list[str]:
    """The command line of a small machine without devices."""
    return [
        *(binary, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"pc,accel={accelerator}", "-m", _MEMORY),
    ]


def monitor_arguments(name: str, where: str) -> list[str]:
    """The arguments of a QMP monitor on a socket, ``where`` as in ``-chardev socket``."""
    return ["-chardev", f"socket,id={name},{where}", "-qmp", f"chardev:{name}"]


def check_socket_path(path: Path) -> None:
    """Refuse a path that no unix socket can have.

    Raises:
        SocketPathError: It is too long.
    """
    if len(bytes(path)) > MAX_SOCKET_PATH:
        raise SocketPathError(
            f"{path}: too long for a unix socket; take a directory with a short path ($TMPDIR)"
        )


class Watched:
    """A VM, seen from its second monitor.

    Attributes:
        witness: That monitor: commands, and every event since it was connected.
    """

    def __init__(self, witness: QmpClient) -> None:
        self.witness = witness

    @property
    def version(self) -> str:
        """QEMU's version, from its greeting."""
        numbers = self.witness.greeting["version"]["qemu"]
        return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"

    @property
    def events(self) -> list[Message]:
        """Every event since the start, in order."""
        return self.witness.events

    # -- doing

    async def start_guest(self) -> None:
        """Let the guest run."""
        await self.witness.execute("cont")

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

    async def _provoke(self, event: str, command: str) -> None:
        """Run a command of the human monitor and wait for an event, not for the reply.

        QEMU may end before it replies.
        """
        mark = self.witness.mark()
        await self.witness.send("human-monitor-command", {"command-line": command})
        await self.witness.wait_event(event, since=mark)


class Qemu(Watched):
    """A running QEMU. Made by :meth:`launch`, and killed and reaped when that ends.

    Attributes:
        name: The VM's name, ``-name``.
        uuid: Its UUID, ``-uuid``.
        socket: Where panicd finds its monitor.
        witness: Its second monitor, connected from the start.
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
        super().__init__(witness)
        self.name = name
        self.uuid = uuid
        self.socket = monitor
        self._process = process
        self._stderr = stderr

    @classmethod
    @asynccontextmanager
    async def launch(
        cls,
        machine: Sequence[str],
        *,
        name: str,
        uuid: str,
        monitor: Path,
        monitor_address: str,
        stderr: Path,
    ) -> AsyncIterator[Self]:
        """Start a QEMU whose guest waits for a ``cont`` from the witness: nothing goes unseen.

        Args:
            machine: The command line, without name, UUID and monitors.
            name: The VM's name.
            uuid: Its UUID.
            monitor: Where panicd finds its monitor.
            monitor_address: The same for QEMU, as in ``-chardev socket``.
            stderr: The file that takes what QEMU writes.

        Raises:
            QemuStartError: QEMU ended at once.
        """
        async with AsyncExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="panicd-"))
            listener = stack.enter_context(_listen(Path(directory, "witness")))
            arguments = [
                *machine,
                *("-name", name.replace(",", ",,"), "-uuid", uuid),
                # It connects to the witness: those before 2.12 take no file descriptor (fd=).
                *monitor_arguments("witness", f"path={directory}/witness"),
                *monitor_arguments("monitor", monitor_address),
                "-S",
            ]
            with stderr.open("wb") as stderr_file:
                process = await trio.lowlevel.open_process(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr_file,
                    stderr=stderr_file,
                )
            stack.push_async_callback(_kill, process)
            try:
                own = await _accept(listener, process)
                witness = await stack.enter_async_context(qmp_over(own))
            except QmpClosedError as error:
                await process.wait()
                raise QemuStartError(_last_words(process, stderr)) from error
            try:
                yield cls(
                    name=name,
                    uuid=uuid,
                    monitor=monitor,
                    process=process,
                    witness=witness,
                    stderr=stderr,
                )
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

    def kill(self) -> None:
        """SIGKILL: a QEMU that dies without a word and leaves its socket's file behind."""
        self._process.kill()

    async def freeze(self) -> None:
        """SIGSTOP: a QEMU that hangs, and answers nothing but SIGKILL."""
        await freeze(self._process)

    async def wait_exit(self) -> int:
        """Wait for QEMU's end and return its exit status, negative for a signal."""
        return await self._process.wait()


def _listen(path: Path) -> trio.socket.SocketType:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(os.fspath(path))
    listener.listen()
    return trio.socket.from_stdlib_socket(listener)


async def _accept(
    listener: trio.socket.SocketType, process: trio.Process
) -> trio.socket.SocketType:
    """Take a QEMU's connection.

    Raises:
        QmpClosedError: It ended before it connected.
    """
    accepted: list[trio.socket.SocketType] = []
    async with trio.open_nursery() as nursery:

        async def until_it_ends() -> None:
            await process.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_it_ends)
        accepted.append((await listener.accept())[0])
        nursery.cancel_scope.cancel()
    if not accepted:
        raise QmpClosedError
    return accepted[0]


async def _kill(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()


def _last_words(process: trio.Process, stderr: Path) -> str:
    return (
        f"QEMU {process.pid}, exit status {process.returncode}, wrote:"
        f" {stderr.read_text(errors='replace') or 'nothing'}"
    )
