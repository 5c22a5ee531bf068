"""Lists the QEMUs that run on this host, with or without a monitor for panicd.

Source: proc(5). A process that can't be read, or has ended meanwhile, is left out.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from panicd.qemu.process import MAX_COMMAND_LINE, is_qemu_program
from panicd.rules.command_line import (
    GivenMonitor,
    given_monitors,
    guest_name,
    options,
    properties,
)
from panicd.rules.libvirt import LIBVIRTS_MONITOR

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class RunningQemu:
    """A process that runs a VM.

    Attributes:
        pid: its number.
        name: the VM's name, from ``-name``; empty where it has none.
        monitor: a QMP monitor on its command line, with its whole path; None where it has none.
        by_libvirt: libvirt started it.
    """

    pid: int
    name: str
    monitor: GivenMonitor | None
    by_libvirt: bool


def running_qemus(proc: Path = PROC) -> list[RunningQemu]:
    """Return the processes that run a VM, in the order of their numbers."""
    found = []
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            with (directory / "cmdline").open("rb") as file:
                words = file.read(MAX_COMMAND_LINE).rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        arguments = [word.decode(errors="surrogateescape") for word in words]
        # libvirt starts a QEMU without a machine to ask what it can do.
        if is_qemu_program(Path(arguments[0]).name) and not _without_machine(arguments):
            qemu = RunningQemu(
                int(directory.name),
                guest_name(arguments),
                _monitor(directory, arguments),
                by_libvirt=_by_libvirt(arguments),
            )
            found.append(qemu)
    return sorted(found, key=lambda each: each.pid)


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
