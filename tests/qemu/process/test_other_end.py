"""Whose the other end of a connection is: the number that was there first is no proof."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.fleet.connector import connect
from panicd.qemu import other_end, process
from panicd.qemu.monitor import event_loop, open_monitor
from panicd.qemu.other_end import receive
from panicd.qemu.process import Peer, PeerUnknownError
from tests.parts.nobody import NOBODY, needs_root
from tests.parts.patience import fail_after
from tests.parts.qemu import RealQemu
from tests.qemu.process.programs import LIMIT, Program, Start, nobody

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
TRIES = 1000

LISTENS_AS_NOBODY = f"os.seteuid({NOBODY})"  # before listen(2)
IS_ROOT_AGAIN = "os.seteuid(0)"
BECOMES_NOBODY = f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})"
LEAVES_IT_TO_A_CHILD = "if os.fork(): signal.pause()"
ENDS_BUT_FOR_A_CHILD = "if os.fork(): os._exit(0)"


class OldKernelSocket(socket.socket):
    """A socket of Linux before 6.5."""

    def getsockopt(self, *arguments: Any) -> Any:
        if arguments[1] == process.SO_PEERPIDFD:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return super().getsockopt(*arguments)


@contextmanager
def peer_of(program: Program, *, old_kernel: bool) -> Iterator[Peer]:
    kind = OldKernelSocket if old_kernel else socket.socket
    with kind(fileno=os.dup(program.sock.fileno())) as sock, Peer.of(sock) as peer:
        yield peer


kernels = pytest.mark.parametrize("old_kernel", [False, True], ids=["newer", "before 6.5"])


def test_a_process_with_very_many_descriptors_is_looked_at_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inode = other_end.inode_of(theirs)
        assert other_end.holds(os.getpid(), inode) is True
        monkeypatch.setattr(other_end, "MOST_DESCRIPTORS", 2)
        assert other_end.holds(os.getpid(), inode) is None
    assert other_end.holds(os.getpid(), inode) is None
    monkeypatch.undo()
    assert other_end.holds(os.getpid(), inode) is False


@kernels
async def test_who_holds_it_is_known(start: Start, fake_qemu: Path, old_kernel: bool) -> None:
    program = start(fake_qemu)
    program.hear()
    with fail_after(LIMIT), peer_of(program, old_kernel=old_kernel) as peer:
        peer.confirm()
        assert peer.unknown_because is None
        assert peer.identity is not None
        assert peer.identity.pid == program.process.pid
        assert peer.send_signal(signal.SIGKILL)
        await peer.wait_gone()
    program.process.wait(LIMIT)
    with peer_of(program, old_kernel=old_kernel) as peer:
        assert peer.unknown_because == "it has ended already"


@kernels
def test_who_has_left_it_to_another_is_not(start: Start, fake_qemu: Path, old_kernel: bool) -> None:
    program = start(fake_qemu, then=LEAVES_IT_TO_A_CHILD)
    program.hear()
    with peer_of(program, old_kernel=old_kernel) as peer:
        peer.confirm()
        assert peer.identity is None
        assert peer.unknown_because == (
            f"process {program.process.pid} has left the connection to another"
        )
        with pytest.raises(PeerUnknownError):
            peer.send_signal(signal.SIGKILL)
    assert program.process.poll() is None


def test_before_it_is_accepted_an_old_kernel_tells_nothing(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu, then="signal.pause()")
    with peer_of(program, old_kernel=True) as peer, pytest.raises(PeerUnknownError):
        peer.send_signal(signal.SIGKILL)
    with peer_of(program, old_kernel=True) as peer:
        assert not peer.recognise(None)
        assert peer.recognise(peer.identity), "the journal may know it from before"
        assert peer.send_signal(signal.SIGKILL)


@needs_root
@kernels
def test_another_user_s_program_is_not(start: Start, fake_qemu: Path, old_kernel: bool) -> None:
    """As a set-uid program is that somebody has put in his own place."""
    program = start(fake_qemu, then=IS_ROOT_AGAIN, before=LISTENS_AS_NOBODY)
    program.hear()
    with peer_of(program, old_kernel=old_kernel) as peer:
        assert peer.uid == NOBODY
        peer.confirm()
        assert peer.unknown_because == (
            f"process {peer.pid} does not belong to user {NOBODY}, who made the connection"
        )


@needs_root
@kernels
def test_a_qemu_that_root_started_and_that_is_somebody_else_now_is_known(
    start: Start, fake_qemu: Path, old_kernel: bool
) -> None:
    program = start(fake_qemu, then=BECOMES_NOBODY)  # -runas
    program.hear()
    with peer_of(program, old_kernel=old_kernel) as peer:
        peer.confirm()
        assert peer.identity is not None


def answered_by(program: Program) -> int | None:
    """Ask a program something, and return who answers."""
    program.sock.send(b"?")
    answer, pid = receive(program.sock, 1)
    assert answer == b"?"
    return pid


@needs_root
@kernels
def test_where_descriptors_may_not_be_seen_an_answer_tells(
    start: Start, fake_qemu: Path, old_kernel: bool
) -> None:
    program = start(fake_qemu)
    program.hear()
    with peer_of(program, old_kernel=old_kernel) as peer:
        answered = answered_by(program)
        assert answered == program.process.pid
        with nobody():
            peer.confirm(answered)
            assert peer.identity is not None


@needs_root
@kernels
def test_where_another_one_answers_the_process_is_not_known(
    start: Start, fake_qemu: Path, old_kernel: bool
) -> None:
    program = start(fake_qemu, then=LEAVES_IT_TO_A_CHILD)
    program.hear()
    with peer_of(program, old_kernel=old_kernel) as peer:
        answered = answered_by(program)
        assert answered not in {None, program.process.pid}
        with nobody():
            peer.confirm(answered)
            assert peer.identity is None
            assert "is not known" in str(peer.unknown_because)


@needs_root
@kernels
def test_without_an_answer_an_old_kernel_s_number_is_no_proof(
    start: Start, fake_qemu: Path, old_kernel: bool
) -> None:
    program = start(fake_qemu)
    program.hear()
    with peer_of(program, old_kernel=old_kernel) as peer, nobody():
        peer.confirm()
        assert (peer.identity is None) is old_kernel


@pytest.mark.real
async def test_a_real_qemu_proves_itself_by_its_answer(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SO_PEERPIDFD", 9999)  # none: as before Linux 6.5
    monkeypatch.delattr(process, "holds")  # it is not asked for
    async with RealQemu.start(socket_dir) as vm, event_loop():
        with Peer.of(sock := await connect(vm.socket)) as peer:
            async with open_monitor(sock, timeout=LIMIT) as monitor:
                peer.confirm(monitor.answered_by)
                assert monitor.answered_by == vm.pid
                assert peer.identity is not None
                assert peer.beyond_signals() == ""


def give_number(pid: int, program: Path) -> subprocess.Popen[bytes]:
    """Start a program under a number that is free."""
    for _ in range(TRIES):
        LAST_PID.write_text(str(pid - 1), encoding="ascii")
        started = subprocess.Popen(
            [program, "-c", "import signal; signal.pause()"],
            env={**os.environ, "PYTHONHOME": sys.base_prefix},
        )
        if started.pid == pid:
            return started
        started.kill()
        started.wait(LIMIT)
    pytest.skip(f"number {pid} is taken by others")


@pytest.fixture
def victim(fake_qemu: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a healthy QEMU that gets the number of a process that has ended."""
    victims: list[subprocess.Popen[bytes]] = []
    program = Path(shutil.copy(fake_qemu, tmp_path / "qemu-victim"))

    def start(pid: int) -> subprocess.Popen[bytes]:
        victims.append(give_number(pid, program))
        return victims[-1]

    yield start
    for one in victims:
        one.kill()
        one.wait(LIMIT)


