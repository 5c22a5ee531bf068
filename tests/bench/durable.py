"""The least that Python can do about a panic that is recorded and asked about first: a reference.

python -m tests.bench.durable DIRECTORY COUNT

One thread waits for all monitors. At a panic it asks what panicd asks, commits a row (SQLite, WAL,
synchronous=FULL) while QEMU answers, and then resets. It decides nothing, and stands still while
the disk does.
"""

from __future__ import annotations

import json
import select
import socket
import sqlite3
import sys
from pathlib import Path

QUESTIONS = ("query-migrate", "query-block-jobs", "query-dump", "query-status")
ASK = "".join(f'{{"execute":"{each}","id":"{each}"}}' for each in QUESTIONS).encode()
RESTART = b'{"execute":"system_reset"}{"execute":"cont"}'


class Machine:
    """One VM's monitor."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self._read = b""
        self.sock.recv(1 << 16)  # the greeting
        self.sock.sendall(b'{"execute":"qmp_capabilities"}')
        self.sock.recv(1 << 16)
        self.sock.sendall(b'{"execute":"set-action","arguments":{"panic":"pause"}}')

    def receive(self) -> tuple[str | None, bool]:
        """Return the row of a panic, if there was one, and whether the last answer is there."""
        *lines, self._read = (self._read + self.sock.recv(1 << 16)).split(b"\n")
        row, is_answered = None, False
        for line in lines:
            message = json.loads(line)
            if message.get("event") == "GUEST_PANICKED":
                self.sock.sendall(ASK)
                row = json.dumps({"domain": self.name, "panic": message})
            is_answered |= message.get("id") == QUESTIONS[-1]
        return row, is_answered


def main(directory: Path, count: int) -> None:
    """Restart each VM of a fleet whenever it panics."""
    database = sqlite3.connect(directory / "durable.sqlite", isolation_level=None)
    for setting in ("journal_mode = WAL", "synchronous = FULL"):
        database.execute(f"PRAGMA {setting}")
    database.execute("CREATE TABLE entry (body TEXT)")
    poller, machines = select.epoll(), {}
    for number in range(count):
        machine = Machine(directory / f"vm-{number:05}.qmp")
        machines[machine.sock.fileno()] = machine
        poller.register(machine.sock, select.EPOLLIN)
    while True:
        ready = [machines[number] for number, _ in poller.poll()]
        received = [(machine, *machine.receive()) for machine in ready]
        if rows := [(row,) for _, row, _ in received if row is not None]:
            database.execute("BEGIN")
            database.executemany("INSERT INTO entry VALUES (?)", rows)
            database.execute("COMMIT")
        for machine, _, is_answered in received:
            if is_answered:
                machine.sock.sendall(RESTART)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
