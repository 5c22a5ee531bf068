"""The programs that a configuration has panicd run: whether they are there.

They are looked for when it starts, not when a guest has panicked.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from panicd.config.config import Config
from panicd.libvirt.virsh import PROGRAM as VIRSH

PACKAGES = {VIRSH: "libvirt-clients"}  # Debian's; Fedora's is libvirt-client


@dataclass(frozen=True, slots=True)
class MissingProgram:
    """A program that can't be run.

    Attributes:
        program: its name, or its path.
        wanted_by: the key of the configuration that asks for it.
        package: of Debian, that has it; empty where that is not known.
    """

    program: str
    wanted_by: str
    package: str

    def __str__(self) -> str:
        package = f" (Debian: {self.package})" if self.package else ""
        return f"{self.wanted_by}: {self.program} is not there, or no program{package}"


def missing_programs(config: Config) -> list[MissingProgram]:
    """Return what a configuration asks for and can't be run here, each once."""
    return [
        MissingProgram(program, wanted_by, PACKAGES.get(program, ""))
        for program, wanted_by in dict(_wanted(config)).items()
        if shutil.which(program) is None
    ]


def _wanted(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each program with the key that asks for it."""
    for policy in (*(rule.policy for rule in config.domains), config.defaults):
        if policy.relaunch is not None and policy.relaunch.command:
            yield policy.relaunch.command[0], "relaunch.command"
        elif policy.relaunch is not None and policy.relaunch.libvirt_uri:
            yield VIRSH, "relaunch.libvirt"
    if config.libvirt is not None:
        yield VIRSH, "libvirt"
    if config.notify.hook is not None:
        yield config.notify.hook.command[0], "notify.hook.command"
