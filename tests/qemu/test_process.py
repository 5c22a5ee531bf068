import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import panicd
from panicd.qemu import process
from panicd.qemu.process import (
    MAX_COMMAND_LINE,
    NotQemuError,
    Peer,
    PeerUnknownError,
    SignalNotPermittedError,
    is_qemu_program,
)
from panicd.rules.command_line import parse_command_line

LIMIT = 20  # seconds a test may take before it counts as hung
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user or namespace: needs root")

# A program that holds the other end of a connection until its standard input closes.
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
CLIENT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
sys.stdin.read()
"""


@dataclass
class Program:
    """A running program, and a connection to it."""

    process: subprocess.Popen[bytes]
    sock: socket.socket

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)


Start = Callable[..., Program]


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's own: a socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def fake_qemu() -> Iterator[Path]:
    """An interpreter that /proc/PID/exe shows as qemu-fake."""
    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        program = Path(name, "qemu-fake")
        shutil.copy(Path(sys.executable).resolve(), program)
        yield program


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def start(executable: Path, *arguments: str, path: Path | None = None) -> Program:
        path = path or directory / "monitor.sock"
        server = subprocess.Popen(
            [executable, "-c", SERVER, path, *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHOME": sys.base_prefix},
        )
        assert server.stdout is not None
        with server.stdout as output:
            assert output.readline() == b"listening\n"
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        programs.append(Program(server, sock))
        return programs[-1]

    yield start
    for program in programs:
        program.sock.close()
        program.kill()


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    os.setresuid(NOBODY, NOBODY, 0)  # the real user as well: kill(2) asks for either
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qemu-system-x86_64", True),
        ("qemu-system-x86", True),  # as the kernel cuts it
        ("qemu-kvm", True),
        ("kvm", True),
        ("qemu", True),
        (".qemu-system-x86_64-wrapped", True),
        ("qemu-storage-daemon", False),
        ("qemu-storage-da", False),
        ("qemu-nbd", False),
        ("qemu-ga", False),
        ("socat", False),
        ("python3", False),
        ("libvirtd", False),
        ("kvmtool", False),
        ("", False),
    ],
)
def test_which_programs_are_a_qemu(name: str, expected: bool) -> None:
    assert is_qemu_program(name) is expected


def test_knows_who_listens(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with Peer.of(program.sock) as peer:
        assert (peer.pid, peer.uid) == (program.process.pid, os.getuid())
        assert peer.unknown_because is None
        assert peer.identity is not None
        assert peer.identity.pid == program.process.pid
        assert not peer.gone()


def test_knows_who_dials_in(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(directory / "qmp.sock"))
        server.listen()
        arguments = [sys.executable, "-c", CLIENT, str(directory / "qmp.sock")]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE) as client:
            connection, _ = server.accept()
            with connection, Peer.of(connection) as peer:
                assert peer.pid == client.pid


def test_two_connections_have_the_same_process(
    start: Start, fake_qemu: Path, directory: Path
) -> None:
    program = start(fake_qemu)
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(directory / "monitor.sock"))
        with Peer.of(program.sock) as one, Peer.of(second) as other:
            assert one.identity == other.identity


def test_a_successor_on_the_same_path_is_another_process(
    start: Start, fake_qemu: Path, directory: Path
) -> None:
    with Peer.of(start(fake_qemu).sock) as first:
        (directory / "monitor.sock").unlink()
        with Peer.of(start(fake_qemu).sock) as second:
            assert first.identity != second.identity


def test_start_time_tells_a_reused_number_apart(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    elder = process._start_time(os.getpid())
    younger = process._start_time(program.process.pid)
    assert elder is not None
    assert younger is not None
    assert elder < younger


def test_a_processs_name_does_not_disturb_its_start_time(tmp_path: Path) -> None:
    odd = tmp_path / "a) b (c 1 2"
    odd.symlink_to(Path(sys.executable).resolve())
    arguments = [str(odd), "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert Path(f"/proc/{child.pid}/comm").read_text() == "a) b (c 1 2\n"
        elder, younger = process._start_time(os.getpid()), process._start_time(child.pid)
        assert elder is not None
        assert younger is not None
        assert elder < younger
        child.communicate()


def test_reads_the_command_line(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu, "-no-shutdown", "", "nämë")
    with Peer.of(program.sock) as peer:
        line = peer.command_line()
        assert line is not None
        assert line[0] == str(fake_qemu)
        assert line[-3:] == ("-no-shutdown", "", "nämë")


def test_a_command_line_without_end_counts_as_unreadable(start: Start, fake_qemu: Path) -> None:
    arguments = ["x" * 100_000] * (MAX_COMMAND_LINE // 100_000 + 1)
    with Peer.of(start(fake_qemu, *arguments).sock) as peer:
        assert peer.command_line() is None


def test_no_command_line_of_a_process_that_has_ended(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with Peer.of(program.sock) as peer:
        program.kill()
        assert peer.command_line() is None


async def test_a_signal_ends_it_and_its_end_is_seen(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with trio.fail_after(LIMIT), Peer.of(program.sock) as peer:
        assert peer.is_qemu()
        assert peer.send_signal(signal.SIGTERM)
        await peer.wait_gone()
        assert peer.gone()  # as a zombie: nobody has reaped it yet
        assert not peer.is_qemu()
        assert not peer.send_signal(signal.SIGKILL)
        assert program.process.wait(LIMIT) == -signal.SIGTERM
        assert peer.gone()
        assert not peer.send_signal(signal.SIGKILL)
        await peer.wait_gone()


async def test_several_tasks_wait_and_one_is_cancelled(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    ended: list[str] = []

    async def wait(peer: Peer, name: str) -> None:
        await peer.wait_gone()
        ended.append(name)

    with trio.fail_after(LIMIT), Peer.of(program.sock) as peer:
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
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.wait_gone)
            await trio.testing.wait_all_tasks_blocked()
            peer.close()
            program.process.kill()
    with pytest.raises(PeerUnknownError, match="closed"):
        peer.gone()


def test_what_is_not_a_qemu_gets_no_signal(start: Start) -> None:
    program = start(Path(sys.executable), "/usr/bin/qemu-system-x86_64")
    with Peer.of(program.sock) as peer:
        assert not peer.is_qemu()
        with pytest.raises(NotQemuError, match=f"process {peer.pid} is not a QEMU: no SIGKILL"):
            peer.send_signal(signal.SIGKILL)
        assert not peer.gone()


def test_a_program_named_like_a_qemu_is_not_one_where_its_file_can_be_seen(
    start: Start, tmp_path: Path
) -> None:
    alias = tmp_path / "qemu-system-fake"  # the process's name, but not its file
    alias.symlink_to(Path(sys.executable).resolve())
    with Peer.of(start(alias).sock) as peer:
        assert Path(f"/proc/{peer.pid}/comm").read_text().startswith("qemu-system")
        assert not peer.is_qemu()


def test_an_upgraded_qemu_is_one_still(start: Start, fake_qemu: Path, tmp_path: Path) -> None:
    program = Path(shutil.copy(fake_qemu, tmp_path / "kvm"))
    with Peer.of(start(program).sock) as peer:
        program.unlink()
        assert peer.is_qemu()


def test_the_caller_may_say_what_counts_as_a_qemu(start: Start) -> None:
    program = start(Path(sys.executable))
    asked: list[str] = []

    def anything(name: str) -> bool:
        asked.append(name)
        return True

    with Peer.of(program.sock, is_qemu_program=anything) as peer:
        assert peer.send_signal(signal.SIGKILL)
    assert program.process.wait(LIMIT) == -signal.SIGKILL
    assert asked == [Path(sys.executable).resolve().name]


@needs_root
def test_without_ptrace_rights_the_processs_own_word_is_taken(
    start: Start, fake_qemu: Path
) -> None:
    qemu = start(fake_qemu)
    other = start(Path(sys.executable), path=fake_qemu.parent / "other.sock")
    with Peer.of(qemu.sock) as peer, Peer.of(other.sock) as stranger, nobody():
        with pytest.raises(PermissionError):
            Path(f"/proc/{peer.pid}/exe").readlink()
        assert peer.is_qemu()
        assert not stranger.is_qemu()


@needs_root
def test_a_refused_signal_is_named(start: Start, fake_qemu: Path) -> None:
    with Peer.of(start(fake_qemu).sock) as peer:
        with nobody(), pytest.raises(SignalNotPermittedError, match=r"SIGTERM.*CAP_KILL"):
            peer.send_signal(signal.SIGTERM)
        assert not peer.gone()


async def test_a_peer_that_has_ended_is_unknown(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    program.kill()
    with Peer.of(program.sock) as peer:
        assert (peer.pid, peer.identity) == (program.process.pid, None)
        assert peer.unknown_because == "it has ended already"
        assert peer.command_line() is None
        assert not peer.is_qemu()
        with pytest.raises(PeerUnknownError, match="ended already"):
            peer.gone()
        with pytest.raises(PeerUnknownError, match="ended already"):
            peer.send_signal(signal.SIGKILL)
        with pytest.raises(PeerUnknownError, match="ended already"):
            await peer.wait_gone()


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
    with OldKernelSocket(fileno=os.dup(program.sock.fileno())) as sock, trio.fail_after(LIMIT):
        with Peer.of(program.sock) as newer, Peer.of(sock) as peer:
            assert peer.identity == newer.identity
            assert peer.send_signal(signal.SIGKILL)
            await peer.wait_gone()
        program.process.wait(LIMIT)
        with Peer.of(sock) as peer:
            assert peer.unknown_because == "it has ended already"


def test_a_reused_number_is_not_taken_for_the_peer(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with Peer.of(program.sock, is_qemu_program=lambda _: True) as peer:
        program.kill()
        peer.pid = os.getpid()  # as if it were ours now
        assert peer.command_line() is None
        assert not peer.is_qemu()
        assert not peer.send_signal(signal.SIGKILL)


def test_ends_between_the_check_and_the_signal(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)

    def kill(_: str) -> bool:
        program.kill()
        return True

    with Peer.of(program.sock, is_qemu_program=kill) as peer:
        assert not peer.send_signal(signal.SIGTERM)


def test_leaves_no_file_descriptor_behind(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    before = sorted(Path("/proc/self/fd").iterdir())
    with Peer.of(program.sock) as peer:
        peer.send_signal(signal.SIGCONT)
        peer.command_line()
    program.kill()
    Peer.of(program.sock)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_leaves_none_behind_either_where_there_is_none_left_to_look_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "_start_time", none_left)
    one, other = socket.socketpair()
    with one, other:
        before = sorted(Path("/proc/self/fd").iterdir())
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            Peer.of(one)
        assert sorted(Path("/proc/self/fd").iterdir()) == before


OBSERVER = """
import socket, sys
from panicd.qemu.process import Peer
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print(Peer.of(sock).pid, Peer.of(sock).unknown_because)
"""


@needs_root
def test_a_peer_outside_our_pid_namespace_is_unknown(
    start: Start, fake_qemu: Path, directory: Path
) -> None:
    start(fake_qemu)
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", OBSERVER,
         directory / "monitor.sock"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(*panicd.__path__).parent)},
    )  # fmt: skip
    # The second where the root is no mount point, as in a plain chroot.
    if re.search("Operation not permitted|Invalid argument", done.stderr):
        pytest.skip("no new PID namespace may be made here")
    assert done.stdout == "0 it runs in a PID namespace outside this daemon's\n", done.stderr


@pytest.mark.real
async def test_a_real_qemu(directory: Path) -> None:
    path = directory / "qmp.sock"
    arguments = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "none", "-no-shutdown",
        "-qmp", f"unix:{path}",
    ]  # fmt: skip
    with trio.fail_after(LIMIT), trio.socket.socket(socket.AF_UNIX) as server:
        await server.bind(str(path))
        server.listen()
        async with trio.open_nursery() as nursery:
            qemu: trio.Process = await nursery.start(trio.run_process, arguments)
            connection, _ = await server.accept()
            # An answer comes from QEMU's main loop: from then on it handles signals.
            await connection.send(b'{"execute": "qmp_capabilities"}')
            received = b""
            while b'"return"' not in received:
                received += await connection.recv(4096)
            sock = socket.socket(fileno=os.dup(connection.fileno()))
            with connection, sock, Peer.of(sock) as peer:
                assert peer.pid == qemu.pid
                assert peer.is_qemu()
                line = peer.command_line()
                assert line is not None
                assert parse_command_line(line).no_shutdown
                assert peer.send_signal(signal.SIGTERM)
                await peer.wait_gone()
    assert qemu.returncode == 0
