"""The logs of a guest's consoles, on a host where not everybody means well."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from panicd.qemu.console_log import ConsoleLog, find_logs, read_end
from panicd.qemu.process import Peer

PEER = cast("Peer", SimpleNamespace(pid=os.getpid()))
"""This process stands for a QEMU: only its number is looked at."""


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
    gone = cast("Peer", SimpleNamespace(pid=2**22 + 1))
    assert find_logs((), gone, ("qemu", "-serial", "file:/a"), problems) == []
    assert list(problems) == ["/a"]


def test_end_is_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 1000 + b"end")
    assert read_end(ConsoleLog(path, os.geteuid()), 5) == b"aaend"
    assert read_end(ConsoleLog(path), 10_000) == path.read_bytes()


def test_file_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("secret")
    with pytest.raises(OSError, match="another user"):
        read_end(ConsoleLog(path, os.geteuid() + 1), 10)


def test_neither_links_nor_pipes_lead_anywhere(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    (tmp_path / "secret").write_text("secret")
    link.symlink_to(tmp_path / "secret")
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="symbolic"):
        read_end(ConsoleLog(link, os.geteuid()), 10)
    with pytest.raises(OSError, match="no file"):  # and at once, though nobody writes
        read_end(ConsoleLog(pipe), 10)
    with pytest.raises(OSError, match="no file"):
        read_end(ConsoleLog(Path("/dev/null")), 10)
