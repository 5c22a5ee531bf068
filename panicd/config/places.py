"""Where panicd keeps its files by default."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Places(NamedTuple):
    """The default paths.

    Attributes:
        config_file: the configuration.
        runtime_directory: the sockets; gone after a reboot.
        state_directory: the journal, the incidents and the memory dumps.
    """

    config_file: Path
    runtime_directory: Path
    state_directory: Path

    @property
    def control_socket(self) -> Path:
        """Where the commands ask the daemon."""
        return self.runtime_directory / "control.sock"

    @classmethod
    def of(cls, euid: int, env: Mapping[str, str]) -> "Places":
        """Return the places of a user.

        Root has the system's (file-hierarchy(7)), everybody else those of the XDG Base Directory
        Specification, which says to ignore relative paths in its variables. What systemd sets for
        ``ConfigurationDirectory=``, ``RuntimeDirectory=`` and ``StateDirectory=`` comes first
        (systemd.exec(5)), so that a service without root has the system's places too.

        Args:
            euid: the effective user id.
            env: the environment variables.
        """
        if euid == 0:
            places = cls(
                Path("/etc/panicd/panicd.yaml"), Path("/run/panicd"), Path("/var/lib/panicd")
            )
        else:
            home = _directory(env, "HOME", Path("/"))
            config = _directory(env, "XDG_CONFIG_HOME", home / ".config")
            # The specification leaves the substitute to the program; pam_systemd(8) has this one.
            runtime = _directory(env, "XDG_RUNTIME_DIR", Path(f"/run/user/{euid}"))
            state = _directory(env, "XDG_STATE_HOME", home / ".local/state")
            places = cls(config / "panicd/panicd.yaml", runtime / "panicd", state / "panicd")
        config = _service_directory(env, "CONFIGURATION_DIRECTORY", places.config_file.parent)
        return cls(
            config / places.config_file.name,
            _service_directory(env, "RUNTIME_DIRECTORY", places.runtime_directory),
            _service_directory(env, "STATE_DIRECTORY", places.state_directory),
        )

    @classmethod
    def here(cls) -> "Places":
        """Return the places of this process."""
        return cls.of(os.geteuid(), os.environ)


def _directory(env: Mapping[str, str], variable: str, default: Path) -> Path:
    value = env.get(variable, "")
    return Path(value) if value.startswith("/") else default


def _service_directory(env: Mapping[str, str], variable: str, default: Path) -> Path:
    # systemd joins several directories with colons; panicd uses the first.
    value = env.get(variable, "").partition(":")[0]
    return Path(value) if value else default
