"""A QEMU that lies about a panic: what it says in one write, and what it answers to what is asked.

A panic of a running guest goes as foreseen up to its first command (``rules.machine.ahead``).
Whatever a QEMU says then costs itself at most, and never the daemon.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.incident.reaction import Reaction
from panicd.service.operators import Operators
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState
from tests.parts.proxy import receive_with_fds
from tests.parts.reactions import note_reactions
from tests.parts.wire import JsonSplitter, Message, encode

DAY = 86400.0
NO_EVIDENCE = {"evidence": {"budget": "0s"}, "restart": {"min_uptime": "0s"}}
RESTARTS = {"on_crash": "restart", **NO_EVIDENCE}
RESTART = ["system_reset", "cont"]


def event(name: str, **data: object) -> bytes:
    stamp = {"seconds": 1, "microseconds": 1}
    return encode({"timestamp": stamp, "event": name, "data": data})


PANIC, STOP, RESUME = event("GUEST_PANICKED", action="pause"), event("STOP"), event("RESUME")
RESET = event("RESET", guest=False, reason="host-qmp-system-reset")
OWN_RESET = event("RESET", guest=True, reason="guest-reset")
SHUTDOWN = event("SHUTDOWN", guest=True, reason="guest-panic")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Reaction]:
    """Every reaction that began as foreseen."""
    return note_reactions(monkeypatch)


@asynccontextmanager
async def connected(
    directory: Path, vm: FakeQemu, domains: list[dict[str, Any]] | None = None
) -> AsyncIterator[DaemonInside]:
    """A daemon, a VM that is armed, and another one whose panic is dealt with at the end."""
    other = FakeQemu(directory / "other.qmp", name="other")
    async with (
        DaemonInside.start(directory, RESTARTS, domains=domains) as daemon,
        vm.running(),
        other.running(),
    ):
        for name in ("vm", "other"):
            await daemon.wait_armed(name)
        yield daemon
        other.panic()
        await daemon.wait_incident("other", ending="restarted")
        assert other.acting_commands == RESTART


@dataclass(frozen=True)
class Write:
    """What a QEMU says in one write, and what is made of it.

    Attributes:
        said: The write.
        state: How its guest stands then, as it answers.
        ending: How the incident ends; empty: it stays as ``reset``.
        commands: The commands that act.
        repeats: How many panics are counted beside the first.
    """

    said: tuple[bytes, ...]
    state: RunState
    ending: str
    commands: list[str]
    repeats: int = 0


PANICKED = RunState.GUEST_PANICKED

WRITES = {
    "as it should": Write((PANIC, STOP), PANICKED, "restarted", RESTART),
    "STOP first": Write((STOP, PANIC), PANICKED, "restarted", RESTART),
    "twice": Write((PANIC, PANIC, STOP), PANICKED, "restarted", RESTART, 1),
    "twice, around STOP": Write((PANIC, STOP, PANIC), PANICKED, "restarted", RESTART, 1),
    "STOP twice": Write((PANIC, STOP, STOP), PANICKED, "restarted", RESTART),
    "many": Write((*[PANIC] * 1000, STOP), PANICKED, "restarted", RESTART, 999),
    "reset": Write((PANIC, STOP, RESET), RunState.PRELAUNCH, "", []),
    "reset before STOP": Write((PANIC, RESET, STOP), RunState.PRELAUNCH, "", []),
    "reset and let run": Write((PANIC, STOP, RESET, RESUME), RunState.RUNNING, "foreign-reset", []),
    "its own reset": Write((PANIC, STOP, OWN_RESET, RESUME), RunState.RUNNING, "foreign-reset", []),
    "resumed": Write((PANIC, STOP, RESUME), RunState.RUNNING, "foreign-resume", []),
    "shutdown": Write((PANIC, SHUTDOWN, STOP), RunState.SHUTDOWN, "restarted", RESTART),
    "shutdown first": Write((SHUTDOWN, PANIC, STOP), RunState.SHUTDOWN, "restarted", RESTART),
}


@pytest.mark.parametrize("write", [*WRITES.values()], ids=[*WRITES])
async def test_what_is_said_in_one_write(socket_dir: Path, write: Write) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with connected(socket_dir, vm) as daemon:
        vm.machine.state = write.state
        vm.send_raw(b"".join(write.said))
        state = "" if write.ending else "reset"
        incident = await daemon.wait_incident("vm", state=state, ending=write.ending)
        assert vm.acting_commands == write.commands
        assert len(daemon.incidents()) == 1
        if write.repeats:
            await daemon.wait_log(
                "guest panicked again", incident=incident.id, repeats=write.repeats
            )


@pytest.mark.parametrize("on_crash", ["restart", "destroy"])
@pytest.mark.parametrize("said", [(PANIC,), (PANIC, STOP)], ids=["panic", "panic and stop"])
async def test_the_write_that_ends_the_session(
    socket_dir: Path, on_crash: str, said: tuple[bytes, ...]
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    domains = [{"match": "vm", "on_crash": on_crash}]
    async with (
        DaemonInside.start(socket_dir, NO_EVIDENCE, domains=domains) as daemon,
        vm.running(),
    ):
        await daemon.wait_armed("vm")
        vm.machine.state = PANICKED
        vm.send_raw(b"".join(said))
        vm.close_session()
        incident = await daemon.wait_incident("vm", ending=f"{on_crash}ed")
        assert vm.acting_commands == (RESTART if on_crash == "restart" else ["quit"])
        assert [each.id for each in daemon.incidents()] == [incident.id]


# -- answers


class Liar(FakeQemu):
    """A QEMU that, of a panicked guest, says something else than the answers to what is asked."""

    def __init__(self, path: Path, lie: Callable[[list[bytes]], list[bytes]]) -> None:
        super().__init__(path)
        self.lie = lie

    async def _read_commands(self, session: Any) -> None:
        splitter, send = JsonSplitter(), session.send
        while True:
            data, fds = await receive_with_fds(session.socket)
            if not data:
                return
            self.machine.received_fds += fds
            said: list[bytes] = []
            session.send = said.append
            for text in splitter.feed(data):
                await self._answer(session, text)
            session.send = send
            lies = len(said) > 1 and self.machine.state is PANICKED
            send(b"".join(self.lie(said) if lies else said))


def with_ids_of_others(said: list[bytes]) -> list[bytes]:
    answers: list[Message] = [json.loads(each) for each in said]
    ids = [each["id"] for each in answers]
    return [
        encode({**each, "id": other})
        for each, other in zip(answers, [*ids[1:], ids[0]], strict=True)
    ]


def with_value(value: object) -> Callable[[list[bytes]], list[bytes]]:
    def lie(said: list[bytes]) -> list[bytes]:
        return [encode({**json.loads(each), "return": value}) for each in said]

    return lie


def guessed(said: list[bytes]) -> list[bytes]:
    return [encode({"return": {}, "id": f"{number}.{'0' * 16}"}) for number in range(64)] + said


ODD: list[object] = [None, 7, "x", [], [7], [[]], [{}], {"status": 7}, {"status": []}]

LIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "in the wrong order": lambda said: said[::-1],
    "twice": lambda said: said * 2,
    "each twice": lambda said: [each for each in said for _ in range(2)],
    "guessed ids": guessed,
}
"""After which the guest is restarted, as foreseen."""

UNFORESEEN: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a panic among them": lambda said: [said[0], PANIC, *said[1:]],
    "a STOP among them": lambda said: [said[0], STOP, *said[1:]],
    "odd events among them": lambda said: [event("STOP", x=1), *said, event("RESET_", x=[])],
}
"""After which the guest is restarted."""

ALL = {**LIES, **UNFORESEEN}

HARMLESS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "others' ids": with_ids_of_others,
    "a reset among them": lambda said: [said[0], RESET, RESUME, *said[1:]],
    "a reset after them": lambda said: [*said, RESET],
    "a reset of its own": lambda said: [*said, OWN_RESET, RESUME],
    "a resume after them": lambda said: [*said, RESUME],
    "a shutdown after them": lambda said: [*said, SHUTDOWN],
    "a panic of another kind": lambda said: [event("GUEST_PANICKED", action="poweroff"), *said],
    "half of one": lambda said: [*said[:-1], said[-1][:9], b"\n"],
    "an error each": lambda said: [
        encode({"error": {"class": "No", "desc": "x"}, "id": json.loads(each)["id"]})
        for each in said
    ],
    **{
        f"status {status}": with_value({"status": status})
        for status in ("running", "paused", "shutdown")
    },
    **{f"all {value}": with_value(value) for value in ODD},
}
"""After which panicd is as before."""


@pytest.mark.parametrize("lie", [*ALL.values()], ids=[*ALL])
async def test_lies_that_change_nothing(
    socket_dir: Path, given: list[Reaction], lie: Callable[[list[bytes]], list[bytes]]
) -> None:
    vm = Liar(socket_dir / "vm.qmp", lie)
    async with connected(socket_dir, vm) as daemon:
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.acting_commands == RESTART
        assert given[0].is_given is (lie in LIES.values())


@pytest.mark.parametrize("lie", [*HARMLESS.values()], ids=[*HARMLESS])
async def test_lies_that_harm_nobody_else(
    socket_dir: Path, lie: Callable[[list[bytes]], list[bytes]]
) -> None:
    vm = Liar(socket_dir / "vm.qmp", lie)
    timeouts = {"stop": "50ms", "reset": "50ms", "resume": "50ms"}
    async with connected(socket_dir, vm, [{"match": "vm", "timeouts": timeouts}]) as daemon:
        vm.panic()
        await daemon.wait_log("decided", domain="vm")
        await daemon.wait_domain("vm", lambda vm: vm["incident_state"] != "acting")
        assert vm.acting_commands.count("system_reset") <= 1
        assert len(daemon.logged("guest panicked", domain="vm")) == 1


async def test_what_is_said_to_be_panicked_without_a_stop_is_reset(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with connected(socket_dir, vm) as daemon:
        vm.machine.state = PANICKED
        vm.send_raw(PANIC)
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.acting_commands == RESTART


# -- what happens between a panic and its command


@asynccontextmanager
async def between(
    directory: Path, on_crash: str, meanwhile: Callable[[DaemonInside], Awaitable[object]]
) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    """A panic, and what happens before QEMU's answer lets its command go."""
    vm = FakeQemu(directory / "vm.qmp")
    domains = [{"match": "vm", "on_crash": on_crash}]
    async with (
        DaemonInside.start(directory, NO_EVIDENCE, domains=domains) as daemon,
        vm.running(),
    ):
        await daemon.wait_armed("vm")
        held = vm.hold_reply("query-status")
        vm.panic()
        await held.reached.wait()
        await meanwhile(daemon)
        held.release()
        yield daemon, vm


