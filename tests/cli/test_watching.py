"""``panicd status --watch`` in a terminal of 80 by 24: what somebody sees, and types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import pytest
import trio

from panicd.cli.watching import _BACK, _WINDOW
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.patience import patience

SIZE = struct.pack("HHHH", 24, 80, 0, 0)
FOOTER = "space, b: page   q: quit"
STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Window:
    """A command in a terminal, and what it has shown."""

    def __init__(self, terminal: int, process: subprocess.Popen[bytes]) -> None:
        self._terminal = terminal
        self._process = process
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def see(self, *wanted: str) -> list[str]:
        """Wait until a picture has all of this, and return its lines."""
        deadline = time.monotonic() + patience(30)
        while True:
            *pictures, _ = self.shown.split("\x1b[H")
            for picture in pictures[-3:]:
                text = STYLE.sub("", picture)
                if FOOTER in text and all(each in text for each in wanted):
                    return [line.removesuffix("\x1b[K") for line in text.split("\r\n")]
            assert self.read(deadline), self.shown

    def read(self, deadline: float) -> bool:
        ready, _, _ = select([self._terminal], [], [], deadline - time.monotonic())
        if not ready:
            return False
        try:
            self.shown += (more := os.read(self._terminal, 65536).decode())
        except OSError:  # EIO: nobody has it open any more (pty(7))
            return False
        return bool(more)

    def end(self) -> int:
        """Return the exit status, with the rest in what is shown."""
        deadline = time.monotonic() + patience(30)
        while self.read(deadline):
            pass
        return self._process.wait()


@contextmanager
def window(*command: str) -> Iterator[Window]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, SIZE)
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}

    def have_it() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY)

    process = subprocess.Popen(
        [sys.executable, "-m", "panicd", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm"},
        start_new_session=True,
        preexec_fn=have_it,  # noqa: PLW1509 - it makes one system call, and takes no lock
    )
    os.close(theirs)
    try:
        yield Window(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def look(config: str, end: str) -> None:
    with window("--config", config, "status", "--watch") as seen:
        first = seen.see("vm-00", "vm-17")
        assert len(first) <= 24
        assert first[0].startswith("30 domains: 1 preserved, 29 ready")
        assert first[2].split()[:2] == ["vm-29", "preserved"]
        assert "vm-20" not in "".join(first)
        seen.type(" ")
        second = seen.see("vm-20", "vm-28")
        assert "vm-00" not in "".join(second)
        assert "vm-29" not in "".join(second)
        seen.type("b")
        assert seen.see("vm-29", "vm-00")
        seen.type(end)
        assert seen.end() == 0
        assert "Traceback" not in seen.shown
        assert seen.shown.count(_WINDOW) == seen.shown.count(_BACK) == 1, "it is as it was before"


@pytest.mark.parametrize("end", ["q", "\x03"], ids=["q", "ctrl-c"])
async def test_window_fits_and_pages(socket_dir: Path, end: str) -> None:
    fleet = [FakeQemu(socket_dir / f"{n:02}.qmp", name=f"vm-{n:02}") for n in range(30)]
    async with DaemonInside.start(socket_dir) as daemon, trio.open_nursery() as nursery:
        for vm in fleet:
            await nursery.start(vm.run)
        for vm in fleet:
            await daemon.wait_armed(vm.machine.name)
        fleet[29].panic()
        await daemon.wait_incident("vm-29", state="preserved")
        await trio.to_thread.run_sync(look, str(daemon.config_file), end)
        nursery.cancel_scope.cancel()


def test_window_says_that_no_daemon_answers_and_goes_on(socket_dir: Path) -> None:
    with window("--socket", str(socket_dir / "none"), "status", "--watch") as seen:
        assert "can't reach panicd" in "".join(seen.see("can't reach"))
        seen.type("q")
        assert seen.end() == 0
