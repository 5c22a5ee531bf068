"""Lists the QEMUs that run on this host, with or without a monitor for panicd.

Source: proc(5). A process that can't be read, or has ended meanwhile, is left out; one whose reader
hangs is listed without what it was started with.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import trio

from panicd.qemu.process import executed_by, is_qemu_program
from panicd.qemu.process_arguments import ArgumentsHangError, read_arguments
from panicd.rules.command_line import (
    GivenMonitor,
    given_monitors,
    guest_name,
    options,
    properties,
)
from panicd.rules.libvirt import LIBVIRTS_MONITOR

AT_ONCE: Final = 16  # processes, before others have their turn


@dataclass(frozen=True, slots=True)
class RunningQemu:
    """A process that runs a VM.

    Attributes:
        pid: its number.
        name: the VM's name, from ``-name``; empty where it has none.
        monitor: a QMP monitor on its command line, with its whole path; None where it has none.
        by_libvirt: libvirt started it.
        hangs: what it was started with can't be read.
    """

    pid: int
    name: str
    monitor: GivenMonitor | None
    by_libvirt: bool
    hangs: bool = False


async def running_qemus(but: Collection[int]) -> list[RunningQemu]:
    """Return the processes that run a VM, in the order of their numbers, but some.

    Raises:
        OSError: the host has no file descriptor left.
    """
    found: list[RunningQemu] = []

    async def look(pid: int) -> None:
        try:
            text = await read_arguments(pid)
        except (ArgumentsHangError, OSError):  # OSError: the host lacks what that needs
            found.append(RunningQemu(pid, "", None, by_libvirt=False, hangs=True))
        else:
            found.extend(_qemu(pid, text or b""))

    names = os.listdir("/proc")  # noqa: PTH208 - names only
    async with trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            if name.isdecimal() and int(name) not in but and _may_be_qemu(int(name)):
                nursery.start_soon(look, int(name))
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
    return sorted(found, key=lambda each: each.pid)


def _may_be_qemu(pid: int) -> bool:
    """Tell whether a process may run a VM, by what nobody can make hang."""
    try:
        return is_qemu_program(executed_by(pid))
    except PermissionError:
        return True
    except OSError:  # of the kernel, or it has ended
        return False


def _qemu(pid: int, text: bytes) -> list[RunningQemu]:
    """Return the process if it runs a VM."""
    arguments = [
        word.decode(errors="surrogateescape") for word in text.removesuffix(b"\0").split(b"\0")
    ]
    # libvirt starts a QEMU without a machine to ask what it can do.
    if not is_qemu_program(Path(arguments[0]).name) or _without_machine(arguments):
        return []
    monitor, by_libvirt = _monitor(Path(f"/proc/{pid}"), arguments), _by_libvirt(arguments)
    return [RunningQemu(pid, guest_name(arguments), monitor, by_libvirt)]


def _monitor(directory: Path, arguments: list[str]) -> GivenMonitor | None:
    """Return a QMP monitor that is not libvirt's own: the first that listens, or else the first."""
    given = [m for name, m in given_monitors(arguments).items() if name != LIBVIRTS_MONITOR]
    if not given:
        return None
    monitor = min(given, key=lambda each: not each.listens)
    try:
        here = (directory / "cwd").readlink()
    except OSError:
        return monitor
    return replace(monitor, path=str(here / monitor.path))


def _by_libvirt(arguments: list[str]) -> bool:
    devices = (properties(value) for option, value in options(arguments) if option == "chardev")
    return any(device.get("id") == LIBVIRTS_MONITOR for device in devices)


def _without_machine(arguments: list[str]) -> bool:
    return any(
        option.lstrip("-") in {"machine", "M"} and value.split(",")[0] == "none"
        for option, value in pairwise(arguments)
    )
