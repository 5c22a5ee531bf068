"""Starts gated daemons in some milliseconds each, by forking a process that has imported all of it.

Most of what a daemon's start costs is the import of its libraries: two starts a case make that
three quarters of the whole matrix. What is forked is the same program with the same arguments.

::

    stable ── fork ──► keeper ── fork ──► daemon       one of each a start
                         └─ tells the daemon's process number, and its exit status

Run as ``python -m tests.kill.stable SOCKET``.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import trio

_PROGRAM = "tests.kill.stable"
_RECEIVE_SIZE = 64 * 1024


class ForkedProcess:
    """A daemon out of the stable: what the tests make use of of a ``trio.Process``.

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
        with suppress(ProcessLookupError):  # it has ended, and that is not yet known here
            os.kill(self.pid, sig)


class Stable:
    """A running stable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """Run one, ready to fork."""
        with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
            path = Path(directory, "stable")
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", _PROGRAM, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            try:
                assert process.stdout is not None
                await process.stdout.receive_some()  # it says when it is ready
                yield cls(path)
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def start(self, arguments: list[str], environment: dict[str, str]) -> ForkedProcess:
        """Start ``panicd`` with these arguments, and these variables beside its environment."""
        reading, writing = os.pipe()
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(str(self._path))
            request = json.dumps([arguments, environment]).encode()
            fds = array.array("i", [writing])
            await sock.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        finally:
            os.close(writing)
        keeper = trio.SocketStream(sock)
        pid = int(await _receive_line(keeper))
        return ForkedProcess(pid, keeper, trio.lowlevel.FdStream(reading))


async def _receive_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some(1)
    return line


def _serve(path: str) -> None:
    """Fork for everyone who asks, until killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need not be waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(socket.SOMAXCONN)
        print("ready", flush=True)
        while True:
            client, _address = listener.accept()
            with client:
                if os.fork() == 0:
                    listener.close()
                    _keep(client)


def _keep(client: socket.socket) -> None:
    """Fork a daemon, and tell its process number and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, (stderr,), _flags, _address = socket.recv_fds(client, _RECEIVE_SIZE, 1)
    arguments, environment = json.loads(request)
    pid = os.fork()
    if pid == 0:
        client.close()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.environ.update(environment)
        gated.run(arguments)
    os.close(stderr)
    client.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # the test is gone
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    from tests.kill import gated

    _serve(sys.argv[1])