@needs_root
@kernels
def test_who_has_the_listener_s_number_now_gets_no_signal(
    start: Start, fake_qemu: Path, victim: Any, old_kernel: bool
) -> None:
    """The listener ended, its child keeps the connection, and a healthy QEMU has its number."""
    program = start(fake_qemu, then=ENDS_BUT_FOR_A_CHILD)
    program.hear()
    program.process.wait(LIMIT)
    healthy = victim(program.process.pid)
    with peer_of(program, old_kernel=old_kernel) as peer, pytest.raises(PeerUnknownError):
        peer.send_signal(signal.SIGKILL)
    assert healthy.poll() is None


@needs_root
def test_a_signal_goes_to_the_process_and_not_to_its_number(
    start: Start, fake_qemu: Path, victim: Any
) -> None:
    """The number is another's by the time of the signal, and was not when it was looked at."""
    program = start(fake_qemu)
    program.hear()
    healthy: list[subprocess.Popen[bytes]] = []

    def ends_meanwhile(_name: str) -> bool:
        program.kill()
        healthy.append(victim(program.process.pid))
        return True

    with Peer.of(program.sock, is_qemu_program=ends_meanwhile) as peer:
        assert peer.send_signal(signal.SIGKILL) is False
    assert healthy[0].poll() is None
