import platform
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from panicd.qemu.process import Peer, PeerUnknownError, SignalNotPermittedError
from tests.parts.nobody import needs_root
from tests.parts.patience import fail_after, patience
from tests.qemu.process.programs import LIMIT, Start, nobody


async def test_a_signal_ends_it_and_its_end_is_seen(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with fail_after(LIMIT), Peer.of(program.sock) as peer:
        assert peer.is_qemu()
        assert peer.send_signal(signal.SIGTERM)
        await peer.wait_gone()
        assert peer.gone()  # as a zombie: nobody has reaped it yet
        assert not peer.is_qemu()
        assert not peer.send_signal(signal.SIGKILL)
        assert program.process.wait(patience(LIMIT)) == -signal.SIGTERM
        assert peer.gone()
        assert not peer.send_signal(signal.SIGKILL)
        await peer.wait_gone()


async def test_several_tasks_wait_and_one_is_cancelled(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    ended: list[str] = []

    async def wait(peer: Peer, name: str) -> None:
        await peer.wait_gone()
        ended.append(name)

    with fail_after(LIMIT), Peer.of(program.sock) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, peer, "one")
            nursery.start_soon(wait, peer, "two")
            async with trio.open_nursery() as cancelled:
                cancelled.start_soon(wait, peer, "cancelled")
                await trio.testing.wait_all_tasks_blocked()
                cancelled.cancel_scope.cancel()
            assert ended == []
            program.process.kill()
    assert sorted(ended) == ["one", "two"]


async def test_a_wait_outlives_close(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    peer = Peer.of(program.sock)
    with fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.wait_gone)
            await trio.testing.wait_all_tasks_blocked()
            peer.close()
            program.process.kill()
    with pytest.raises(PeerUnknownError, match="closed"):
        peer.gone()


@needs_root
def test_a_refused_signal_is_named(start: Start, fake_qemu: Path) -> None:
    with Peer.of(start(fake_qemu).sock) as peer:
        with nobody(), pytest.raises(SignalNotPermittedError, match=r"SIGTERM.*CAP_KILL"):
            peer.send_signal(signal.SIGTERM)
        with nobody():
            assert peer.beyond_signals() == f"user {peer.uid}'s processes take CAP_KILL"
        assert peer.beyond_signals() == ""
        assert not peer.gone()


def test_ends_between_the_check_and_the_signal(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)

    def kill(_: str) -> bool:
        program.kill()
        return True

    with Peer.of(program.sock, is_qemu_program=kill) as peer:
        assert not peer.send_signal(signal.SIGTERM)


ENDING = """
import ctypes, threading
ends = threading.Event()
def serve():
    connection = server.accept()[0]
    connection.send(b"!")
    connection.recv(1)
    ends.set()
    threading.Event().wait()
threading.Thread(target=serve).start()
ends.wait()
ctypes.CDLL(None).syscall({exit}, 0)  # of this thread: the process has no memory, and goes on
"""
EXIT = {"x86_64": 60, "aarch64": 93}


async def test_one_that_gives_up_its_memory_is_no_stranger(start: Start, fake_qemu: Path) -> None:
    """A large QEMU is for seconds neither there nor gone, and is still the one to be ended."""
    program = start(fake_qemu, then=ENDING.format(exit=EXIT[platform.machine()]))
    program.hear()
    with fail_after(LIMIT), Peer.of(program.sock) as peer:
        peer.confirm()
        program.sock.send(b"?")
        with suppress(FileNotFoundError):
            while await trio.Path(f"/proc/{peer.pid}/exe").readlink():
                pass
        assert not peer.gone()
        assert peer.is_qemu()
        assert peer.beyond_signals() == ""
        assert peer.send_signal(signal.SIGKILL)
        await peer.wait_gone()
