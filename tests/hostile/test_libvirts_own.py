"""libvirt's own monitors are left alone, whatever a glob or an operator says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from panicd.cli import main
from tests.parts.daemon import RunningDaemon

OWN = "libvirt's own monitor, which takes one client"

# A program that says of each connection that there was one.
LISTENER = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1] + ".new")
server.listen()
os.rename(sys.argv[1] + ".new", sys.argv[1])  # nobody sees it before it listens
connections = []
while True:
    print("listens", flush=True)
    connections.append(server.accept())
"""


async def test_a_socket_of_its_layout_is_never_connected_to(socket_dir: Path) -> None:
    directory = socket_dir / "domain-1-vm"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(directory / "monitor.sock"))
        own.listen()
        own.setblocking(False)
        monitors = [{"glob": f"{socket_dir}/domain-*/*.sock"}]
        async with RunningDaemon.start(socket_dir, monitors=monitors) as daemon:
            told = await daemon.wait_log("monitor is not connected")
            assert told["reason"].startswith(OWN)
            (domain,) = (await daemon.call("status"))["domains"]
            assert domain["problem"].startswith(OWN)
            probed = await trio.to_thread.run_sync(
                partial(
                    CliRunner().invoke,
                    main,
                    ["--config", str(daemon.config_file), "probe", domain["monitor"]],
                )
            )
            assert probed.exit_code == 1
            assert OWN in probed.output
        with pytest.raises(BlockingIOError):
            own.accept()


@pytest.fixture
def virtqemud(tmp_path: Path) -> Path:
    """An interpreter that is called like libvirt."""
    return Path(shutil.copy(Path(sys.executable).resolve(), tmp_path / "virtqemud"))


async def test_one_that_libvirt_listens_on_itself_is_left_at_once(
    socket_dir: Path, virtqemud: Path
) -> None:
    """It hands QEMU the socket: then the kernel names libvirt as who listens."""
    async with (
        RunningDaemon.start(socket_dir) as daemon,
        trio.open_nursery() as nursery,
    ):
        listener: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [virtqemud, "-c", LISTENER, str(socket_dir / "vm.qmp")],
                stdout=subprocess.PIPE,
                check=False,
                env={**os.environ, "PYTHONHOME": sys.base_prefix},
            )
        )
        told = await daemon.wait_log("monitor is not connected")
        assert told["reason"].startswith(OWN)
        await daemon.call("reload")
        listener.terminate()
        assert listener.stdout is not None
        said = b"".join([part async for part in listener.stdout])
        assert said.count(b"listens") == 2, "one connection, and none after it"


@pytest.mark.parametrize(
    ("pattern", "warned"),
    [
        ("/var/lib/libvirt/qemu/domain-*/monitor.sock", True),
        ("/var/lib/libvirt/qemu/*/*.sock", True),
        ("/var/lib/libvirt/qemu/*.qmp", False),
        ("/run/qemu/*.qmp", False),
    ],
)
def test_check_says_so(tmp_path: Path, pattern: str, warned: bool) -> None:
    file = tmp_path / "panicd.yaml"
    file.write_text(f"monitors:\n  - glob: {pattern}\n")
    done = CliRunner().invoke(main, ["--config", str(file), "check"])
    assert done.exit_code == 0
    assert ("matches libvirt's own monitors" in done.output) is warned
