"""The least that Python can do about a panic that is recorded first: a reference.

python -m tests.bench.durable DIRECTORY COUNT

One thread waits for all monitors. It follows each QEMU's jobs and migrations by events, as panicd
does. At a panic it commits a row (SQLite, WAL, synchronous=FULL), and then resets a guest that has
stopped and whose QEMU does nothing else. It decides nothing, and stands still while the disk does.
"""

from __future__ import annotations

import json
import select
import socket
import sqlite3
import sys
from pathlib import Path

BEGIN = (
    b'{"execute":"migrate-set-capabilities","arguments":{"capabilities":'
    b'[{"capability":"events","state":true}]}}'
    b'{"execute":"query-migrate"}{"execute":"query-jobs","id":"jobs"}{"execute":"query-dump"}'
    b'{"execute":"set-action","arguments":{"panic":"pause"}}'
)
RESTART = b'{"execute":"system_reset"}{"execute":"cont"}'
WORK = ("JOB_STATUS_CHANGE", "MIGRATION")
OVER = ("null", "completed", "failed", "cancelled")


class Machine:
    """One VM's monitor."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self._read = b""
        self._work: set[str] = set()
        self.sock.recv(1 << 16)  # the greeting
        self.sock.sendall(b'{"execute":"qmp_capabilities"}')
        self.sock.recv(1 << 16)
        self.sock.sendall(BEGIN)

    def receive(self) -> tuple[str | None, bool]:
        """Return the row of a panic, if there was one, and whether the guest may be reset."""
        *lines, self._read = (self._read + self.sock.recv(1 << 16)).split(b"\n")
        row, has_stopped = None, False
        for line in lines:
            message = json.loads(line)
            match message.get("event"):
                case "GUEST_PANICKED":
                    row = json.dumps({"domain": self.name, "panic": message})
                case "STOP":
                    has_stopped = True
                case event if event in WORK:
                    self._follow(event, **message["data"])
            if message.get("id") == "jobs":
                self._work.update(job["id"] for job in message["return"])
        return row, has_stopped and not self._work

    def _follow(self, event: str, status: str, id: str = "") -> None:  # noqa: A002 - QEMU's name
        if status in OVER:
            self._work.discard(id or event)
        else:
            self._work.add(id or event)


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
        for machine, _, may_reset in received:
            if may_reset:
                machine.sock.sendall(RESTART)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
