"""Whether the programs that a configuration runs exist, and whatever starts VMs for it.

panicd looks for them when it starts, not when a guest has panicked.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from panicd.config.config import Config
from panicd.host.systemd import bus_that_is_missing
from panicd.rules.libvirt_place import find_place
from panicd.rules.settings import Policy


@dataclass(frozen=True, slots=True)
class MissingProgram:
    """A program that can't be run, or a missing socket of one.

    Attributes:
        program: its name, or its path; for a socket all paths that it may have.
        wanted_by: the key of the configuration that needs it.
        package: of Debian, that has it; empty if that is not known.
    """

    program: str
    wanted_by: str
    package: str = ""

    def __str__(self) -> str:
        package = f" (Debian: {self.package})" if self.package else ""
        return f"{self.wanted_by}: {self.program} is missing or unusable{package}"


def missing_programs(config: Config) -> list[MissingProgram]:
    """Return what a configuration needs and can't run here, each once."""
    missing = [
        MissingProgram(program, wanted_by)
        for program, wanted_by in dict(_wanted(config)).items()
        if shutil.which(program) is None
    ]
    relaunches = [p.relaunch for p in _policies(config) if p.relaunch is not None]
    if any(relaunch.unit for relaunch in relaunches) and (bus := bus_that_is_missing()):
        missing.append(MissingProgram(bus, "relaunch.unit", "dbus"))
    for uri in {relaunch.libvirt_uri: None for relaunch in relaunches if relaunch.libvirt_uri}:
        sockets = find_place(uri, os.environ).sockets
        if not any(Path(socket).is_socket() for socket in sockets):
            daemon = MissingProgram(" or ".join(sockets), "relaunch.libvirt", "libvirt-daemon")
            missing.append(daemon)
    return missing


def _policies(config: Config) -> Iterator[Policy]:
    yield from (rule.policy for rule in config.domains)
    yield config.defaults


def _wanted(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each program with the key that needs it."""
    for policy in _policies(config):
        if policy.relaunch is not None and policy.relaunch.command:
            yield policy.relaunch.command[0], "relaunch.command"
    if config.notify.hook is not None:
        yield config.notify.hook.command[0], "notify.hook.command"
