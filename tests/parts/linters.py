"""The linters, run while other tests wait for something: they take a processor, and no test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from tests.parts.patience import patience

ROOT: Final = Path(__file__).parents[2]

LINTERS: Final = (
    ("ruff", "check", "panicd", "tests"),
    ("ruff", "format", "--check", "panicd", "tests"),
    ("mypy",),
)

_GIVES_WAY: Final = 5
"""A linter's nice value: a test that wants the processor gets most of it."""


class Linter:
    """A linter that runs; begun when it is made."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as it is asked
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _GIVES_WAY)

    def wait(self) -> tuple[int, str]:
        """Wait for its end; return its exit status, and what it said."""
        status = self._process.wait(patience(300))
        self._said.seek(0)
        return status, self._said.read()


@cache
def linter(arguments: tuple[str, ...]) -> Linter:
    """Return the run of a linter, which begins when it is first asked for."""
    return Linter(arguments)
