"""The QEMUs that run on this host, whether panicd has a monitor of theirs or not.

Source: proc(5). What is not readable, or has ended meanwhile, is passed over.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from panicd.qemu.process import MAX_COMMAND_LINE, is_qemu_program
from panicd.rules.command_line import guest_name

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class RunningQemu:
    """A process that runs a VM.

    Attributes:
        pid: its number.
        name: the VM's, from ``-name``; empty where it has none.
    """

    pid: int
    name: str


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
        # libvirt asks what a QEMU can do by starting one without a machine.
        if is_qemu_program(Path(arguments[0]).name) and not _without_machine(arguments):
            found.append(RunningQemu(int(directory.name), guest_name(arguments)))
    return sorted(found, key=lambda each: each.pid)


def _without_machine(arguments: list[str]) -> bool:
    return any(
        option.lstrip("-") in {"machine", "M"} and value.split(",")[0] == "none"
        for option, value in pairwise(arguments)
    )
