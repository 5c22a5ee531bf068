"""Run panicd, and write down each turn of its event loop that took long, and whose step it was.

    python -m tests.bench.turns FILE ARGUMENTS...

A turn begins when trio returns from waiting for something to happen, and ends when it waits again;
meanwhile nobody else is responded to. Each that takes ``LONG`` or longer is a line in FILE: JSON
with when it ended, how long it took and how much of that the thread had a processor (``cpu``), how
long Python collected cycles (``gc``), and the longest step of a task in it.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import trio

from panicd.cli import main

LONG = 0.005
"""Seconds of a turn that is written down."""


class Turns(trio.abc.Instrument):
    """Times the turns of trio's loop."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began = self._step_began = self._collect_began = time.perf_counter()
        self._used = 0.0
        self._longest, self._whose, self._collected = 0.0, "", 0.0
        gc.callbacks.append(self._collects)

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's
        """A turn begins."""
        self._began, self._used = time.perf_counter(), time.thread_time()
        self._longest, self._whose, self._collected = 0.0, "", 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - trio's
        """A task begins with a step."""
        self._step_began = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """It is done with it."""
        took = time.perf_counter() - self._step_began
        if took > self._longest:
            self._longest, self._whose = took, task.name

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's
        """A turn ends."""
        took = time.perf_counter() - self._began
        if took >= LONG:
            line = {
                "at": time.time(),
                "took": took,
                "cpu": time.thread_time() - self._used,
                "gc": self._collected,
                "longest": self._longest,
                "of": self._whose,
            }
            self._file.write(json.dumps(line) + "\n")

    def _collects(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002 - Python's
        if phase == "start":
            self._collect_began = time.perf_counter()
        else:
            self._collected += time.perf_counter() - self._collect_began


def observe(path: Path) -> None:
    """Have trio's loop observed in whatever this process runs from here on."""
    file = path.open("w", buffering=1)
    observed: Any = functools.partial(trio.run, instruments=[Turns(file)])
    trio.run = observed


if __name__ == "__main__":
    observe(Path(sys.argv[1]))
    sys.argv = ["panicd", *sys.argv[2:]]
    main(prog_name="panicd")
