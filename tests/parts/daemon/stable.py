"""Starts daemons in some milliseconds each, by forking a process that has imported all of it.

Most of what a daemon's start costs is the import of its libraries: with some hundred starts in the
suite that was a third of its time. What is forked runs the same function with the same arguments,
environment and working directory as a process of its own would.

::

    stable ── fork ──► keeper ── fork ──► daemon       one of each a start
                         └─ tells the daemon's process number, and its exit status

There is one stable, made when the first daemon is wanted; it ends with the tests' process. Its
standard input is its socket.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

import trio

PROGRAM = "panicd.cli:main"
_RECEIVE_SIZE = 256 * 1024


class ForkedProcess:
    """A daemon from the stable: the part of a ``trio.Process`` that tests use.

    Attributes:
        pid: Its process number.
        returncode: Its exit status, negative for a signal; None while it runs.
        stderr: What it writes there.
    """

    def __init__(self, pid: int, keeper: trio.SocketStream, stderr: trio.abc.ReceiveStream) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stderr = stderr
        self._keeper = keeper
        self._waiting = trio.Lock()

    async def wait(self) -> int:
        """Wait for its end and return its exit status."""
        async with self._waiting:
            if self.returncode is None:
                self.returncode = int(await _receive_line(self._keeper))
                await self._keeper.aclose()
        return self.returncode

    def send_signal(self, sig: signal.Signals) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):  # it has ended, but this does not know it yet
            os.kill(self.pid, sig)


async def start(
    arguments: list[str], environment: dict[str, str], program: str = PROGRAM
) -> ForkedProcess:
    """Start a daemon.

    Args:
        arguments: The program's.
        environment: What it has beside the present one.
        program: The function that is run with the arguments, as ``module:name``.
    """
    whole = {**os.environ, **environment}
    request = json.dumps([program, arguments, whole, str(Path.cwd())]).encode()
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    try:
        fds = array.array("i", [writing, theirs.fileno()])
        _stable().sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    finally:
        os.close(writing)
        theirs.close()
    keeper = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    pid = int(await _receive_line(keeper))
    return ForkedProcess(pid, keeper, trio.lowlevel.FdStream(reading))


@cache
def _stable() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=theirs.fileno(),
        )
    return ours


async def _receive_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        received = await stream.receive_some(1)
        assert received, "the stable has ended"
        line += received
    return line


def serve() -> None:
    """Fork for everyone who asks, until nobody can ask any more."""
    importlib.import_module("panicd.cli.running")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need not be waited for
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while True:
        request, fds, _flags, _address = socket.recv_fds(requests, _RECEIVE_SIZE, 2)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _keep(request, *fds)
        for fd in fds:
            os.close(fd)


def _keep(request: bytes, stderr: int, test: int) -> NoReturn:
    """Fork a daemon, and report its process number and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(test)
        os.dup2(stderr, 2)
        os.close(stderr)
        _run(*json.loads(request))
    os.close(stderr)
    with socket.socket(fileno=test) as told:
        told.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):  # the test is gone
            told.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(program: str, arguments: list[str], environment: dict[str, str], directory: str) -> None:
    """Become what was asked for; this ends the process."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    module, _, name = program.partition(":")
    getattr(importlib.import_module(module), name)(arguments)
