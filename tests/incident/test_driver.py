"""One domain's course: what others do meanwhile, and every command's answer lost or cut off."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.incident.reaction import Foresight
from panicd.incident.rush import Rush
from panicd.journal.journal import Journal
from panicd.rules.operation import Operation
from panicd.service.control_client import RefusedError
from tests.parts.background import background
from tests.parts.daemon import DaemonInside, LoggedIncident
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after, patiently
from tests.parts.profile import QEMU_1_7, QEMU_2_5, Profile, RunState

"""Time limits of the steps, for tests in which one is reached."""

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f53"


def short() -> dict[str, str]:
    """Time limits that a test waits out; what is answered at all is answered within them."""
    answered = dict.fromkeys(("reset", "resume", "quit"), patiently(0.5))
    return {**answered, "terminate": "50ms", "kill": "50ms"}


@asynccontextmanager
async def connected(
    directory: Path, on_crash: str, fake: FakeQemu | None = None, **policy: Any
) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    """A daemon, and one VM that is armed."""
    policy = {
        "on_crash": on_crash,
        "coredump": {"min_free": "1MiB", "format": "elf-zstd"},
        **policy,
    }
    vm = fake or FakeQemu(directory / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(directory, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        yield daemon, vm


def only_incident(daemon: DaemonInside) -> LoggedIncident:
    (incident,) = daemon.incidents()
    return incident


# -- a command's answer does not come


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with one command of one policy's plan.

    Attributes:
        on_crash: The policy.
        command: The command.
        fault: The method of ``RecordedMonitor`` that makes it go wrong.
        received: The commands that change something, as QEMU received them after arming, in all
            sessions; arming again is left out.
    """

    on_crash: str
    command: str
    fault: str
    received: list[str]

    @property
    def garbage(self) -> list[bytes]:
        """What to answer, if it is that."""
        return [GARBAGE] if self.fault == "garble" else []

    def __str__(self) -> str:
        return f"{self.on_crash}-{self.fault}-{self.command}"


GARBAGE = b"]}\r\n"

ENDINGS = {"destroy": "destroyed", "restart": "restarted"}
"""How an incident ends, by its action."""

STATES = {"preserve": "preserved", "ignore": "running-on"}
"""How an incident stays open, by its action."""

EXECUTED = ("cut_after", "swallow", "garble")
"""Faults after which QEMU has done what the command says."""

DUMP = ["getfd", "dump-guest-memory"]
RESTART = ["system_reset", "cont"]

TROUBLES = [
    *(Trouble("destroy", "quit", fault, ["quit"]) for fault in EXECUTED),
    Trouble("destroy", "quit", "cut_before", ["quit", "quit"]),
    *(Trouble("restart", command, fault, RESTART) for command in RESTART for fault in EXECUTED),
    Trouble("restart", "system_reset", "cut_before", ["system_reset", *RESTART]),
    Trouble("restart", "cont", "cut_before", ["system_reset", "cont", "cont"]),
    *(Trouble("ignore", "cont", fault, ["cont"]) for fault in EXECUTED),
    Trouble("ignore", "cont", "cut_before", ["cont", "cont"]),
    *(Trouble("coredump-destroy", "quit", fault, [*DUMP, "quit"]) for fault in EXECUTED),
    *(
        Trouble("coredump-restart", command, fault, [*DUMP, *RESTART])
        for command in RESTART
        for fault in EXECUTED
    ),
    *(
        Trouble(f"coredump-{action}", command, "cut_before", received)
        for action, then in (("restart", RESTART), ("preserve", []), ("destroy", ["quit"]))
        for command, received in (
            ("getfd", ["getfd", *DUMP, *then]),
            ("dump-guest-memory", [*DUMP, *DUMP, *then]),
        )
    ),
    *(
        Trouble("coredump-preserve", "query-status", fault, [*DUMP])
        for fault in ("cut_before", "cut_after", "garble")
    ),
]


