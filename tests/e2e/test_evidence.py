"""What is kept of a panic besides a dump, on real guests."""

from __future__ import annotations

import json
import stat
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.linux import Kernel, linux_guest
from tests.parts.patience import patiently
from tests.parts.png import light_rows
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

LAST_WORDS = b"\x1b[31mlast words\xff\n"
WORDS = "Kernel panic - not syncing: sysrq triggered crash"


def keeping(console: Path | None = None, **policy: Any) -> dict[str, Any]:
    evidence: dict[str, Any] = {"budget": patiently(5)}
    if console is not None:
        evidence["consoles"] = [str(console)]
    return {"evidence": evidence, **policy}


def kept_of_linux(directory: Path) -> None:
    """Assert what lies in the bundle of the Linux guest."""
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    files = {path.name for path in directory.iterdir()}
    assert {"kernel.log", "registers.txt", "qemu.json", "block.json", "bundle.json"} <= files
    assert WORDS in (directory / "kernel.log").read_text()
    assert "RIP=" in (directory / "registers.txt").read_text()
    bundle = json.loads((directory / "bundle.json").read_text())
    assert bundle["facts"]["decision"]["reason"] == "on-crash"
    assert [step["step"] for step in bundle["facts"]["decision"]["steps"]][-1] == "Cont"
    assert {"/proc/loadavg", "/proc/meminfo", "/proc/pressure/memory"} <= set(bundle["host"])
    assert any("VmRSS:" in text for text in bundle["host"].values())
    machine = json.loads((directory / "qemu.json").read_text())
    assert machine["query-status"]["status"] == "guest-panicked"
    assert "qemu" in machine["query-version"]


def kept_of_boot_sector(directory: Path) -> None:
    """Assert what lies in the bundle of a guest that has a screen and no kernel."""
    screen = directory / "screen.png"
    assert screen.read_bytes().startswith(b"\x89PNG")
    assert stat.S_IMODE(screen.stat().st_mode) == 0o600
    assert (directory / "console-0.log").read_bytes() == LAST_WORDS
    bundle = json.loads((directory / "bundle.json").read_text())
    assert "kernel log" in bundle["problems"]
    assert bundle["facts"]["domain"] == "vm"
    assert bundle["command_line"][0].endswith("qemu-system-x86_64")


@pytest.mark.linux
async def test_incident_has_the_panics_own_words(socket_dir: Path, linux_kernel: Kernel) -> None:
    policy = keeping(on_crash="restart")
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=120.0) as daemon,
        linux_guest(socket_dir, linux_kernel, devices=["pvpanic"], paused=True) as guest,
    ):
        await daemon.wait_armed("linux")
        await guest.vm.start_guest()
        found = await daemon.wait_incident("linux", ending="restarted")
        await daemon.wait_kept(found)
        incident: Any = await daemon.call("incident", incident=found.id)
        assert incident["panic_line"] == WORDS
        kept_of_linux(Path(incident["evidence_directory"]))


@pytest.mark.linux
async def test_incident_of_linux_is_shown_and_exported_whole(
    socket_dir: Path, linux_kernel: Kernel
) -> None:
    policy = keeping(on_crash="coredump-restart")
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=120.0) as daemon,
        linux_guest(socket_dir, linux_kernel, screen=True, paused=True) as guest,
    ):
        await daemon.wait_armed("linux")
        await guest.vm.start_guest()
        found = await daemon.wait_incident("linux", ending="restarted")
        await daemon.wait_kept(found)
        incident: Any = await daemon.call("incident", incident=found.id)
        (told,) = daemon.logged("panic line", incident=found.id)
        assert told["panic_line"] == WORDS

        rows = light_rows(Path(incident["screenshot"]))
        written = [number for number, count in enumerate(rows) if count > 10]
        assert len(written) > len(rows) // 4  # lines of text, and not an empty or a bright screen
        assert max(rows) < 720
        assert WORDS in (Path(incident["evidence_directory"]) / "console-0.log").read_text()

        shown = await command(daemon, "incident", found.id)
        assert shown.splitlines()[0] == WORDS
        assert f"Screenshot  {incident['screenshot']}" in shown
        archive = socket_dir / "incident.tar.gz"
        await command(daemon, "export", found.id, "-o", str(archive))
        with tarfile.open(archive) as packed:
            names = {name.removeprefix(f"panicd-{found.id}/") for name in packed.getnames()}
        assert {"record.json", "timeline.txt", "bundle/screen.png", "bundle/kernel.log"} <= names
        assert any(name.startswith("dump/") for name in names)


async def command(daemon: RunningDaemon, *arguments: str) -> str:
    """Run a command of panicd's, and return what it prints."""
    whole = [sys.executable, "-m", "panicd", "--config", str(daemon.config_file), *arguments]
    return (await trio.run_process(whole, capture_stdout=True)).stdout.decode()


async def test_evidence_of_a_guest_without_words_is_taken_all_the_same(socket_dir: Path) -> None:
    console = socket_dir / "console.log"
    await trio.Path(console).write_bytes(LAST_WORDS)
    async with (
        RunningDaemon.start(socket_dir, keeping(console, on_crash="destroy")) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=("-device", "VGA")) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        found = await daemon.wait_incident("vm", ending="destroyed")
        await daemon.wait_kept(found)
        incident: Any = await daemon.call("incident", incident=found.id)
        assert incident["panic_line"] == ""
        kept_of_boot_sector(Path(incident["evidence_directory"]))


async def test_a_reset_comes_after_all_that_qemu_was_asked_for(socket_dir: Path) -> None:
    """panicd gives it before QEMU has answered, and QEMU deals with commands in their order."""
    extra = ("-device", "VGA,xres=1920,yres=1080")
    async with (
        RunningDaemon.start(socket_dir, keeping(on_crash="restart")) as daemon,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, extra=extra) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        found = await daemon.wait_incident("vm", ending="restarted")
        incident: Any = {"evidence": None}
        while incident["evidence"] is None:
            incident = await daemon.call("incident", incident=found.id)
        assert incident["evidence"]["problems"] == {"kernel log": "the VM has no vmcoreinfo device"}
        kept = trio.Path(incident["evidence_directory"])
        assert (await (kept / "screen.png").read_bytes()).startswith(b"\x89PNG")
        assert "IP=" in await (kept / "registers.txt").read_text()
        machine = json.loads(await (kept / "qemu.json").read_text())
        assert machine["query-status"]["status"] == "guest-panicked"
