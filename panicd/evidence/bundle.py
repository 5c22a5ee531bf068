"""What is kept of a panic besides a dump: taken before panicd changes anything, in a time budget.

Every item is best effort: if one is missing, the reason is noted, and nothing else is affected.
What a guest wrote (its screen, its console, its kernel log) is stored as data, as it is.

QEMU's answers are kept in memory, several items at a time. One thread writes them at the end, so
that panicd waits for the disk once.

Source: QEMU's human monitor for ``info registers``; for the screen see ``screen``.
"""

import json
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from panicd.evidence.console_log import find_logs, read_end
from panicd.evidence.screen import Picture, take_picture, take_picture_by_libvirt
from panicd.libvirt.client import Client
from panicd.libvirt.errors import LibvirtError
from panicd.libvirt.memory import PeekReader
from panicd.libvirt.protocol import DomainRef
from panicd.qemu.dump_error import DumpByOther
from panicd.qemu.guest_memory import GuestReader, monitor_reader, read_words
from panicd.qemu.monitor import Command, MonitorError
from panicd.qemu.session import Session
from panicd.qemu.threads import in_thread
from panicd.rules.capability import Version
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows import WindowsCrash
from panicd.rules.kernel_log import KernelLog
from panicd.rules.last_words import (
    SILENCE,
    LastWords,
    words_of_bug_check,
    words_of_console,
    words_of_log,
)

PNG_SINCE: Final[Version] = (7, 1, 0)
ALL_REGISTERS_SINCE: Final[Version] = (2, 10, 0)
CONSOLE_KEPT: Final = 64 * 1024  # bytes of the console's end
WORDS_WITHIN: Final = 2.0  # seconds, by a monitor
LOG_WITHIN: Final = 5.0  # seconds, by libvirt; on a loaded machine it took half of one
STATE_WITHIN: Final = 2.0  # seconds, for registers, state and block devices
LOG_LINES: Final = 512  # lines of the kernel log, the newest
THREADS: Final = 16
"""Threads that write bundles of one user's domains; nobody else misses those that hang."""

_WRITERS: Final = defaultdict[int, trio.CapacityLimiter](lambda: trio.CapacityLimiter(THREADS))
_READERS: Final = trio.CapacityLimiter(THREADS)  # of logs that are in memory: they do not hang
OWN_PART: Final = 0.25  # of the budget, reserved for what needs no QEMU
HOST_FILES: Final = (
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/version",
)
PROCESS_FILES: Final = ("status", "cgroup", "oom_score", "oom_score_adj", "limits")
CGROUP_FILES: Final = (
    "memory.current",
    "memory.max",
    "memory.events",
    "memory.pressure",
    "cpu.pressure",
    "io.pressure",
)
CGROUPS: Final = "/sys/fs/cgroup"
HOST_FILE_KEPT: Final = 64 * 1024  # bytes; a single read(2) returns all of a file in /proc or /sys
QUERIES: Final = (
    "query-status",
    "query-version",
    "query-current-machine",
    "query-kvm",
    "query-cpus-fast",
    "query-memory-size-summary",
    "query-memory-devices",
    "query-balloon",
    "query-iothreads",
    "query-migrate",
    "query-chardev",
    "query-block-jobs",
    "query-blockstats",
)
# Asks the images too, and so may wait for storage: last, as QEMU answers nobody meanwhile.
BLOCK_QUERY: Final = "query-block"
MANIFEST: Final = "bundle.json"
SCREENS: Final = ("screen.png", "screen.ppm")
A_SCREEN: Final = "the guest's screen"


@dataclass(slots=True)
class Bundle:
    """What was taken of one panic.

    Attributes:
        directory: where it is, or will be.
        files: what is in each file, by its name.
        problems: why an item is missing, by item.
        words: what the guest said of its panic.
    """

    directory: Path
    files: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    words: LastWords = SILENCE
    _unwritten: dict[str, bytes | Picture] = field(default_factory=dict)

    def keep(self, name: str, content: bytes | Picture, what: str) -> None:
        """Take in something that ``write`` writes.

        Args:
            name: of its file.
            content: of the file.
            what: describes it.
        """
        self.files[name] = what
        self._unwritten[name] = content

    def write(self) -> None:
        """Write what was taken in since the last time. Blocking.

        A file that can't be written is a problem of its own, and does not affect the others.
        """
        while self._unwritten:
            name, content = self._unwritten.popitem()
            try:
                _write(self.directory / name, content)
            except OSError as error:
                del self.files[name]
                self.problems[name] = str(error)

    def copy(self) -> "Bundle":
        """Return a copy that others may change."""
        files, problems, unwritten = dict(self.files), dict(self.problems), dict(self._unwritten)
        return Bundle(self.directory, files, problems, self.words, unwritten)


