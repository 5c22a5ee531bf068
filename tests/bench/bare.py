"""The least that a client of libvirt's can do about a panic, as a reference: no policy, no checks.

    python -m tests.bench.bare SOCKET FILE

It gives the command at once when it hears GUEST_PANICKED: a reset, and a resume after libvirt's
answer; or for a domain whose name ends in ``destroy``, a destroy. For a domain whose name begins
with ``durable`` it first makes a hundred bytes of the file durable. It says ``ready`` when it
listens.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

from panicd.libvirt import introduction, requests
from panicd.libvirt.protocol import DomainRef, QemuEvent, read_event
from panicd.libvirt.wire import Incoming, Kind, Message, Status

CHUNK: Final = 1 << 16
ROOM: Final = 1 << 20  # bytes that are in the file from the start, as in panicd's journal
ENTRY: Final = b"x" * 100


class Bare:
    """A client with one connection, which waits for nothing but that.

    Args:
        path: libvirtd's socket.
        file: a descriptor, for what is made durable.
    """

    def __init__(self, path: str, file: int) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._incoming = Incoming()
        self._serial = 0
        self._resets: dict[int, DomainRef] = {}  # under way, by their serials
        self._file = file

    def send(self, request: requests.Request[Any]) -> int:
        """Send a call; return its serial."""
        self._serial += 1
        call = (request.program, request.procedure, Kind.CALL, self._serial, Status.OK)
        self._sock.sendall(Message(*call, request.arguments).pack())
        return self._serial

    def begin(self) -> None:
        """Have libvirtd let it in, and tell it of panics."""
        for request in (
            introduction.list_auth(),
            introduction.open_driver("qemu:///system"),
            introduction.listen_to_qemu(("GUEST_PANICKED",)),
        ):
            self.send(request)
            (answer,) = self._receive()
            assert answer.status == Status.OK, answer

    def run(self) -> None:
        """Act on each panic until libvirtd goes away."""
        while messages := self._receive():
            for message in messages:
                event = read_event(message) if message.kind == Kind.EVENT else None
                if isinstance(event, QemuEvent):
                    self._act(event.domain)
                elif message.serial in self._resets:
                    self.send(requests.resume(self._resets.pop(message.serial)))

    def _receive(self) -> list[Message]:
        data = self._sock.recv(CHUNK)
        return list(self._incoming.take(data))

    def _act(self, domain: DomainRef) -> None:
        if domain.name.startswith("durable"):
            os.pwrite(self._file, ENTRY, 0)
            os.fdatasync(self._file)
        if domain.name.endswith("destroy"):
            self.send(requests.destroy(domain))
        else:
            self._resets[self.send(requests.reset(domain))] = domain


def main(path: str, file: Path) -> None:
    """Act on each panic."""
    with file.open("wb", buffering=0) as opened:
        opened.write(bytes(ROOM))
        os.fsync(opened.fileno())
        bare = Bare(path, opened.fileno())
        bare.begin()
        print("ready", flush=True)
        bare.run()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
