"""What is kept of a panic besides a dump: taken before panicd changes anything, in a time budget.

Every item is best effort: if one is missing, the reason is noted, and nothing else is affected.
What a guest wrote (its screen, its console, its kernel log) is stored as data, as it is.

Everything is taken into memory: the action waits for no disk. ``bundle_writer`` writes it.
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
from panicd.evidence.qemu_view import QemuView
from panicd.evidence.screen import take_picture_by_libvirt
from panicd.host.timers import Timers
from panicd.libvirt.client import Client
from panicd.libvirt.errors import LibvirtError
from panicd.libvirt.memory import PeekReader
from panicd.libvirt.protocol import DomainRef
from panicd.qemu.dump_error import DumpByOther
from panicd.qemu.guest_memory import GuestReader, monitor_reader, read_words
from panicd.qemu.monitor import MonitorError
from panicd.qemu.process import Peer
from panicd.qemu.session import Session
from panicd.qemu.threads import in_thread
from panicd.rules.consoles import console_files
from panicd.rules.foreign_json import loads
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
from panicd.rules.qapi import printed

CONSOLE_KEPT: Final = 64 * 1024  # bytes of the console's end
WORDS_WITHIN: Final = 2.0  # seconds, by a monitor
LOG_WITHIN: Final = 5.0  # seconds, by libvirt; on a loaded machine it took half of one
LOG_LINES: Final = 512  # lines of the kernel log, the newest
THREADS: Final = 16
"""Threads that read one user's logs; nobody else misses those that hang."""

_READERS: Final = defaultdict[int, trio.CapacityLimiter](lambda: trio.CapacityLimiter(THREADS))
_PARSERS: Final = trio.CapacityLimiter(THREADS)  # of logs that are in memory: they do not hang
OWN_PART: Final = 0.25  # of the budget, reserved for what needs no QEMU
AN_ANSWER: Final = 16 * 1024  # bytes that QEMU's answers are taken to need in memory
MANIFEST: Final = "bundle.json"
SCREENS: Final = ("screen.png", "screen.ppm")
A_SCREEN: Final = "the guest's screen"


Content = bytes | Callable[[], bytes]
"""A file's content, or what makes it when it is written."""


@dataclass(slots=True)
class Bundle:
    """What was taken of one panic.

    Attributes:
        directory: where it is, or will be.
        files: what is in each file, by its name.
        problems: why an item is missing, by item.
        words: what the guest said of its panic.
        arguments: what its QEMU was started with; None: not known.
        host: the texts of the host's files; empty: they are read when the bundle is written.
        size: bytes in memory.
        unwritten: the files' contents, until they are written.
    """

    directory: Path
    files: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    words: LastWords = SILENCE
    arguments: tuple[str, ...] | None = None
    host: dict[str, str] = field(default_factory=dict)
    size: int = 0
    unwritten: dict[str, Content] = field(default_factory=dict)

    def keep(self, name: str, content: Content, what: str) -> None:
        """Take in a file.

        Args:
            name: of the file.
            content: of the file.
            what: describes it.
        """
        self.files[name] = what
        self.unwritten[name] = content
        self.size += AN_ANSWER if callable(content) else len(content)

    def take_in(self, other: "Bundle") -> None:
        """Take in what another bundle has."""
        self.files |= other.files
        self.problems |= other.problems
        self.words = self.words.or_better(other.words)
        self.host |= other.host
        self.size += other.size
        self.unwritten |= other.unwritten

    def write(self, facts: object, host: Callable[[], dict[str, str]]) -> None:
        """Write it, and last the list of everything. Blocking.

        A file that can't be written is a problem of its own, and does not affect the others.

        Args:
            facts: panicd's own facts, as JSON can hold them.
            host: returns the texts of the host's files.

        Raises:
            OSError: no list can be written, so nobody will find a bundle.
        """
        _make(self.directory)
        while self.unwritten:
            name, content = self.unwritten.popitem()
            try:
                _write(self.directory / name, content() if callable(content) else content)
            except OSError as error:
                del self.files[name]
                self.problems[name] = str(error)
        everything = {
            "panic_line": self.words.line,
            "signature": self.words.signature and asdict(self.words.signature),
            "files": self.files,
            "problems": self.problems,
            "facts": facts,
            "command_line": self.arguments,
            "host": self.host or host(),
        }
        _write(self.directory / MANIFEST, _json(everything))


Item = Callable[[Session, Bundle], Awaitable[None]]
"""Takes one item of evidence into a bundle."""

Stages = Sequence[Sequence[Sequence[tuple[str, Item]]]]
"""The items by their names. Stages follow each other, the lines of a stage run side by side, and
the items of a line follow in order."""


def begin_bundle(session: Session, directory: Path, no_log: str) -> Bundle:
    """Begin a bundle with what is known of a VM.

    Args:
        session: the VM.
        directory: where it will be written.
        no_log: why the kernel's log is not to be read from memory; empty: it is.
    """
    # A process that is no QEMU is not asked what it was started with.
    arguments = session.peer.command_line() if session.process_known else None
    return Bundle(directory, problems={"kernel log": no_log} if no_log else {}, arguments=arguments)


