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

# A program that holds the other end of each connection until it is killed.
SERVER = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listening", flush=True)
connections = []
while True:
    connections.append(server.accept())
"""


@dataclass
class Program:
    """A running program, and a connection to it."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

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
