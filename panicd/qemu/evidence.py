"""What is kept of a panic besides a dump: taken before anything is changed, inside a time budget.

Every item is best effort: what can't be had is noted with its reason and is never in the way. What
a guest wrote (its screen, its console, its kernel log) is stored as data, as it is.

Source: QAPI ``screendump`` (``qapi/ui.json``), ``add-fd`` (``qapi/misc.json``), and QEMU's human
monitor for ``info registers``.
"""

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from panicd.qemu.guest_memory import read_kernel_log
from panicd.qemu.monitor import MonitorError
from panicd.qemu.session import Session
from panicd.rules.capability import Version
from panicd.rules.kernel_log import KernelLog, NotReadableError, panic_line

PNG_SINCE: Final[Version] = (7, 1, 0)
ALL_REGISTERS_SINCE: Final[Version] = (2, 10, 0)
FDSETS_SINCE: Final[Version] = (1, 3, 0)
CONSOLE_KEPT: Final = 64 * 1024  # bytes of the console's end
LOG_LINES: Final = 60  # lines of the kernel log, the newest
HOST_FILES: Final = (
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/version",
)
QUERIES: Final = ("query-status", "query-cpus-fast", "query-block", "query-version")
MANIFEST: Final = "bundle.json"
SCREENS: Final = ("screen.png", "screen.ppm")


@dataclass(slots=True)
class Bundle:
    """What was taken of one panic.

    Attributes:
        directory: where it lies.
        files: what is in each file, by its name.
        problems: why an item is missing, by item.
        panic_line: the line of the guest's kernel log that says why; empty where it is not known.
    """

    directory: Path
    files: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    panic_line: str = ""


async def collect(
    session: Session, directory: Path, *, consoles: tuple[Path, ...], facts: object, budget: float
) -> Bundle:
    """Take what can be had of a stopped guest, and of its host, in the time given.

    Args:
        session: the VM.
        directory: where to; it is made, with mode 0700.
        consoles: logs of the guest's console.
        facts: panicd's own: the panic's payload, the decision; what JSON can hold.
        budget: seconds.
    """
    bundle = Bundle(directory)
    items: dict[str, Callable[[Session, Bundle], Awaitable[None]]] = {
        "kernel log": _kernel_log,
        "screenshot": _screenshot,
        "registers": _registers,
        "state": _state,
    }
    limit = trio.current_time() + budget
    if session.by_libvirt:
        del items["kernel log"]
        bundle.problems["kernel log"] = "libvirt runs this VM, and its 9.0 dies of foreign dumps"
    try:
        await trio.to_thread.run_sync(_make, directory)
    except OSError as error:
        bundle.problems["bundle"] = str(error)
        return bundle
    for name, take in items.items():
        with trio.move_on_at(limit) as scope:
            try:
                await take(session, bundle)
            except (MonitorError, NotReadableError, OSError) as error:
                bundle.problems[name] = str(error)
        if scope.cancelled_caught:
            bundle.problems[name] = f"not taken within {budget:g} s"
    with trio.move_on_after(budget, shield=False):
        await trio.to_thread.run_sync(
            _keep_the_rest, bundle, consoles, facts, session.peer.command_line()
        )
    return bundle


async def _kernel_log(session: Session, bundle: Bundle) -> None:
    log = await read_kernel_log(session, lines=LOG_LINES, timeout=2.0)
    bundle.panic_line = panic_line(log.lines)
    _write(bundle, "kernel.log", _as_text(log), "the end of the guest's kernel log")


async def _screenshot(session: Session, bundle: Bundle) -> None:
    png = session.capability.version >= PNG_SINCE
    name = SCREENS[0 if png else 1]
    path = bundle.directory / name
    # QEMU need not be able to write here: it is handed the open file (/dev/fdset, qemu(1)).
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        answer = await session.monitor.execute_with_fd("add-fd", {}, file, timeout=2.0)
        fdset = answer.get("fdset-id") if isinstance(answer, dict) else None
        try:
            arguments: dict[str, object] = {"filename": f"/dev/fdset/{fdset}"}
            await session.execute("screendump", arguments | ({"format": "png"} if png else {}))
        finally:
            await session.execute("remove-fd", {"fdset-id": fdset})
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(file)
    bundle.files[name] = "the guest's screen"


async def _registers(session: Session, bundle: Bundle) -> None:
    every = session.capability.version >= ALL_REGISTERS_SINCE
    command = "info registers -a" if every else "info registers"
    text = await session.execute("human-monitor-command", {"command-line": command})
    _write(bundle, "registers.txt", str(text).encode(errors="replace"), "registers of all CPUs")


async def _state(session: Session, bundle: Bundle) -> None:
    answers = await session.monitor.execute_all([(name, {}) for name in QUERIES], timeout=2.0)
    said = {
        name: str(answer) if isinstance(answer, MonitorError) else answer
        for name, answer in zip(QUERIES, answers, strict=True)
    }
    _write(bundle, "qemu.json", json.dumps(said, indent=1).encode(), "QEMU's answers")


def _keep_the_rest(
    bundle: Bundle,
    consoles: tuple[Path, ...],
    facts: object,
    command_line: tuple[str, ...] | None,
) -> None:
    """Keep what needs no QEMU, and the list of it all. Blocking."""
    for number, console in enumerate(consoles):
        try:
            with console.open("rb") as log:
                log.seek(max(0, console.stat().st_size - CONSOLE_KEPT))
                _write(bundle, f"console-{number}.log", log.read(CONSOLE_KEPT), str(console))
        except OSError as error:
            bundle.problems[str(console)] = str(error)
    host = {}
    for name in HOST_FILES:
        try:
            host[name] = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            host[name] = str(error)
    everything = {
        "panic_line": bundle.panic_line,
        "files": bundle.files,
        "problems": bundle.problems,
        "facts": facts,
        "command_line": command_line,
        "host": host,
    }
    _write(bundle, MANIFEST, json.dumps(everything, indent=1).encode(), "the list of all this")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the list of what was taken of a panic; None where nothing was, or it is broken."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(manifest, dict) and all(
        isinstance(manifest.get(key), dict) for key in ("files", "problems")
    )
    return manifest if sound else None


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(bundle: Bundle, name: str, content: bytes, what: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(bundle.directory / name, flags, 0o600), "wb") as file:
        file.write(content)
    bundle.files[name] = what


def _as_text(log: KernelLog) -> bytes:
    lines = (f"[{line.timestamp:12.6f}] {line.text}" for line in log.lines)
    return "\n".join(lines).encode(errors="replace") + b"\n"
