"""A real QEMU as tests want it: the demonstration's, with a proxy and other ways to be started."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import uuid as uuid_module
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

from panicd.demo.background import background
from panicd.demo.guests import Guest, write_boot_sector, write_rom
from panicd.demo.qemu import (
    QEMU,
    Qemu,
    QemuMissingError,
    QemuStartError,
    check_socket_path,
    find_qemu,
    machine_arguments,
    usable_accelerator,
)
from tests.parts.machines import Machine
from tests.parts.proxy import RecordingProxy

__all__ = [
    "QemuMissingError",
    "QemuStartError",
    "RealQemu",
    "accelerator",
    "qemu_binary",
    "qemu_version",
]


def qemu_binary() -> str:
    """The QEMU to test with: ``$PANICD_TEST_QEMU``, else qemu-system-x86_64 from the PATH.

    Raises:
        QemuMissingError: There is none.
    """
    return find_qemu(os.environ.get("PANICD_TEST_QEMU", QEMU))


@functools.cache
def qemu_version() -> tuple[int, int, int]:
    """The version of the QEMU to test with, as it says itself."""
    said = subprocess.run([qemu_binary(), "--version"], capture_output=True, text=True, check=True)
    numbers = re.search(r"version (\d+)\.(\d+)\.(\d+)", said.stdout)
    assert numbers is not None, said.stdout
    return int(numbers[1]), int(numbers[2]), int(numbers[3])


@functools.cache
def accelerator() -> str:
    """``kvm`` where it really runs a guest, else ``tcg``; ``$PANICD_TEST_ACCEL`` overrules."""
    return os.environ.get("PANICD_TEST_ACCEL") or usable_accelerator(qemu_binary())


@functools.cache
def _redials(binary: str) -> str:
    """How a QEMU is told to dial in again each second: it was renamed in 9.2."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found is not None, said
    return "reconnect-ms=1000" if (int(found[1]), int(found[2])) >= (9, 2) else "reconnect=1"


class RealQemu(Qemu):
    """A running QEMU. Made by :meth:`start`, and killed and reaped when that ends.

    Attributes:
        socket: Where panicd finds its monitor (the proxy's socket, if there is one). With ``dial``
            nobody listens there.
        proxy: The proxy before the monitor, with ``proxied=True``.
    """

    _proxy: RecordingProxy | None = None

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *,
        guest: Guest | None = Guest.IDLE,
        firmware: bool = False,
        devices: Sequence[str] = ("pvpanic",),
        machine: Machine | None = None,
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
            machine: What it is instead of a PC, with that one's guest.
            name: The VM's name and the stem of its socket.
            uuid: Its UUID; None: a random one.
            paused: Leave the guest waiting for a ``cont``, as ``-S`` does.
            dial: Dial in to this listening socket, each second, instead of listening.
            proxied: Put a :class:`RecordingProxy` between panicd and the monitor.
            accel: ``kvm`` or ``tcg``; None: see :func:`accelerator`.
            extra: Further arguments.

        Raises:
            QemuMissingError: There is no QEMU on this machine.
            QemuStartError: QEMU ended at once.
            ValueError: A socket's path would be too long.
        """
        public, private = directory / f"{name}.qmp", directory / f"{name}.behind-proxy"
        check_socket_path(private)  # the longer one
        rom = directory / f"{name}.guest"
        if machine is None:
            accel = accel or ("tcg" if firmware else accelerator())
            base = [
                *machine_arguments(qemu_binary(), accel),
                *_guest_arguments(guest, rom, firmware=firmware),
            ]
        else:
            base = machine.arguments(find_qemu(machine.qemu), rom)
        arguments = [
            *base,
            *(argument for device in devices for argument in ("-device", device)),
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
            vm = await stack.enter_async_context(
                cls.launch(
                    arguments,
                    name=name,
                    uuid=uuid or str(uuid_module.uuid4()),
                    monitor=public,
                    monitor_address=(
                        f"path={private if proxied else dial},{_redials(qemu_binary())}"
                        if dial
                        else f"path={private if proxied else public},server=on,wait=off"
                    ),
                    stderr=directory / f"{name}.stderr",
                )
            )
            if proxy is not None:
                vm._proxy = proxy
                nursery = await stack.enter_async_context(background())
                nursery.start_soon(vm._stop_proxy_with_process)
            if not paused:
                await vm.start_guest()
            yield vm

    @property
    def proxy(self) -> RecordingProxy:
        """The proxy before the monitor under test; only with ``proxied=True``."""
        assert self._proxy is not None, "start it with proxied=True"
        return self._proxy

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
