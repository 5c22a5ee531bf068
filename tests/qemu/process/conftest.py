import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.qemu.process.programs import SERVER, Program, Start


@pytest.fixture
def directory(socket_dir: Path) -> Path:
    return socket_dir


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

    def start(
        executable: Path,
        *arguments: str,
        before: str = "",
        then: str = "",
        path: Path | None = None,
    ) -> Program:
        path = path or directory / "monitor.sock"
        server = subprocess.Popen(
            [executable, "-c", SERVER, path, before, then, *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHOME": sys.base_prefix},
            process_group=0,
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
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)  # children too
        program.kill()