@pytest.mark.parametrize("on_crash", ["restart", "destroy"])
async def test_a_hold_comes_before_the_command(
    socket_dir: Path, given: list[Reaction], on_crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the operator is told that it is held."""
    monkeypatch.setattr(Operators, "look_anew", lambda _: None)

    async def hold(daemon: DaemonInside) -> None:
        await daemon.call("hold", domain="vm", why="wait")

    async with between(socket_dir, on_crash, hold) as (daemon, vm):
        while not (vm.acting_commands or daemon.logged("incident stays open")):
            await trio.lowlevel.checkpoint()
        assert vm.acting_commands == []
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [(on_crash, "on-crash"), ("preserve", "held")]
        assert vm.acting_commands == []
        await daemon.call("unhold", domain="vm", why="done")
        ended = await daemon.wait_incident("vm", ending=f"{on_crash}ed")
        assert ended.id == incident.id
    (reaction,) = given
    assert not reaction.is_given


@pytest.mark.parametrize("on_crash", ["restart", "destroy"])
async def test_another_policy_is_for_the_next_panic(socket_dir: Path, on_crash: str) -> None:
    async def reload(daemon: DaemonInside) -> None:
        daemon.write_config(domains=[{"match": "vm", "on_crash": "preserve"}])
        await daemon.call("reload")

    async with between(socket_dir, on_crash, reload) as (daemon, vm):
        incident = await daemon.wait_incident("vm", ending=f"{on_crash}ed")
        assert incident.decisions == [(on_crash, "on-crash")]
        if on_crash == "restart":
            vm.panic()
            incident = await daemon.wait_incident("vm", state="preserved")
            assert vm.acting_commands == RESTART


async def test_another_policy_is_written_down_as_it_is_obeyed(
    socket_dir: Path, given: list[Reaction]
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with connected(socket_dir, vm) as daemon:
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        daemon.write_config(domains=[{"match": "vm", "on_crash": "destroy"}])
        await daemon.call("reload")
        vm.panic()
        await daemon.wait_incident("vm", ending="destroyed")
        assert [reaction.is_given for reaction in given] == [True, True]
    decided = {str(each.closed.ending): each for each in daemon.journal() if each.closed}
    for ending, action in (("restarted", "restart"), ("destroyed", "destroy")):
        (decision,) = decided[ending].decisions
        assert (decision.on_crash, decision.action) == (action, action)


@pytest.mark.parametrize("what", ["policy", "hold", "clock"])
async def test_what_changes_before_the_panic_is_known_at_it(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Though what the panic leads to was foreseen before."""
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with connected(socket_dir, vm) as daemon:
        vm.panic()
        await daemon.wait_incident("vm", ending="restarted")
        match what:
            case "policy":
                daemon.write_config(domains=[{"match": "vm", "on_crash": "preserve"}])
                await daemon.call("reload")
            case "hold":
                await daemon.call("hold", domain="vm", why="wait")
            case "clock":
                now = time.time()
                monkeypatch.setattr(time, "time", lambda: now - DAY)
        vm.panic()
        if what == "clock":
            await daemon.wait_incident("vm", ending="restarted", count=2)
            assert vm.acting_commands == RESTART * 2
            assert min(each.opened.at for each in daemon.journal()) < now - DAY / 2
        else:
            await daemon.wait_incident("vm", state="preserved")
            assert vm.acting_commands == RESTART


@pytest.mark.parametrize("by", [-DAY, DAY])
async def test_the_clock_is_set_between_a_panic_and_its_command(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    async def set_clock(_daemon: DaemonInside) -> None:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + by)

    async with between(socket_dir, "restart", set_clock) as (daemon, vm):
        await daemon.wait_incident("vm", ending="restarted")
        assert vm.acting_commands == RESTART


async def test_two_with_one_name_are_two(socket_dir: Path, given: list[Reaction]) -> None:
    vms = [FakeQemu(socket_dir / f"{number}.qmp", name="vm") for number in range(2)]
    async with (
        DaemonInside.start(socket_dir, RESTARTS) as daemon,
        vms[0].running(),
        vms[1].running(),
    ):
        await daemon.wait_log("policy in force", count=2)
        for vm in vms:
            vm.panic()
        await daemon.wait_log("incident closed", ending="restarted", count=2)
        assert [vm.acting_commands for vm in vms] == [RESTART] * 2
        assert {incident.opened.monitor for incident in daemon.journal()} == {
            str(vm.socket) for vm in vms
        }
    assert [reaction.is_given for reaction in given] == [True] * 2


async def test_a_flood_of_lines_is_read_after_others_first_commands(socket_dir: Path) -> None:
    flooder = FakeQemu(socket_dir / "flooder.qmp", name="flooder")
    vms = [FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in "abcdefgh"]
    async with (
        DaemonInside.start(socket_dir, RESTARTS, storm={"minimum": 99}) as daemon,
        AsyncExitStack() as running,
    ):
        for vm in (flooder, *vms):
            await running.enter_async_context(vm.running())
        for vm in (flooder, *vms):
            await daemon.wait_armed(vm.socket.stem)
        flooder.send_raw(event("POWERDOWN") * 100_000)
        for vm in vms:
            vm.panic()
        for vm in vms:
            await vm.wait_command("system_reset")
        assert flooder.unsent
        for vm in vms:
            await daemon.wait_incident(vm.socket.stem, ending="restarted")
            assert vm.acting_commands == RESTART
