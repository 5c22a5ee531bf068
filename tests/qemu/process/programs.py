"""Programs that hold the other end of a monitor."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.parts.nobody import NOBODY
from tests.parts.patience import patience

LIMIT = 20  # seconds a test may take before it counts as hung

# A program that holds the other end of each connection until it is killed. Its arguments: the
# socket, what it does before it listens, and what it does then.
SERVER = """
import os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
exec(sys.argv[2])
server.listen()
print("listening", flush=True)
exec(sys.argv[3])
connections = []
while True:
    connections.append(server.accept()[0])
    connections[-1].send(b"!")
    connections[-1].send(connections[-1].recv(1))
"""


@dataclass
class Program:
    """A running program, and a connection to it."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

    def hear(self) -> None:
        """Wait until the connection is accepted."""
        self.sock.settimeout(LIMIT)
        assert self.sock.recv(1) == b"!"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(patience(LIMIT))


Start = Callable[..., Program]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    os.setresuid(NOBODY, NOBODY, 0)  # the real user as well: kill(2) asks for either
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
