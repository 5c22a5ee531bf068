"""Where the demonstration takes place: its QEMUs and panicd's configuration, in one directory."""

from __future__ import annotations

import glob
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from panicd.demo.guests import write_rom
from panicd.demo.process import kill_by_pid_file
from panicd.demo.proofs import COREDUMPS, RELAUNCHED_WITNESS
from panicd.demo.qemu import Qemu, check_socket_path, machine_arguments, monitor_arguments
from panicd.demo.scene import Case, Scene, relaunched_pid_file

_NAMESPACE = uuid.UUID("6b0f7c0e-53a1-4f6c-9a55-2f1d0c8e7b42")


@dataclass(frozen=True)
class Lab:
    """A directory with all that the demonstration makes.

    Attributes:
        directory: The directory.
        qemu: The path of QEMU.
        accelerator: What runs the guests, ``kvm`` or ``tcg``.
    """

    directory: Path
    qemu: str
    accelerator: str

    @property
    def config_file(self) -> Path:
        """The configuration of panicd."""
        return self.directory / "panicd.yaml"

    @property
    def control_socket(self) -> Path:
        """Where panicd answers its commands."""
        return self.directory / "control.sock"

    @property
    def log_file(self) -> Path:
        """The log of panicd."""
        return self.directory / "panicd.log"

    @asynccontextmanager
    async def start(self, case: Case) -> AsyncIterator[Scene]:
        """Start a case's VM; its guest waits to be let run. It is gone in the end.

        Raises:
            QemuStartError: QEMU ended at once.
            SocketPathError: The directory's path is too long for sockets.
        """
        witness = self._witness(case)
        check_socket_path(witness)
        write_rom(case.guest, self._rom(case))
        try:
            async with Qemu.launch(
                self._machine(case),
                name=case.name,
                uuid=_uuid(case),
                monitor=self._monitor(case),
                monitor_address=_listening(self._monitor(case)),
                stderr=self.directory / f"{case.name}.stderr",
            ) as vm:
                yield Scene(case, vm, self.directory)
        finally:
            await kill_by_pid_file(
                relaunched_pid_file(self.directory, case.name), str(self.directory)
            )

    def write_config(self, cases: Iterable[Case]) -> None:
        """Write panicd's configuration, with a rule for each case."""
        config = {
            "monitors": [{"glob": f"{glob.escape(str(self.directory))}/*.qmp"}],
            "metrics": {"listen": "127.0.0.1:0"},
            "state_directory": str(self.directory / "state"),
            "control_socket": str(self.control_socket),
            "storm": "off",  # so many panics at once are the demonstration's own doing
            "defaults": {
                "evidence": {"budget": "0s"},  # a boot sector has no words, and no screen here
                "coredump": {"directory": str(self.directory / COREDUMPS), "min_free": "1MiB"},
            },
            "domains": [{"match": case.name, **self._rule(case)} for case in cases],
        }
        self.config_file.write_text(yaml.safe_dump(config, sort_keys=False))

    def _rule(self, case: Case) -> dict[str, object]:
        if not case.relaunch:
            return dict(case.rule)
        command = [
            *self._machine(case),
            *("-name", case.name, "-uuid", _uuid(case)),
            *monitor_arguments("witness", _listening(self._witness(case))),
            *monitor_arguments("monitor", _listening(self._monitor(case))),
            *("-daemonize", "-pidfile", str(relaunched_pid_file(self.directory, case.name))),
        ]
        return {**case.rule, "relaunch": {"command": command, "timeout": "10s"}}

    def _machine(self, case: Case) -> list[str]:
        return [
            *machine_arguments(self.qemu, self.accelerator),
            *("-bios", str(self._rom(case)), "-device", "pvpanic", *case.qemu),
            *(("-serial", f"file:{self._console(case)}") if case.has_console else ()),
        ]

    def _rom(self, case: Case) -> Path:
        return self.directory / f"{case.name}.rom"

    def _console(self, case: Case) -> Path:
        return self.directory / f"{case.name}.console"

    def _monitor(self, case: Case) -> Path:
        return self.directory / f"{case.name}.qmp"

    def _witness(self, case: Case) -> Path:
        return self.directory / f"{case.name}{RELAUNCHED_WITNESS}"


def _uuid(case: Case) -> str:
    return str(uuid.uuid5(_NAMESPACE, case.name))


def _listening(path: Path) -> str:
    return f"path={path},server=on,wait=off"
