"""The logs of a guest's consoles, on a host where not everybody means well."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from panicd.evidence.console_log import ConsoleLog, find_logs, read_end
from panicd.qemu.file_rights import Rights
from panicd.qemu.process import Peer
from tests.parts.nobody import NOBODY, needs_root

OWN = Rights(os.geteuid(), frozenset(os.getgroups()))
STRANGER = Rights(NOBODY, frozenset({NOBODY}))
PEER = cast("Peer", SimpleNamespace(pid=os.getpid(), rights=OWN))
"""This process stands for a QEMU: only its number and its rights are looked at."""

ALL = 0xFFFFFFFF
"""In an entry of an access control list that is about no user (linux/posix_acl_xattr.h)."""

POSER = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
if os.fork() == 0:
    listener.accept()
    os.read(0, 1)
    os._exit(0)
print(flush=True)
wait = "import sys; sys.stdin.read(1)"
os.execv(sys.argv[2], [sys.argv[2], "-c", wait, "-serial", "file:" + sys.argv[3]])
"""
"""It listens, leaves its monitor to a child, and becomes a program with root's rights."""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may look into."""
    with tempfile.TemporaryDirectory(prefix="panicd-public-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def found(configured: tuple[Path, ...], *arguments: str) -> tuple[list[Path], dict[str, str]]:
    problems: dict[str, str] = {}
    logs = find_logs(configured, PEER, ("qemu", *arguments), problems)
    return [log.path for log in logs], problems


def test_configured_logs_come_first_and_none_twice() -> None:
    a, b = Path("/a"), Path("/b")
    assert found((b,), "-serial", "file:/a", "-serial", "file:/b") == ([b, a], {})


def test_relative_log_lies_where_qemu_was_started() -> None:
    assert found((), "-serial", "file:vm.log") == ([Path.cwd() / "vm.log"], {})


def test_number_of_logs_is_bounded() -> None:
    arguments = [word for n in range(100) for word in ("-serial", f"file:/{n}")]
    assert len(found((), *arguments)[0]) == 4


def test_process_that_is_gone_is_a_problem_and_no_crash() -> None:
    problems: dict[str, str] = {}
    gone = cast("Peer", SimpleNamespace(pid=2**22 + 1, rights=OWN))
    assert find_logs((), gone, ("qemu", "-serial", "file:/a"), problems) == []
    assert list(problems) == ["/a"]


@contextmanager
def process(*command: str) -> Iterator[int]:
    """A process that has said that it is there; its number."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as started:
        assert started.stdout is not None
        try:
            yield int(started.stdout.readline() or started.pid)
        finally:
            os.killpg(started.pid, signal.SIGKILL)


@needs_root
def test_who_has_put_his_rights_down_names_with_what_is_left_of_them() -> None:
    """A QEMU that was started as root, and that a guest has broken out into since."""
    lowered = f"import os; os.seteuid({NOBODY}); print(os.getpid(), flush=True); input()"
    with process(sys.executable, "-c", lowered) as pid:
        its = cast("Peer", SimpleNamespace(pid=pid, rights=OWN))
        (log,) = find_logs((), its, ("qemu", "-serial", "file:/etc/shadow"), {})
    with pytest.raises(OSError, match=f"user {NOBODY} may not read it"):
        read_end(log, 10)


@needs_root
def test_what_is_named_in_a_container_is_not_looked_for() -> None:
    its_parent = "cut -d' ' -f4 /proc/self/stat; cat"
    with process("unshare", "--pid", "--fork", "sh", "-c", its_parent) as inside:
        problems: dict[str, str] = {}
        its = cast("Peer", SimpleNamespace(pid=inside, rights=OWN))
        assert find_logs((), its, ("qemu", "-serial", "file:/a"), problems) == []
    assert "in a container" in problems["/a"]