Item = Callable[[Session, Bundle], Awaitable[None]]
"""Takes one item of evidence into a bundle."""

Stages = Sequence[Sequence[Sequence[tuple[str, Item]]]]
"""The items by their names. Stages follow each other, the lines of a stage run side by side, and
the items of a line follow in order."""


async def collect(
    session: Session,
    directory: Path,
    *,
    consoles: tuple[Path, ...],
    facts: Callable[[], object],
    budget: float,
    by_other: DumpByOther | None = None,
    no_log: str = "",
    items: Stages | None = None,
) -> Bundle:
    """Take what is available of a stopped guest, and of its host, in the time given.

    Args:
        session: the VM.
        directory: where to write it; it is made, with mode 0700.
        consoles: logs of the guest's console.
        facts: returns panicd's own facts, the panic's payload and the decision, as JSON can hold
            them. It is called in a thread.
        budget: seconds.
        by_other: has QEMU dump, if libvirt runs the VM.
        no_log: why the kernel's log is not to be read from memory; empty: it is.
        items: what is taken of a VM that has no monitor for panicd; None: by its monitor.
    """
    bundle = Bundle(directory)
    limit = trio.current_time() + budget
    if items is None:
        items = _by_monitor(by_other, is_wanted=not no_log)
    if no_log:
        bundle.problems["kernel log"] = no_log

    async def take(line: Sequence[tuple[str, Item]]) -> None:
        for name, item in line:
            with trio.move_on_at(limit - budget * OWN_PART) as scope:
                try:
                    await item(session, bundle)
                except (MonitorError, LibvirtError, NotReadableError, OSError) as error:
                    bundle.problems[name] = str(error)
            if scope.cancelled_caught:
                bundle.problems[name] = f"not taken within {budget:g} s"

    for stage in items:
        async with trio.open_nursery() as nursery:
            for line in stage:
                nursery.start_soon(take, line)
    with trio.move_on_at(limit):
        # A thread that hangs, on a network file system, is abandoned with a bundle of its own.
        own = bundle.copy()
        try:
            keep = partial(_keep, own, consoles, facts, session)
            await in_thread(keep, _WRITERS[session.peer.uid])
        except OSError as error:
            bundle.problems["bundle"] = str(error)
            return bundle
        return own
    bundle.problems["bundle"] = f"not written within {budget:g} s"
    return bundle


def _by_monitor(by_other: DumpByOther | None, *, is_wanted: bool) -> Stages:
    """Return what is taken by a monitor.

    If another one dumps, the guest's own words take that dump's time: they come last.
    """

    async def words(session: Session, bundle: Bundle) -> None:
        await _own_words(monitor_reader(session, WORDS_WITHIN, by_other), bundle)

    own: list[tuple[str, Item]] = [("kernel log", words)] if is_wanted else []
    first, last = (own, []) if by_other is None else ([], own)
    return (
        ([*first, ("screenshot", _screenshot)],),
        ([("registers and state", _registers_and_state), *last],),
    )


def by_libvirt(client: Client, domain: DomainRef, *, is_wanted: bool) -> Stages:
    """Return what is taken of a domain by libvirt's API.

    Args:
        client: of the libvirt.
        domain: the domain, and its present start.
        is_wanted: whether the kernel's log is wanted.
    """

    async def picture(_session: Session, bundle: Bundle) -> None:
        taken, kind = await take_picture_by_libvirt(client, domain)
        bundle.keep(f"screen.{kind}", taken, A_SCREEN)

    async def words(_session: Session, bundle: Bundle) -> None:
        await _own_words(PeekReader(client, domain, trio.current_time() + LOG_WITHIN), bundle)

    own: list[tuple[str, Item]] = [("kernel log", words)] if is_wanted else []
    return (([("screenshot", picture), *own],),)  # in this order, because libvirt takes its time


async def _own_words(reader: GuestReader, bundle: Bundle) -> None:
    match await read_words(reader, LOG_LINES):
        case KernelLog() as log:
            bundle.keep("kernel.log", _as_text(log), "the end of the guest's kernel log")
            # This takes some milliseconds, in which others get responses.
            bundle.words = await in_thread(partial(words_of_log, log.lines), _READERS)
        case WindowsCrash(bug_check, build, processors):
            said = f"{bug_check.line}\nbuild: {build}\nprocessors: {processors}\n"
            bundle.keep("bug-check.txt", said.encode(), "Windows' bug check")
            bundle.words = words_of_bug_check(bug_check)


