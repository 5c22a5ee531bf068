"""What proves that a policy was carried out, seen without panicd's help."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from panicd.demo.dump_file import read_elf_memory
from panicd.demo.guests import COUNTER_ADDRESS
from panicd.demo.qemu import Watched
from panicd.demo.qmp import connect_qmp
from panicd.demo.scene import Proof, Scene, UnprovenError

COREDUMPS: Final = "coredumps"
RELAUNCHED_WITNESS: Final = ".witness"
"""Suffix of the second monitor of a QEMU that panicd's relaunch command started."""

_COUNTER_SIZE: Final = 4
_EXIT_WORDS: Final = {0: "exit status 0", -9: "ended by SIGKILL", -15: "ended by SIGTERM"}


def process_gone(status: int) -> Proof:
    """QEMU's process is gone, with this exit status, negative for a signal."""

    async def proof(scene: Scene) -> str:
        await scene.wait_gone()
        _expect("exit status", scene.vm.returncode, status)
        return f"process {scene.vm.pid} is gone, {_EXIT_WORDS[status]}"

    return proof


async def stays_panicked(scene: Scene) -> str:
    """The guest stays stopped where it panicked."""
    first = await scene.vm.counter()
    _expect("run state", await scene.vm.status(), "guest-panicked")
    _expect("counter", await scene.vm.counter(), first)
    return f"run state guest-panicked; its counter stands still at {first:,}"


async def runs(scene: Scene) -> str:
    """The guest runs: not only QEMU says so, it counts."""
    return await _runs(scene.vm)


async def relaunched(scene: Scene) -> str:
    """Another QEMU runs the guest now."""
    witness = scene.directory / f"{scene.case.name}{RELAUNCHED_WITNESS}"
    pid = int(scene.relaunched_pid_file.read_text())
    async with connect_qmp(witness) as monitor:
        return f"a new process {pid}: {await _runs(Watched(monitor))}"


async def was_reset(scene: Scene) -> str:
    """The machine was reset once, and resumed once after that."""
    await scene.vm.wait_event("RESUME", since=scene.began)
    changes = [e["event"] for e in scene.events if e["event"] in {"RESET", "RESUME"}]
    _expect("events", changes, ["RESET", "RESUME"])
    return "one RESET, then one RESUME"


async def was_resumed(scene: Scene) -> str:
    """The guest was resumed once, and not reset."""
    await scene.vm.wait_event("RESUME", since=scene.began)
    changes = [e["event"] for e in scene.events if e["event"] in {"RESET", "RESUME"}]
    _expect("events", changes, ["RESUME"])
    return "one RESUME, no RESET"


async def never_stopped(scene: Scene) -> str:
    """The guest was not stopped for a moment."""
    _expect("events", [event["event"] for event in scene.events], ["GUEST_PANICKED"])
    return "no STOP: it was never stopped"


async def compressed_dump(scene: Scene) -> str:
    """There is a complete ELF core, compressed."""
    path = _dump(scene)
    memory = read_elf_memory(path, COUNTER_ADDRESS, _COUNTER_SIZE)
    counter = int.from_bytes(memory, "little")
    return f"{_described(scene, path)}: an ELF core, with the guest's counter at {counter:,}"


async def elf_dump(scene: Scene) -> str:
    """There is a complete ELF core, with the stopped guest's memory in it."""
    path = _dump(scene)
    memory = read_elf_memory(path, COUNTER_ADDRESS, _COUNTER_SIZE)
    counter = await scene.vm.counter()
    _expect("counter in the dump", int.from_bytes(memory, "little"), counter)
    return f"{_described(scene, path)}: an ELF core, with the guest's counter at {counter:,}"


async def unseen(scene: Scene) -> str:
    """Nothing is left that panicd could connect to."""
    if scene.vm.socket.exists():
        raise UnprovenError("its monitor is still there")
    return "its monitor is gone with it, so panicd can't know of it"


async def _runs(vm: Watched) -> str:
    first = await vm.counter()
    await vm.wait_counting()
    _expect("run state", await vm.status(), "running")
    return f"run state running; its counter goes on: {first:,} … {await vm.counter():,}"


def _dump(scene: Scene) -> Path:
    folder = scene.directory / COREDUMPS / str(os.geteuid()) / scene.case.name
    files = list(folder.iterdir()) if folder.exists() else []
    if len(files) != 1 or files[0].suffix not in {".elf", ".zst"}:
        raise UnprovenError(f"no finished dump in {folder}, but {[file.name for file in files]}")
    _expect("mode", f"{stat.S_IMODE(files[0].stat().st_mode):o}", "600")
    return files[0]


def _described(scene: Scene, path: Path) -> str:
    return f"{path.relative_to(scene.directory)}, {path.stat().st_size:,} bytes"


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise UnprovenError(f"{what}: expected {expected}, found {found}")
