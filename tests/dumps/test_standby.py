"""A filter that stands by does what one does that is started, or leaves it to that one."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from panicd.dumps import standby as dump_standby
from panicd.dumps.filter.elf_filter import KDUMP
from panicd.dumps.filter.stand_by import MESSAGE, SEPARATOR
from panicd.dumps.standby import ELF_FILTER, DumpHost, Filter, Standby

CORE = b"\x7fELF" + os.urandom(5000) + bytes(3 << 20) + b"the end"
ZSTD = ["zstd", "0", "about"]
GONE_WITHIN = 30.0  # seconds
LEFT_BEHIND = """
import os, signal
from panicd.dumps.standby import Standby
standby = Standby()
standby._is_wanted = True
standby.renew()
print(standby._ready[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def standby() -> Iterator[Standby]:
    with Standby() as made:
        made._is_wanted = True
        made.renew()
        yield made


def process_of(standby: Standby) -> subprocess.Popen[bytes]:
    assert standby._ready is not None
    return standby._ready[0]


def is_there(standby: Standby) -> bool:
    return standby._ready is not None


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def filtered(filtering: Filter | subprocess.Popen[bytes], data: bytes) -> int:
    assert filtering.stdin is not None
    with filtering, filtering.stdin as pipe:
        with suppress(BrokenPipeError):  # the status says why
            pipe.write(data)
        pipe.close()
        return filtering.wait()


@pytest.mark.parametrize("arguments", [ZSTD, ["zstd", "1", "about"], ["plain", "1", "é\udc80"]])
def test_it_writes_what_one_writes_that_is_started(
    standby: Standby, tmp_path: Path, arguments: list[str]
) -> None:
    made = []
    for name, host in (("taken", DumpHost(standby=standby)), ("started", DumpHost())):
        with (tmp_path / name).open("wb") as file:
            filtering = host.start([ELF_FILTER, *arguments], file.fileno(), None)
            assert isinstance(filtering, Filter) == (name == "taken")
            assert filtered(filtering, CORE) == 0
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert len(made[0]) > 5000


@pytest.mark.parametrize(
    ("arguments", "output", "status"),
    [(ZSTD, "/dev/full", errno.ENOSPC), ([*ZSTD, KDUMP], "/dev/null", errno.ENODATA)],
)
def test_its_status_says_what_went_wrong(
    standby: Standby, arguments: list[str], output: str, status: int
) -> None:
    with Path(output).open("wb") as file:
        taken = standby.take(arguments, file.fileno())
        assert taken is not None
        assert filtered(taken, CORE[:10]) == status


def test_one_that_is_killed_tells_by_its_status(standby: Standby, tmp_path: Path) -> None:
    with (tmp_path / "core").open("wb") as file:
        taken = standby.take(ZSTD, file.fileno())
    assert taken is not None
    with taken:
        taken.kill()
        assert taken.wait() == -signal.SIGKILL


def test_one_that_died_before_is_done_without_and_replaced(
    standby: Standby, tmp_path: Path
) -> None:
    dead = process_of(standby)
    dead.kill()
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    open_before = descriptors()
    host = DumpHost(standby=standby)
    with (tmp_path / "core").open("wb") as file:
        started = host.start([ELF_FILTER, *ZSTD], file.fileno(), None)
        assert isinstance(started, subprocess.Popen)
        assert filtered(started, CORE) == 0
    assert descriptors() < open_before  # its socket is closed, and no more open
    host.renew()
    assert dead.returncode == -signal.SIGKILL  # nothing is left of it
    assert process_of(standby).poll() is None


def test_one_that_died_while_it_waited_is_replaced(standby: Standby) -> None:
    dead = process_of(standby)
    dead.kill()
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    standby.renew()
    assert process_of(standby).pid != dead.pid
    assert dead.returncode == -signal.SIGKILL


def test_the_next_one_stands_by_after_a_dump(standby: Standby, tmp_path: Path) -> None:
    first = process_of(standby)
    with (tmp_path / "core").open("wb") as file:
        taken = standby.take(ZSTD, file.fileno())
        assert standby.take(ZSTD, file.fileno()) is None  # one at a time
        assert taken is not None
        filtered(taken, CORE)
    standby.renew()
    assert first.returncode is not None  # it has been waited for
    assert process_of(standby).pid != first.pid
    standby.renew()
    assert process_of(standby).poll() is None  # one is enough


def test_no_message_is_cut_short(standby: Standby) -> None:
    with Path(os.devnull).open("wb") as file:
        assert standby.take(["zstd", "0", "x" * (4 << 20)], file.fileno()) is None


def test_a_message_longer_than_the_program_reads_is_no_shorter_dump(standby: Standby) -> None:
    with Path(os.devnull).open("wb") as file:
        taken = standby.take(["zstd", "0", "x" * MESSAGE, KDUMP], file.fileno())
        assert taken is not None
        assert filtered(taken, b"") == errno.EMSGSIZE


def test_nobody_waits_for_one_that_does_not_end(standby: Standby, tmp_path: Path) -> None:
    """A dead disk may hold a killed process; the next dump and whoever gives it up go on."""
    waits, goes_on = threading.Event(), threading.Event()

    class Held:
        def wait(self, _timeout: float) -> None:
            waits.set()
            assert goes_on.wait(GONE_WITHIN)

    standby._ends(cast("subprocess.Popen[bytes]", Held()))
    renewing = threading.Thread(target=standby.renew)
    renewing.start()
    try:
        assert waits.wait(GONE_WITHIN)
        assert standby._lock.acquire(timeout=0)
        standby._lock.release()
        with (tmp_path / "core").open("wb") as file:
            taken = standby.take(ZSTD, file.fileno())
        assert taken is not None
        assert filtered(taken, CORE) == 0
    finally:
        goes_on.set()
        renewing.join()


def test_dumps_at_once_leave_no_zombies(standby: Standby) -> None:
    """The second one to end finds that one stands by already."""
    with Path(os.devnull).open("wb") as file:
        first = standby.take(ZSTD, file.fileno())
        standby.renew()
        second = standby.take(ZSTD, file.fileno())
        assert first is not None
        assert second is not None
        filtered(first, CORE)
        standby.renew()
        filtered(second, CORE)
        standby.renew()
    assert second._process.returncode is not None


def test_one_that_is_stopped_does_not_outlive_it() -> None:
    with Standby() as made:
        made._is_wanted = True
        made.renew()
        process = process_of(made)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert process.returncode is not None


def test_what_was_started_too_late_is_let_go(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    start = dump_standby._start

    def start_at_the_end() -> tuple[subprocess.Popen[bytes], socket.socket]:
        standby.__exit__()
        made.append(start())
        return made[0]

    standby._let_go()
    monkeypatch.setattr(dump_standby, "_start", start_at_the_end)
    standby.renew()
    assert not is_there(standby)
    assert made[0][0].returncode is not None


def test_a_terminal_interrupts_panicd_only(standby: Standby) -> None:
    with Path(os.devnull).open("wb") as file:
        host = DumpHost()
        started = host.start([ELF_FILTER, *ZSTD], file.fileno(), None)
    assert isinstance(started, subprocess.Popen)
    for process in (process_of(standby), started):
        assert os.getpgid(process.pid) == process.pid
    assert filtered(started, CORE) == 0


def test_without_descriptors_nothing_is_lost(
    standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched, Path(os.devnull).open("wb") as file:
        patched.setattr(os, "pipe2", none_left)
        with pytest.raises(OSError, match="Too many"):
            standby.take(ZSTD, file.fileno())
    assert process_of(standby).poll() is None


def test_it_ends_with_panicd() -> None:
    """Whatever panicd dies of: nobody is left to stop it."""
    with subprocess.Popen(
        [sys.executable, "-c", LEFT_BEHIND], stdout=subprocess.PIPE, text=True
    ) as panicd:
        assert panicd.stdout is not None
        pid = int(panicd.stdout.readline())
        try:
            left = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # it has ended already
    try:
        assert select.select([left], [], [], GONE_WITHIN)[0]
    finally:
        os.close(left)


def test_it_says_nothing_when_panicd_is_gone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process, orders = dump_standby._start()
    source, target = os.pipe2(os.O_CLOEXEC)
    with (tmp_path / "core").open("wb") as file:
        said = SEPARATOR.join(ZSTD).encode()
        socket.send_fds(orders, [said], [source, file.fileno()])
    os.close(source)
    orders.close()
    os.close(target)
    assert process.wait(GONE_WITHIN) == 0
    assert capfd.readouterr().err == ""


def test_nobody_stands_by_unless_wanted() -> None:
    with Standby() as made:
        made.renew()
        assert not is_there(made)
        made.want()
        process = process_of(made)
    assert process.returncode is not None
    made.renew()
    assert not is_there(made)