def ended_well(trouble: Trouble, vm: FakeQemu) -> bool:
    """Whether the guest is where its policy wants it."""
    match trouble.on_crash.removeprefix("coredump-"):
        case "destroy":
            return vm.machine.exit_status == 0
        case "preserve":
            return vm.machine.state is RunState.GUEST_PANICKED
        case _:
            return vm.machine.state is RunState.RUNNING and not vm.machine.vcpu_frozen


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
async def test_nothing_is_done_twice_and_nothing_forgotten(
    socket_dir: Path, trouble: Trouble
) -> None:
    timeouts = short() if trouble.fault == "swallow" else {}
    async with connected(socket_dir, trouble.on_crash, timeouts=timeouts) as (daemon, vm):
        if trouble.on_crash == "ignore":
            await vm.foreign("set-action", {"panic": "pause"})
        fault = getattr(vm, trouble.fault)(trouble.command, *trouble.garbage)
        vm.panic()
        if trouble.command == "query-status":
            vm.close_session()  # it is asked on the way back
        await fault.reached.wait()
        action = trouble.on_crash.removeprefix("coredump-")
        await daemon.wait_incident(
            "vm", state=STATES.get(action, ""), ending=ENDINGS.get(action, "")
        )
        assert ended_well(trouble, vm)
        assert [name for name in vm.changing_commands if name != "set-action"] == trouble.received
        only_incident(daemon)
        dumps = [path for path in (socket_dir / "state" / "coredumps").rglob("*") if path.is_file()]
        assert len(dumps) == trouble.on_crash.startswith("coredump-")
        assert all(dump.suffix == ".zst" for dump in dumps)


async def test_dump_whose_commands_are_not_answered_is_made_once(socket_dir: Path) -> None:
    # Panicd waits some seconds for these answers: for both at once, on one daemon.
    vms = {command: FakeQemu(socket_dir / f"{command}.qmp", name=command) for command in DUMP}
    policy = {
        "on_crash": "coredump-destroy",
        "coredump": {"min_free": "1MiB", "format": "elf-zstd"},
    }
    async with DaemonInside.start(socket_dir, policy) as daemon, background() as nursery:
        for command, vm in vms.items():
            nursery.start_soon(vm.run)
            await daemon.wait_armed(command)
            vm.swallow(command)
            vm.panic()
        for command, vm in vms.items():
            await daemon.wait_incident(command, ending="destroyed")
            assert vm.changing_commands == ["set-action", *DUMP, "quit"]
            (dump,) = (socket_dir / "state" / "coredumps" / str(os.geteuid()) / command).iterdir()
            assert dump.suffix == ".zst"


async def test_qemu_that_hangs_and_is_not_known_is_left_alone(socket_dir: Path) -> None:
    async with connected(socket_dir, "destroy", timeouts=short()) as (daemon, vm):
        held = vm.hold("quit")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("destroy", "on-crash"), ("preserve", "action-failed")]
        assert incident.steps[-4:-1] == [
            ("Quit", "failed"),
            ("Terminate", "failed"),
            ("Kill", "failed"),
        ]
        assert "is not a QEMU: no SIGKILL was sent" in str(incident.details)
        held.release()
        await daemon.wait_incident("vm", ending="qemu-gone")


# -- the state of the guest, and its races


async def test_guest_is_stopped_before_it_is_acted_on(socket_dir: Path) -> None:
    async with connected(socket_dir, "restart") as (daemon, vm):
        vm.panic(hold_stop=True)
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.changing_commands == ["set-action", "stop", *RESTART]
        assert not vm.machine.vcpu_frozen


async def test_panic_before_the_answer_to_cont_is_a_second_incident(socket_dir: Path) -> None:
    async with connected(socket_dir, "restart") as (daemon, vm):
        vm.panic_at_boot(1, before_reply=True)
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted", count=2)
        assert vm.changing_commands == ["set-action", *RESTART, *RESTART]
        assert vm.machine.state is RunState.RUNNING


async def test_firmware_that_resets_once_more_changes_nothing(socket_dir: Path) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", firmware=True)
    async with connected(socket_dir, "restart", fake) as (daemon, vm):
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted", count=2)
        assert len(daemon.incidents()) == 2
        assert vm.changing_commands == ["set-action", *RESTART, *RESTART]


@pytest.mark.parametrize("profile", [QEMU_1_7, QEMU_2_5], ids=["1.7", "2.5"])
@pytest.mark.parametrize("fault", EXECUTED)
async def test_reset_that_leaves_the_guest_panicked_is_not_taken_for_none(
    socket_dir: Path, profile: Profile, fault: str
) -> None:
    fake = FakeQemu(socket_dir / "vm.qmp", profile=profile)
    async with connected(socket_dir, "restart", fake, timeouts=short()) as (daemon, vm):
        garbage = [GARBAGE] if fault == "garble" else []
        reached = getattr(vm, fault)("system_reset", *garbage).reached
        vm.panic()
        await reached.wait()
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.machine.state is RunState.RUNNING
        assert vm.changing_commands in (list(RESTART), ["system_reset", *RESTART])
        only_incident(daemon)


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        (RunState.PAUSED, ("preserve", "stopped-by-others")),
        (RunState.INMIGRATE, ("preserve", "migration")),
        (RunState.POSTMIGRATE, ("preserve", "migration")),
    ],
)
async def test_guest_that_others_stopped_is_not_set_running(
    socket_dir: Path, state: RunState, decision: tuple[str, str]
) -> None:
    async with connected(socket_dir, "restart") as (daemon, vm):
        vm.machine.state = state
        vm.close_session()  # so that panicd asks for it
        await daemon.wait_armed("vm", since=daemon.mark())
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [decision]
        assert vm.machine.state is state
        assert set(vm.changing_commands) == {"set-action"}


