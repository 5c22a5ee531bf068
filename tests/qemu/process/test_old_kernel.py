import errno
import os
import signal
import socket
from pathlib import Path
from typing import Any

from panicd.qemu import process
from panicd.qemu.process import Peer
from tests.parts.patience import fail_after, patience
from tests.qemu.process.programs import LIMIT, Start


def test_without_so_peerpidfd_the_number_is_trusted_while_the_connection_lives(
    start: Start, fake_qemu: Path
) -> None:
    program = start(fake_qemu)
    pidfd = process._open_pidfd(program.sock, program.process.pid)
    assert pidfd is not None
    try:
        program.kill()
        assert process._has_ended(pidfd)
        assert process._open_pidfd(program.sock, program.process.pid) is None
        # The number may name another process by now. This one lives, and is not the peer.
        assert process._open_pidfd(program.sock, os.getpid()) is None
    finally:
        os.close(pidfd)


class OldKernelSocket(socket.socket):
    """A socket of Linux before 6.5."""

    def getsockopt(self, *arguments: Any) -> Any:
        if arguments[1] == process.SO_PEERPIDFD:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return super().getsockopt(*arguments)


async def test_on_an_old_kernel(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with OldKernelSocket(fileno=os.dup(program.sock.fileno())) as sock, fail_after(LIMIT):
        with Peer.of(program.sock) as newer, Peer.of(sock) as peer:
            assert peer.identity == newer.identity
            assert peer.send_signal(signal.SIGKILL)
            await peer.wait_gone()
        program.process.wait(patience(LIMIT))
        with Peer.of(sock) as peer:
            assert peer.unknown_because == "it has ended already"