def test_end_is_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 1000 + b"end")
    assert read_end(ConsoleLog(path, (OWN,)), 5) == b"aaend"
    assert read_end(ConsoleLog(path), 10_000) == path.read_bytes()


@pytest.mark.parametrize("users", [(STRANGER,), (OWN, STRANGER), (STRANGER, OWN)])
def test_file_is_read_that_all_who_name_it_may_read(
    public: Path, users: tuple[Rights, ...]
) -> None:
    path = public / "log"
    path.write_text("console")
    log = ConsoleLog(path, users)
    assert read_end(log, 10) == b"console"
    path.chmod(0o640)
    with pytest.raises(OSError, match="may not read it"):
        read_end(log, 10)
    path.chmod(0o644)
    public.chmod(0o700)
    with pytest.raises(OSError, match="may not read it"):
        read_end(log, 10)


def test_where_a_list_says_more_than_the_mode_only_the_owner_s_rights_are_known(
    public: Path,
) -> None:
    """acl(5): anybody may read it, but for one."""
    path = public / "log"
    path.write_text("console")
    path.chmod(0o644)
    entries = [(1, 6, ALL), (2, 0, NOBODY), (4, 4, ALL), (16, 4, ALL), (32, 4, ALL)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", packed)
    except OSError as error:
        pytest.skip(f"no access control list there: {error}")
    with pytest.raises(OSError, match="may not read it"):
        read_end(ConsoleLog(path, (STRANGER,)), 10)
    assert read_end(ConsoleLog(path, (OWN,)), 10) == b"console"


def test_way_through_a_link_is_gone_with_the_same_rights(public: Path, tmp_path: Path) -> None:
    (public / "open").mkdir()
    (public / "open" / "log").write_text("console")
    (public / "here").symlink_to("open")
    (public / "there").symlink_to(public / "open" / ".." / "open")
    for way in ("here", "there"):
        assert read_end(ConsoleLog(public / way / "log", (STRANGER,)), 10) == b"console"
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "log").write_text("secret")
    (private / "log").chmod(0o644)
    (public / "closed").symlink_to(private)
    with pytest.raises(OSError, match="may not read it"):
        read_end(ConsoleLog(public / "closed" / "log", (STRANGER,)), 10)
    (public / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        read_end(ConsoleLog(public / "loop" / "log", (STRANGER,)), 10)


def test_nothing_but_a_file_is_opened(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    (tmp_path / "secret").write_text("secret")
    link.symlink_to(tmp_path / "secret")
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, Path("/dev/null"), Path("/proc/self/environ")):
        with pytest.raises(OSError, match="no file"):  # and at once, though nobody writes
            read_end(ConsoleLog(path, (OWN,)), 10)
    for path in (pipe, Path("/dev/null"), Path("/proc/self/environ")):
        with pytest.raises(OSError, match="no file"):
            read_end(ConsoleLog(path), 10)


@needs_root
def test_program_with_more_rights_than_its_user_opens_nothing_more(public: Path) -> None:
    secret, program, monitor = public / "secret", public / "qemu-system-x86_64", public / "qmp"
    secret.write_text("secret")
    secret.chmod(0o600)
    python = shutil.which("python3", path="/usr/bin")  # the tests' own may be root's alone
    if python is None:
        pytest.skip("no python3 that everybody may run")
    shutil.copy(python, program)
    program.chmod(0o4755)
    public.chmod(0o777)
    command = [python, "-c", POSER, *map(str, (monitor, program, secret))]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    ) as poser:
        assert poser.stdout is not None
        poser.stdout.readline()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(bytes(monitor))
            with Peer.of(sock) as peer:
                while "-serial" not in (peer.command_line() or ()):
                    trio.run(peer.learn_command_line)
                assert peer.is_qemu()
                problems: dict[str, str] = {}
                (log,) = find_logs((), peer, peer.command_line(), problems)
                with pytest.raises(OSError, match="may not read it"):
                    read_end(log, 10)
        poser.communicate(b"xx")