# -- what others do


@pytest.mark.parametrize(
    ("commands", "ending"),
    [
        (["cont"], "foreign-resume"),
        (["system_reset", "cont"], "foreign-reset"),
        (["quit"], "qemu-gone"),
    ],
)
async def test_what_others_do_to_a_preserved_guest_ends_its_incident(
    socket_dir: Path, commands: list[str], ending: str
) -> None:
    async with connected(socket_dir, "preserve") as (daemon, vm):
        vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        for command in commands:
            await vm.foreign(command)
        await daemon.wait_incident("vm", ending=ending)
        assert vm.changing_commands == ["set-action"]


async def test_guest_that_resets_itself_ends_its_incident(socket_dir: Path) -> None:
    async with connected(socket_dir, "ignore") as (daemon, vm):
        vm.panic()
        await daemon.wait_incident("vm", state="running-on")
        vm.guest_reset()
        await daemon.wait_incident("vm", ending="guest-reset")


async def test_repeated_panics_are_one_incident(socket_dir: Path) -> None:
    async with connected(socket_dir, "ignore") as (daemon, vm):
        for _ in range(500):
            vm.panic()
        await daemon.wait_incident("vm", state="running-on")
        vm.guest_reset()
        incident = await daemon.wait_incident("vm", ending="guest-reset")
        assert only_incident(daemon) is not None
    (kept,) = daemon.journal()
    assert kept.id == incident.id
    assert 1 + kept.repeats == 500


async def test_text_of_a_guest_is_escaped_and_bounded(socket_dir: Path) -> None:
    hostile = "\x1b[2J\n{}\u202e" + "A" * 100_000
    async with connected(socket_dir, "preserve") as (daemon, vm):
        vm.panic({"type": "s390", "core": 1, "psw-mask": 2, "psw-addr": 3, "reason": hostile})
        await daemon.wait_incident("vm", state="preserved")
        (line,) = daemon.logged("guest panicked")
        said = line["information"]["reason"]
        assert "\\x1b[2J\\n{}\\u202e" in said
        assert said.isprintable()
        assert len(said) < 5_000
    (incident,) = daemon.journal()
    assert incident.opened.information is not None
    assert len(str(incident.opened.information)) < 5_000


async def test_a_flood_is_counted_while_it_lasts(socket_dir: Path) -> None:
    async with connected(socket_dir, "ignore") as (daemon, vm):
        for _ in range(100):
            vm.panic()
        with fail_after(20):
            while not await daemon.metric("panicd_events_coalesced_total"):
                pass
        assert await daemon.metric("panicd_domain_up", domain="vm") == 1


async def test_what_is_asked_as_the_monitor_is_lost_is_refused(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append_operation
    async with connected(socket_dir, "preserve") as (daemon, vm):
        vm.panic()
        await daemon.wait_incident("vm", state="preserved")

        async def append_as_it_is_lost(journal: Journal, operation: Operation) -> None:
            lost = daemon.mark()
            vm.close_session()
            await daemon.wait_log("monitor is not connected", since=lost)
            await append(journal, operation)

        monkeypatch.setattr(Journal, "append_operation", append_as_it_is_lost)
        with pytest.raises(RefusedError, match="monitor was lost"):
            await daemon.call("release", domain="vm", why="to try it")


# -- what is ready before a panic comes


async def test_a_panic_is_foreseen_while_nothing_else_is_to_be_done(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseen = trio.Event()
    of = Foresight.of

    def spy(foresight: Foresight, *arguments: Any) -> Any:
        known = of(foresight, *arguments)
        if known is not None:
            foreseen.set()
        return known

    monkeypatch.setattr(Foresight, "of", spy)
    async with connected(socket_dir, "restart"):
        with fail_after(5.0):
            await foreseen.wait()


async def test_a_panic_that_is_not_foreseen_yet_goes_as_any_other(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rush, "after_attaching", lambda _rush, _call: None)
    async with connected(socket_dir, "restart") as (daemon, vm):
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.changing_commands == ["set-action", *RESTART]
