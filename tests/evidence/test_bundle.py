"""Evidence is taken within its budget, whatever hangs."""

from __future__ import annotations

import os
import re
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from panicd.evidence import bundle as evidence
from panicd.evidence.console_log import find_logs
from panicd.evidence.qemu_view import BLOCK_QUERY, QUERIES
from panicd.qemu import monitor
from panicd.qemu.process import Peer
from tests.parts.daemon import DaemonInside
from tests.parts.dump_files import PNG
from tests.parts.fake import FakeQemu
from tests.parts.nobody import NOBODY, needs_root
from tests.parts.patience import patiently


@pytest.mark.parametrize("action", ["restart", "preserve"])  # the latter waits for the disk
@pytest.mark.parametrize("hanging", ["find_logs", "_make"])
async def test_file_system_that_hangs_keeps_nobody_from_anything(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, hanging: str, action: str
) -> None:
    let_go = threading.Event()

    def hang(*_arguments: Any) -> list[Any]:
        let_go.wait()
        return []

    monkeypatch.setattr(evidence, hanging, hang)
    consoles = [str(socket_dir / "console")]
    policy = {"on_crash": action, "evidence": {"budget": "200ms", "consoles": consoles}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    try:
        async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
            await daemon.wait_armed("vm")
            vm.panic()
            restarted = action == "restart"
            incident = await daemon.wait_incident(
                "vm", ending="restarted" * restarted, state="preserved" * (not restarted)
            )
            assert ("Collect", "done") in incident.steps
            let_go.set()
    finally:
        let_go.set()


@needs_root
async def test_file_system_that_hangs_costs_its_user_s_evidence_only(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def hang(configured: Any, peer: Peer, *more: Any) -> list[Any]:
        if peer.uid == NOBODY:
            let_go.wait()
        return find_logs(configured, peer, *more)

    monkeypatch.setattr(evidence, "find_logs", hang)
    one_each = defaultdict[int, trio.CapacityLimiter](lambda: trio.CapacityLimiter(1))
    monkeypatch.setattr(evidence, "_READERS", one_each)
    consoles = [str(socket_dir / "console")]
    policy = {"on_crash": "restart", "evidence": {"budget": "2s", "consoles": consoles}}
    hostile = FakeQemu(socket_dir / "hostile.qmp", name="hostile", uid=NOBODY)
    vm = FakeQemu(socket_dir / "vm.qmp")
    try:
        async with (
            DaemonInside.start(socket_dir, policy) as daemon,
            hostile.running(),
            vm.running(),
        ):
            for fake, name in ((hostile, "hostile"), (vm, "vm")):
                await daemon.wait_armed(name)
                fake.panic()
                incident = await daemon.wait_incident(name, ending="restarted")
            record: Any = await daemon.call("incident", incident=incident.id)
            problem = record["evidence"]["problems"][consoles[0]]
            assert problem == "No such file or directory"  # it was looked for
    finally:
        let_go.set()


async def test_panic_s_words_are_found_on_the_console(socket_dir: Path) -> None:
    console = socket_dir / "console"
    console.write_bytes(b"[    1.000000] Kernel panic - not syncing: VFS\x07\r\n")
    policy = {"on_crash": "restart", "evidence": {"budget": "3s", "consoles": [str(console)]}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic({"type": "s390", "core": 1, "psw-mask": 1, "psw-addr": 2, "reason": "pgmint-loop"})
        incident = await daemon.wait_incident("vm", ending="restarted")
        *_, told = daemon.logged("panic line", incident=incident.id)  # the payload says less, first
        assert told["panic_line"] == r"Kernel panic - not syncing: VFS\x07"
        record: Any = await daemon.call("incident", incident=incident.id)
        assert record["panic_line"] == told["panic_line"]
        facts = record["evidence"]["facts"]
        assert facts["payload"]["summary"].startswith("s390 core 1 has crashed")
        assert facts["decision"]["reason"] == "on-crash"
        assert "/proc/pressure/memory" in record["evidence"]["host"]


async def test_console_is_looked_for_in_the_arguments_of_a_qemu_only(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process, which may read it, is none; so its arguments name no console's log."""
    console = socket_dir / "console"
    console.write_text("secret")
    arguments = ("qemu-system-x86_64", "-serial", f"file:{console}")
    monkeypatch.setattr(Peer, "command_line", lambda _peer: arguments)
    policy = {"on_crash": "preserve", "evidence": {"budget": "3s"}}
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(incident)
        kept = socket_dir / "state" / "incidents" / incident.id
        assert not [file.name for file in kept.iterdir() if b"secret" in file.read_bytes()]


class Painter:
    """A QEMU that does what it likes to what it is handed for its screen.

    Args:
        what: It writes this first.
        length: And then it makes of it, if it can, a file of so many bytes.
    """

    def __init__(self, what: bytes, length: int = 0) -> None:
        self._what = what
        self._length = length
        self.kept = -1

    def draw(self, file: int, _picture: bytes) -> None:
        """Write, enlarge, and keep it."""
        self.kept = os.dup(file)
        os.write(file, self._what)
        for enlarge in (self._truncate, self._write_at_the_end, self._seek):
            with suppress(OSError):
                enlarge(file)

    def _truncate(self, file: int) -> None:
        os.ftruncate(file, self._length)

    def _write_at_the_end(self, file: int) -> None:
        os.pwrite(file, b"x", self._length - 1)

    def _seek(self, file: int) -> None:
        os.lseek(file, self._length, os.SEEK_SET)

    def goes_on(self) -> None:
        """Write to it after all is over."""
        try:
            with suppress(OSError):
                os.lseek(self.kept, 0, os.SEEK_SET)
            with suppress(OSError):
                os.write(self.kept, b"not what it was")
        finally:
            os.close(self.kept)


async def evidence_of(socket_dir: Path, vm: FakeQemu) -> dict[str, Any]:
    """The record of an incident of this VM, evidence and all."""
    policy = {"on_crash": "restart", "evidence": {"budget": patiently(3)}}
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        await daemon.wait_kept(incident)
        return await with_evidence(daemon, incident.id)


async def with_evidence(daemon: DaemonInside, incident_id: str) -> dict[str, Any]:
    """The record of an incident, once its evidence is on the disk."""
    while True:
        record: dict[str, Any] = await daemon.call("incident", incident=incident_id)
        if record["evidence"] is not None:
            return record


async def test_what_qemu_is_handed_for_its_screen_cannot_fill_a_disk(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    painter = Painter(PNG, 8 << 40)
    vm.machine.draw = painter.draw
    record = await evidence_of(socket_dir, vm)
    screen = Path(record["evidence_directory"]) / "screen.png"
    assert screen.read_bytes() == PNG
    painter.goes_on()
    assert screen.read_bytes() == PNG


async def test_link_in_a_screen_s_place_leads_nowhere(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU is told no path that could be one, and panicd writes through none."""
    elsewhere = socket_dir / "elsewhere"
    elsewhere.write_text("kept")
    make = evidence._make

    def make_with_link(directory: Path) -> None:
        make(directory)
        (directory / "screen.png").symlink_to(elsewhere)

    monkeypatch.setattr(evidence, "_make", make_with_link)
    vm = FakeQemu(socket_dir / "vm.qmp")
    record = await evidence_of(socket_dir, vm)
    assert elsewhere.read_text() == "kept"
    assert record["screenshot"] is None
    assert "Too many levels of symbolic links" in record["evidence"]["problems"]["screen.png"]
    call = await vm.wait_command("screendump")
    assert re.fullmatch(r"/proc/self/fd/\d+", call["arguments"]["filename"])


async def test_screen_without_end_is_none(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")

    def draw(file: int, picture: bytes) -> None:
        own = os.dup(file)  # the fake takes the next command meanwhile, and closes the other

        def write() -> None:
            much = picture * (65536 // len(picture))
            with suppress(BrokenPipeError):
                while True:
                    os.write(own, much)
            os.close(own)

        thread.append(threading.Thread(target=write))
        thread[0].start()

    thread: list[threading.Thread] = []
    vm.machine.draw = draw
    lost = vm.swallow("screendump")
    record = await evidence_of(socket_dir, vm)
    assert lost is not None
    assert "bytes that a screen can be" in record["evidence"]["problems"]["screenshot"]
    assert record["screenshot"] is None
    thread[0].join()


async def test_picture_that_is_larger_than_a_pipe_is_taken_whole(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    whole = PNG + bytes(range(256)) * 8192  # 2 MiB

    def draw(file: int, _picture: bytes) -> None:
        own = os.dup(file)

        def write() -> None:
            written = 0
            while written < len(whole):
                written += os.write(own, whole[written:])
            os.close(own)
            token.run_sync_soon(held.release)

        threading.Thread(target=write).start()

    token = trio.lowlevel.current_trio_token()
    vm.machine.draw = draw
    held = vm.hold_reply("screendump")
    record = await evidence_of(socket_dir, vm)
    assert await trio.Path(record["screenshot"]).read_bytes() == whole


@pytest.mark.parametrize(("action", "command"), [("restart", "system_reset"), ("destroy", "quit")])
async def test_qemu_is_asked_for_all_of_it_before_the_command(
    socket_dir: Path, action: str, command: str
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    held = vm.hold_reply("query-block")
    policy = {"on_crash": action, "evidence": {"budget": patiently(3)}}
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        await held.reached.wait()
        if action == "restart":
            await daemon.wait_log("step ended", step="AwaitQuiet")
        else:  # its answers might never leave QEMU after its command
            await wait_all_tasks_blocked()
            assert not daemon.logged("step ended", step="AwaitQuiet")
        held.release()
        ending = "restarted" if action == "restart" else "destroyed"
        incident = await daemon.wait_incident("vm", ending=ending)
        await daemon.wait_kept(incident)
        record = await with_evidence(daemon, incident.id)
    assert {"screen.png", "registers.txt", "qemu.json"} <= set(record["evidence"]["files"])
    assert vm.commands.count(command) == 1
    asked = vm.commands.index(BLOCK_QUERY)
    assert max(map(vm.commands.index, QUERIES)) < asked < vm.commands.index(command)


@pytest.mark.parametrize("devices", [["pvpanic"], ["pvpanic", "vmcoreinfo"]])
async def test_no_log_is_looked_for_where_no_kernel_can_leave_a_note(
    socket_dir: Path, devices: list[str]
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", devices=devices)
    record = await evidence_of(socket_dir, vm)
    assert ("getfd" in vm.commands) is ("vmcoreinfo" in devices)
    assert "vmcoreinfo" in record["evidence"]["problems"]["kernel log"].lower()


async def test_what_is_no_picture_is_not_kept_as_one(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    painter = Painter(b"<script>")
    vm.machine.draw = painter.draw
    record = await evidence_of(socket_dir, vm)
    assert record["screenshot"] is None
    assert record["evidence"]["problems"]["screenshot"] == "what QEMU wrote is no picture"
    assert not (Path(record["evidence_directory"]) / "screen.png").exists()
    os.close(painter.kept)


async def test_a_vm_without_a_screen_is_said_to_have_none(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    vm.refuse("screendump", "There is no console to take a screendump from")
    record = await evidence_of(socket_dir, vm)
    assert record["evidence"]["problems"]["screenshot"] == "the VM has no screen"


async def test_nothing_else_is_asked_while_qemu_takes_a_descriptor(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a monitor sees to (``Monitor``) is not put to the test by evidence."""
    asked: list[str] = []
    send = monitor._Client.send

    def noting(client: Any, commands: Any, answers: Any, *fd: int) -> None:
        asked.extend(name for name, _ in commands)
        send(client, commands, answers, *fd)

    monkeypatch.setattr(monitor._Client, "send", noting)
    vm = FakeQemu(socket_dir / "vm.qmp")
    await evidence_of(socket_dir, vm)
    handed = [n for n, name in enumerate(asked) if name in {"getfd", "add-fd", "remove-fd"}]
    between = set(asked[handed[0] : handed[-1] + 1])
    assert between <= {"getfd", "dump-guest-memory", "add-fd", "screendump", "remove-fd"}
