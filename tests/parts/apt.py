"""Debian's packages, of this machine's architecture or another one; nothing gets installed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_SECONDS = 120.0


class MissingError(Exception):
    """A test's part is not available here; the message says which, and why."""


@dataclass(frozen=True)
class Apt:
    """Where packages come from.

    Attributes:
        options: For apt-get and apt-cache.
        lists: Where lists of its own are, filled when they are needed; None: the machine's.
    """

    options: tuple[str, ...] = ()
    lists: Path | None = None

    @classmethod
    def of(cls, architecture: str, directory: Path) -> Self:
        """Another architecture's packages, with lists and caches of its own in a directory."""
        state, cache = directory / "state", directory / "cache"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        status = directory / "status"
        status.touch()
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures::": architecture,
            "APT::Sandbox::User": "root",
            "Dir::State": state,
            "Dir::State::status": status,
            "Dir::Cache": cache,
        }
        options = (word for name, value in settings.items() for word in ("-o", f"{name}={value}"))
        return cls(tuple(options), state / "lists")

    def depends(self, package: str) -> list[str]:
        """The packages that one depends on.

        Raises:
            MissingError: Apt does not know it.
        """
        self._fill_lists()
        said = run("/", "apt-cache", *self.options, "depends", "--important", package)
        lines = [line.split() for line in said.splitlines()]
        return [words[1] for words in lines if words[0] == "Depends:"]

    def unpack(self, target: Path, *packages: str) -> None:
        """Download packages, and unpack them into a directory.

        Raises:
            MissingError: They can't be had.
        """
        self._fill_lists()
        archives = target / "archives"
        archives.mkdir(parents=True)
        run(archives, "apt-get", *self.options, "download", *packages)
        for archive in archives.glob("*.deb"):
            run(archives, "dpkg-deb", "-x", archive.name, str(target))
        shutil.rmtree(archives)

    def _fill_lists(self) -> None:
        if self.lists is not None and next(self.lists.glob("*_Packages*"), None) is None:
            run("/", "apt-get", *self.options, "update")


def need(*tools: str) -> None:
    """Check that programs exist.

    Raises:
        MissingError: One does not.
    """
    for tool in tools:
        if shutil.which(tool) is None:
            raise MissingError(f"no {tool}")


def run(directory: str | Path, *command: str) -> str:
    """What a command prints.

    Raises:
        MissingError: It fails.
    """
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"{' '.join(command)}: no end in sight") from error
    except (subprocess.CalledProcessError, OSError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise MissingError(f"{' '.join(command)}: {said}") from error
    return done.stdout
