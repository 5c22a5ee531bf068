"""A daemon in a process of its own: the real program."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

import trio

from tests.parts.background import background
from tests.parts.daemon import stable
from tests.parts.daemon.observed import TIME_LIMIT, ObservedDaemon
from tests.parts.patience import fail_after

_RECEIVE_SIZE = 64 * 1024


class DaemonEndedError(Exception):
    """The daemon ended although nobody told it to."""


class Process(Protocol):
    """The part of a ``trio.Process`` that is used, however it was started."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    @property
    def stderr(self) -> trio.abc.ReceiveStream | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, sig: signal.Signals) -> None: ...


class RunningDaemon(ObservedDaemon):
    """The real program, in a process of its own. Made by :meth:`start` and ended with it.

    It is forked from one that has imported all of it; :class:`ExecutedDaemon` is not.

    It must leave as it should, without a traceback, and its journal must hold what its log told
    (after a :meth:`kill` the log may know more).

    Attributes:
        stray: Lines on its standard error that are no log: a crash's traceback.
    """

    def __init__(
        self, directory: Path, *arguments: Any, dry_run: bool = False, **keywords: Any
    ) -> None:
        """As :class:`ObservedDaemon`; ``dry_run``: with ``--dry-run``, at every start."""
        super().__init__(directory, *arguments, **keywords)
        self._options = ["--dry-run"] if dry_run else []
        self.stray: list[str] = []
        self._process: Process | None = None
        self._ready = False
        self._log_ended = trio.Event()
        self._killed = False
        self._end_expected = False
        self._nursery: trio.Nursery

    @classmethod
    @asynccontextmanager
    async def start(
        cls, directory: Path, *arguments: Any, time_limit: float = TIME_LIMIT, **keywords: Any
    ) -> AsyncIterator[Self]:
        """Start a daemon that is ready, and stop it in the end, if it still runs.

        Args:
            directory: As for :class:`ObservedDaemon`, and so are the others.
            arguments: These.
            time_limit: Seconds for everything inside.
            keywords: And these.
        """
        daemon = cls(directory, *arguments, **keywords)
        try:
            with fail_after(time_limit):
                async with background() as daemon._nursery:
                    await daemon.start_again()
                    yield daemon
                    if daemon.running:
                        await daemon.terminate()
        except BaseException as error:
            error.add_note(daemon.last_words())
            raise
        finally:
            daemon._reap()
            daemon._remove_runtime()
        if not daemon._killed:
            daemon._check_journal()

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it was started"
        return self._process.pid

    async def start_again(self) -> None:
        """Start it, with the state that its last run left, and wait until it says it is ready."""
        assert not self.running
        self._ready, self._end_expected, self._log_ended = False, False, trio.Event()
        self.began = len(self.log)
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            await manager.bind(str(path))
            self._process = await self._open_process(
                ["--config", str(self.config_file), "run", "--log-level", "debug", *self._options],
                {"NOTIFY_SOCKET": str(path)},
            )
            self._nursery.start_soon(self._read_log, self._process)
            while "READY=1" not in (await manager.recv(_RECEIVE_SIZE)).decode().splitlines():
                pass  # a status, perhaps; its end without being ready fails the test

    async def terminate(self) -> None:
        """Stop it by SIGTERM, and check that it stops without a complaint."""
        self._send(signal.SIGTERM)
        assert await self.wait_exit() == 0, "the daemon's exit status"
        assert not self.stray, "\n".join(self.stray)
        assert not [line for line in self.log if "exception" in line], "a traceback was logged"

    async def kill(self) -> None:
        """End it by SIGKILL, and wait for its end."""
        self._killed = True
        self._send(signal.SIGKILL)
        await self.wait_exit()

    async def wait_exit(self) -> int:
        """Wait for its end, and for the last of its log; returns its exit status."""
        self._end_expected = True
        assert self._process is not None, "it was started"
        status = await self._process.wait()
        await self._log_ended.wait()
        return status

    def hang_up(self) -> None:
        """Send it SIGHUP."""
        self._send(signal.SIGHUP)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it (SIGSTOP) for as long as the block runs; what it is sent meanwhile waits."""
        self._send(signal.SIGSTOP)
        try:
            yield
        finally:
            self._send(signal.SIGCONT)

    def last_words(self) -> str:
        """The last lines that it wrote, for a test that failed."""
        return "\n".join([super().last_words(), *self.stray])

    async def _open_process(self, arguments: list[str], environment: dict[str, str]) -> Process:
        return await stable.start(arguments, environment)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None, "it was started"
        self._process.send_signal(number)

    async def _read_log(self, process: Process) -> None:
        pending = b""
        assert process.stderr is not None
        async with process.stderr as stream:
            while data := await stream.receive_some():
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._take_line(line.decode())
        await process.wait()
        self._log_ended.set()
        if not self._end_expected:
            raise DaemonEndedError(f"by itself, exit status {process.returncode}")

    def _take_line(self, line: str) -> None:
        try:
            self._take(json.loads(line))
        except ValueError:
            self.stray.append(line)

    def _reap(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                process = os.pidfd_open(self._process.pid)
                self._process.send_signal(signal.SIGKILL)
                select.select([process], [], [])
                os.close(process)


class ExecutedDaemon(RunningDaemon):
    """A daemon that is started as people start it, so that its costs can be measured.

    Attributes:
        before: The command line's words before the program's.
    """

    before: Sequence[str] = ()

    async def _open_process(self, arguments: list[str], environment: dict[str, str]) -> Process:
        return await trio.lowlevel.open_process(
            [*self.before, sys.executable, "-m", "panicd", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
