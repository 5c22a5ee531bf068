import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from panicd.qemu.process import NotQemuError, Peer, executed_by, is_qemu_program
from panicd.qemu.process_identity import ProcessIdentity
from tests.parts.nobody import needs_root
from tests.parts.patience import patience
from tests.qemu.process.programs import LIMIT, Start, nobody


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


def bury(directory: Path) -> None:
    """Move a directory so deep that its path has more characters than the kernel tells."""
    name, where = "x" * 250, os.open(directory.parent, os.O_RDONLY)
    for _ in range(17):
        os.mkdir(name, dir_fd=where)
        above, where = where, os.open(name, os.O_RDONLY, dir_fd=where)
        os.close(above)
    os.rename(directory, directory.name, dst_dir_fd=where)
    os.close(where)


def test_a_qemu_whose_path_became_too_long_gets_its_signal(
    start: Start, fake_qemu: Path, tmp_path: Path
) -> None:
    (tmp_path / "of").mkdir()
    program = start(Path(shutil.copy(fake_qemu, tmp_path / "of")))
    with Peer.of(program.sock) as peer:
        bury(tmp_path / "of")
        with pytest.raises(OSError, match="too long"):
            executed_by(peer.pid)
        assert peer.send_signal(signal.SIGKILL)


def test_the_caller_may_say_what_counts_as_a_qemu(start: Start) -> None:
    program = start(Path(sys.executable))
    asked: list[str] = []

    def anything(name: str) -> bool:
        asked.append(name)
        return True

    with Peer.of(program.sock, is_qemu_program=anything) as peer:
        assert peer.send_signal(signal.SIGKILL)
    assert program.process.wait(patience(LIMIT)) == -signal.SIGKILL
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


def test_only_what_names_a_process_identifies_one() -> None:
    identity = ProcessIdentity("boot", 12, 345)
    assert ProcessIdentity.parse(str(identity)) == identity
    for text in (
        "",
        "boot/0/1",
        "boot/-1/1",
        "boot/99999999999/1",
        "boot/1/1/1",
        "boot/1/",
        "a/1/٣",
    ):
        assert ProcessIdentity.parse(text) is None