async def collect(
    session: Session,
    bundle: Bundle,
    *,
    consoles: tuple[Path, ...],
    budget: float,
    host: Callable[[], dict[str, str]] | None = None,
    items: Stages,
) -> None:
    """Take into memory what is available of a stopped guest, in the time given.

    Args:
        session: the VM.
        bundle: takes it in.
        consoles: logs of the guest's console.
        budget: seconds.
        host: returns the texts of the host's files; None: they are as good after the action.
        items: what is taken of the VM.
    """
    limit = trio.current_time() + budget

    async def take(line: Sequence[tuple[str, Item]]) -> None:
        for name, item in line:
            with trio.move_on_at(limit - budget * OWN_PART) as scope:
                try:
                    await item(session, bundle)
                except (MonitorError, LibvirtError, NotReadableError, OSError) as error:
                    bundle.problems[name] = str(error)
            if scope.cancelled_caught:
                bundle.problems[name] = f"not taken within {budget:g} s"

    async def take_all() -> None:
        for stage in items:
            if len(stage) == 1:
                await take(stage[0])
                continue
            async with trio.open_nursery() as lines:
                for line in stage:
                    lines.start_soon(take, line)

    own = Bundle(bundle.directory)

    async def take_own() -> None:
        read = Bundle(bundle.directory)  # a thread that hangs, on a network file system, keeps it
        with trio.move_on_at(limit) as scope:
            try:
                reading = partial(_read_own, read, bundle.arguments, consoles, session.peer, host)
                await in_thread(reading, _READERS[session.peer.uid])
            except OSError as error:
                own.problems["consoles"] = str(error)
            else:
                own.take_in(read)
        if scope.cancelled_caught:
            own.problems["consoles"] = f"not taken within {budget:g} s"

    if consoles or host or console_files(bundle.arguments or ()):
        async with trio.open_nursery() as beside:
            beside.start_soon(take_own)
            await take_all()
    else:
        await take_all()
    bundle.take_in(own)


def _read_own(
    bundle: Bundle,
    arguments: tuple[str, ...] | None,
    consoles: tuple[Path, ...],
    peer: Peer,
    host: Callable[[], dict[str, str]] | None,
) -> None:
    """Read the ends of the consoles' logs, and the host's files. Blocking."""
    logs = find_logs(consoles, peer, arguments, bundle.problems)
    for number, log in enumerate(logs):
        try:
            content = read_end(log, CONSOLE_KEPT)
        except OSError as error:
            bundle.problems[str(log.path)] = error.strerror or str(error)
            continue
        bundle.keep(f"console-{number}.log", content, str(log.path))
        bundle.words = bundle.words.or_better(words_of_console(content))
    if host is not None:
        bundle.host = host()


def by_monitor(
    timers: Timers, budget: float, by_other: DumpByOther | None, *, is_wanted: bool
) -> Stages:
    """Return what is taken by a monitor.

    If another one dumps, the guest's own words take that dump's time: they come last.
    """

    async def words(session: Session, bundle: Bundle) -> None:
        await _own_words(monitor_reader(session, WORDS_WITHIN, by_other), bundle)

    async def view(session: Session, bundle: Bundle) -> None:
        done = trio.Event()
        taken = QemuView(session, timers, asked=lambda: None, done=done.set)
        taken.begin(budget)
        try:
            await done.wait()
        finally:
            taken.give_up()
            take_view(bundle, taken)

    own: list[tuple[str, Item]] = [("kernel log", words)] if is_wanted else []
    rest: list[tuple[str, Item]] = [("QEMU's view", view)]
    return (([*own, *rest] if by_other is None else [*rest, *own],),)


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
            bundle.words = await in_thread(partial(words_of_log, log.lines), _PARSERS)
        case WindowsCrash(bug_check, build, processors):
            said = f"{bug_check.line}\nbuild: {build}\nprocessors: {processors}\n"
            bundle.keep("bug-check.txt", said.encode(), "Windows' bug check")
            bundle.words = words_of_bug_check(bug_check)


def take_view(bundle: Bundle, view: QemuView) -> None:
    """Take in QEMU's view of its guest."""
    if isinstance(view.picture, Exception):
        bundle.problems["screenshot"] = str(view.picture)
    else:
        bundle.keep(f"screen.{view.kind}", view.picture, A_SCREEN)
    if isinstance(view.registers, MonitorError):
        bundle.problems["registers"] = str(view.registers)
    else:
        text = printed(view.registers).encode(errors="replace")
        bundle.keep("registers.txt", text, "registers of all CPUs")
    said = {
        name: str(answer) if isinstance(answer, MonitorError) else answer
        for name, answer in view.state.items()
    }
    about = "QEMU's answers: its version, machine and jobs"
    bundle.keep("qemu.json", partial(_json, said), about)
    if isinstance(devices := view.devices, MonitorError):
        bundle.problems["block devices"] = str(devices)
    else:
        bundle.keep("block.json", lambda: json.dumps(devices).encode(), "QEMU's block devices")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the list of what was taken of a panic; None if nothing was, or it is damaged."""
    try:
        manifest: Any = loads((directory / MANIFEST).read_bytes())
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


def _write(path: Path, content: bytes) -> None:
    """Write a file completely, or leave none."""
    file = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
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
