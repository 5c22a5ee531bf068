"""panicd itself, as a process of its own: what it logs, what it answers, what an operator sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import trio

from panicd.demo.background import background
from panicd.demo.process import freeze
from panicd.host.sdnotify import OF_ONE_PROCESS
from panicd.service.control_client import call

LogLine = dict[str, Any]

_ANSWER_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0
_RECEIVE_SIZE: Final = 64 * 1024
_LAST_WORDS: Final = 15  # lines

# A daemon must not speak for the service that the demonstration may run in, nor a command talk to
# another daemon.
_NOT_INHERITED: Final = frozenset({*OF_ONE_PROCESS, "PANICD_SOCKET"})


class DaemonEndedError(Exception):
    """The daemon ended although nobody told it to; has what it logged last."""


class DaemonProcess:
    """A running ``panicd run``. Made by :meth:`start`, and stopped when that ends.

    Attributes:
        log: Every line that it has logged.
        last_words: The last lines that it wrote, as they are.
    """

    def __init__(self, config_file: Path, control_socket: Path, process: trio.Process) -> None:
        self.log: list[LogLine] = []
        self._config_file = config_file
        self._control_socket = control_socket
        self._process = process
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._log_ended = False
        self._changed = trio.lowlevel.ParkingLot()

    @classmethod
    @asynccontextmanager
    async def start(
        cls, config_file: Path, control_socket: Path, log_file: Path
    ) -> AsyncIterator[Self]:
        """Start a daemon.

        Args:
            config_file: Its configuration.
            control_socket: Where that has it answer.
            log_file: Where its log is kept.
        """
        process = await trio.lowlevel.open_process(
            _command(config_file, "run"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
        daemon = cls(config_file, control_socket, process)
        async with background() as nursery:
            nursery.start_soon(daemon._read_log, log_file)
            try:
                yield daemon
            finally:
                await daemon._stop()

    async def wait_logged(self, wanted: Callable[[LogLine], bool]) -> LogLine:
        """Wait until such a line has been logged, and return the first.

        Raises:
            DaemonEndedError: None will be.
        """
        position = 0
        while True:
            for line in self.log[position:]:
                if wanted(line):
                    return line
            position = len(self.log)
            if self._log_ended:
                raise DaemonEndedError("\n".join(["panicd ended; it wrote:", *self.last_words]))
            await self._changed.park()

    async def wait_connected(self, name: str) -> None:
        """Wait until it is connected to a domain.

        Raises:
            DaemonEndedError: It never will be.
        """
        await self.wait_logged(
            lambda line: (line["event"], line.get("domain")) == ("domain connected", name)
        )

    async def wait_page(self) -> str:
        """Wait until its page is served, and return the address.

        Raises:
            DaemonEndedError: It never will be.
        """
        line = await self.wait_logged(lambda line: bool(line["event"] == "metrics are served"))
        return f"http://{line['host']}:{line['port']}/"

    async def ask(self, command: str, **arguments: object) -> Any:
        """Return the daemon's answer on its control socket.

        Raises:
            DaemonUnreachableError: It gives no answer.
            RefusedError: It refuses.
        """
        return await trio.to_thread.run_sync(
            partial(call, self._control_socket, command, arguments, _ANSWER_SECONDS),
            abandon_on_cancel=True,
        )

    async def type(self, *arguments: str, width: int, color: bool) -> str:
        """Return what a command prints to an operator who types it.

        Args:
            arguments: What is typed after ``panicd``.
            width: Of the operator's terminal.
            color: Whether that has colours.
        """
        size = {"COLUMNS": str(width), "LINES": "1000"}
        environment = {**_environment(), **size, "FORCE_COLOR": "1"}  # it prints as on a terminal
        environment |= {} if color else {"NO_COLOR": "1"}
        finished = await trio.run_process(
            _command(self._config_file, *arguments),
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            env=environment,
        )
        return finished.stdout.decode(errors="replace")

    async def freeze(self) -> None:
        """Freeze the daemon; what its monitors send meanwhile waits for it."""
        await freeze(self._process)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def _read_log(self, log_file: Path) -> None:
        assert self._process.stderr is not None
        pending = b""
        with log_file.open("wb") as kept:
            async for chunk in self._process.stderr:
                kept.write(chunk)
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._take_line(line.decode(errors="replace"))
                self._changed.unpark_all()
        self._log_ended = True
        self._changed.unpark_all()

    def _take_line(self, line: str) -> None:
        self.last_words.append(line)
        if line.startswith("{"):  # other lines are a crash's traceback, or a mistake's message
            self.log.append(json.loads(line))

    async def _stop(self) -> None:
        with trio.CancelScope(shield=True):
            self.thaw()
            self._process.terminate()
            with trio.move_on_after(_STOP_SECONDS):
                await self._process.wait()
                return
            self._process.kill()
            await self._process.wait()


def _command(config_file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "panicd", "--config", str(config_file), *arguments]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
