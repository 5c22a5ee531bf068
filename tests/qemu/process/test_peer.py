import errno
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import panicd
from panicd.qemu import process, process_identity
from panicd.qemu.process import Peer, PeerUnknownError
from panicd.qemu.process_arguments import MOST
from panicd.qemu.process_identity import start_time_of
from panicd.rules.command_line import parse_command_line
from tests.parts.nobody import needs_root
from tests.parts.patience import fail_after
from tests.qemu.process.programs import LIMIT, Start

# A program that holds the other end of a connection until its standard input closes.
CLIENT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
sys.stdin.read()
"""


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
    elder = start_time_of(os.getpid())
    younger = start_time_of(program.process.pid)
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
        elder, younger = start_time_of(os.getpid()), start_time_of(child.pid)
        assert elder is not None
        assert younger is not None
        assert elder < younger
        child.communicate()


def test_reads_the_command_line(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu, "-no-shutdown", "", "nämë")
    with Peer.of(program.sock) as peer:
        trio.run(peer.learn_command_line)
        line = peer.command_line()
        assert line is not None
        assert line[0] == str(fake_qemu)
        assert line[-3:] == ("-no-shutdown", "", "nämë")


def test_a_command_line_without_end_counts_as_unreadable(start: Start, fake_qemu: Path) -> None:
    arguments = ["x" * 100_000] * (MOST // 100_000 + 1)
    with Peer.of(start(fake_qemu, *arguments).sock) as peer:
        trio.run(peer.learn_command_line)
        assert peer.command_line() is None


def test_no_command_line_of_a_process_that_has_ended(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with Peer.of(program.sock) as peer:
        trio.run(peer.learn_command_line)
        assert peer.command_line() is not None
        program.kill()
        assert peer.command_line() is None
        trio.run(peer.learn_command_line)
        assert peer.command_line() is None


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


def test_a_reused_number_is_not_taken_for_the_peer(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    with Peer.of(program.sock, is_qemu_program=lambda _: True) as peer:
        program.kill()
        peer.pid = os.getpid()  # as if it were ours now
        trio.run(peer.learn_command_line)
        assert peer.command_line() is None
        assert not peer.is_qemu()
        assert not peer.send_signal(signal.SIGKILL)


def test_leaves_no_file_descriptor_behind(start: Start, fake_qemu: Path) -> None:
    program = start(fake_qemu)
    before = sorted(Path("/proc/self/fd").iterdir())
    with Peer.of(program.sock) as peer:
        peer.send_signal(signal.SIGCONT)
        trio.run(peer.learn_command_line)
    program.kill()
    Peer.of(program.sock)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_leaves_none_behind_either_where_there_is_none_left_to_look_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "start_time_of", none_left)
    one, other = socket.socketpair()
    with one, other:
        before = sorted(Path("/proc/self/fd").iterdir())
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            Peer.of(one)
        assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("call", ["dup", "pidfd_open"])
async def test_its_end_is_noticed_once_a_descriptor_is_left_to_wait_with(
    start: Start, fake_qemu: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    asked = trio.Event()

    def none_left(_descriptor: int) -> int:
        asked.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for module in (process, process_identity):
        monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    program = start(fake_qemu)
    with Peer.of(program.sock) as peer, fail_after(LIMIT):
        assert peer.identity is not None
        waits = peer.wait_gone if call == "dup" else peer.identity.wait_ended
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as patched:
                patched.setattr(os, call, none_left)
                nursery.start_soon(waits)
                await asked.wait()
            program.kill()


OBSERVER = """
import socket, sys
from panicd.qemu.process import Peer
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print(Peer.of(sock).pid, Peer.of(sock).unknown_because)
print(Peer.of(sock).beyond_signals())
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
    why = "it runs in a PID namespace outside this daemon's"
    assert done.stdout == f"0 {why}\n{why}\n", done.stderr


@pytest.mark.real
async def test_a_real_qemu(directory: Path) -> None:
    path = directory / "qmp.sock"
    arguments = [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "none", "-no-shutdown",
        "-qmp", f"unix:{path}",
    ]  # fmt: skip
    with fail_after(LIMIT), trio.socket.socket(socket.AF_UNIX) as server:
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
                await peer.learn_command_line()
                line = peer.command_line()
                assert line is not None
                assert parse_command_line(line).no_shutdown
                assert peer.send_signal(signal.SIGTERM)
                await peer.wait_gone()
    assert qemu.returncode == 0