async def _screenshot(session: Session, bundle: Bundle) -> None:
    name = SCREENS[0 if session.capability.version >= PNG_SINCE else 1]
    bundle.keep(name, await take_picture(session, Path(name).suffix.removeprefix(".")), A_SCREEN)


async def _registers_and_state(session: Session, bundle: Bundle) -> None:
    """Ask QEMU all questions together; it answers them in this order."""
    every = session.capability.version >= ALL_REGISTERS_SINCE
    command = "info registers -a" if every else "info registers"
    asked: list[Command] = [("human-monitor-command", {"command-line": command})]
    asked += [(name, {}) for name in (*QUERIES, BLOCK_QUERY)]
    answers = await session.monitor.execute_all(asked, timeout=STATE_WITHIN)
    registers, *state, devices = answers
    if isinstance(registers, MonitorError):
        bundle.problems["registers"] = str(registers)
    else:
        text = str(registers).encode(errors="replace")
        bundle.keep("registers.txt", text, "registers of all CPUs")
    said = {
        name: str(answer) if isinstance(answer, MonitorError) else answer
        for name, answer in zip(QUERIES, state, strict=True)
    }
    bundle.keep("qemu.json", _json(said), "QEMU's answers: its version, machine and jobs")
    if isinstance(devices, MonitorError):
        bundle.problems["block devices"] = str(devices)
    else:
        bundle.keep("block.json", json.dumps(devices).encode(), "QEMU's block devices")


def _keep(
    bundle: Bundle, consoles: tuple[Path, ...], facts: Callable[[], object], session: Session
) -> None:
    """Write what was taken, what needs no QEMU, and the list of everything. Blocking."""
    _make(bundle.directory)
    # A process that is no QEMU is not asked what it was started with.
    arguments = session.peer.command_line() if session.process_known else None
    logs = find_logs(consoles, session.peer, arguments, bundle.problems)
    for number, log in enumerate(logs):
        try:
            content = read_end(log, CONSOLE_KEPT)
        except OSError as error:
            bundle.problems[str(log.path)] = error.strerror or str(error)
            continue
        bundle.keep(f"console-{number}.log", content, str(log.path))
        bundle.words = bundle.words.or_better(words_of_console(content))
    bundle.write()
    everything = {
        "panic_line": bundle.words.line,
        "signature": bundle.words.signature and asdict(bundle.words.signature),
        "files": bundle.files,
        "problems": bundle.problems,
        "facts": facts(),
        "command_line": arguments,
        "host": _host(session.peer.pid),
    }
    _write(bundle.directory / MANIFEST, _json(everything))
    bundle.files[MANIFEST] = "the list of all this, and the host's load"


def _host(pid: int) -> dict[str, str]:
    """Return what the kernel says of the host's load, of QEMU's process and of its cgroup."""
    paths = list(HOST_FILES)
    if pid:
        process = f"/proc/{pid}"
        paths += [f"{process}/{name}" for name in PROCESS_FILES]
        cgroup = _text_of(f"{process}/cgroup").partition("0::/")[2].partition("\n")[0]
        if cgroup and ".." not in cgroup.split("/"):
            paths += [f"{CGROUPS}/{cgroup}/{name}" for name in CGROUP_FILES]
    return {path: _text_of(path) for path in paths}


def _text_of(path: str) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, HOST_FILE_KEPT).decode(errors="replace")
        finally:
            os.close(file)
    except OSError as error:
        return error.strerror or str(error)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the list of what was taken of a panic; None if nothing was, or it is damaged."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(manifest, dict) and all(
        isinstance(manifest.get(key), dict) for key in ("files", "problems")
    )
    return manifest if sound else None


def _json(value: Mapping[str, object]) -> bytes:
    """Return a line for each key: by hand, as Python indents without its fast encoder."""
    lines = (f"{json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, content: bytes | Picture) -> None:
    """Write a file completely, or leave none."""
    file = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        if isinstance(content, Picture):
            content.write_to(file)
        else:
            _write_all(file, content)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(file)


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _as_text(log: KernelLog) -> bytes:
    lines = (f"[{line.timestamp:12.6f}] {line.text}" for line in log.lines)
    return "\n".join(lines).encode(errors="replace") + b"\n"
