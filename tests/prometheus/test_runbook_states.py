"""The first steps of each runbook, on a live daemon that is in the state that the alert tells of.

What the first command says has to show the thing. Where panicd itself is in a bad state, the test
mends the cause as the runbook says, and then does what stands below "Mitigation".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trio

from panicd.host import listening
from panicd.incident import liveness
from panicd.service import daemon as service
from panicd.service.control_client import RefusedError
from tests.parts.daemon import DaemonInside, ObservedDaemon, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import patience
from tests.parts.profile import QEMU_1_6, QEMU_2_8
from tests.parts.small_disk import fill, small_disk
from tests.prometheus.test_runbooks import (
    DIRECTORY,
    ENDING,
    NOTHING,
    RUNBOOKS,
    Stage,
    commands,
    text_of,
)

NAME = "web-1"
CAUSE = {"type": "hyper-v", "arg1": 0x7E, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 5}
DUMP = {"on_crash": "coredump-preserve", "coredump": {"min_free": "1MiB"}}
FULL = {"on_crash": "coredump-preserve", "coredump": {"min_free": "99%"}}
RESTART = {"on_crash": "restart", "restart": {"min_uptime": "0s"}}
SPENT = {"on_crash": "restart", "restart": {"max": 0}}
WITHOUT_INCIDENT = "20261123T044714-00000000"
WEDGED = 0.5  # seconds, in place of 15

State = Callable[[Path], AbstractAsyncContextManager[Stage]]


@asynccontextmanager
async def running(
    directory: Path, defaults: dict[str, Any], **qemu: Any
) -> AsyncIterator[tuple[DaemonInside, FakeQemu]]:
    """A daemon with one domain."""
    for place in ("elsewhere", "state/coredumps", "state/incidents"):
        (directory / place).mkdir(parents=True)
    async with (
        DaemonInside.start(
            directory, {"evidence": {"budget": "1s"}, **defaults}, time_limit=90
        ) as daemon,
        FakeQemu(directory / "elsewhere" / "other.qmp", name="other").running(),
        FakeQemu(directory / f"{NAME}.qmp", name=NAME, **qemu).running() as vm,
    ):
        await daemon.wait_armed(NAME)
        yield daemon, vm


def stage(daemon: DaemonInside, incident: str = WITHOUT_INCIDENT) -> Stage:
    unwatched = daemon.directory / "elsewhere" / "other.qmp"
    return Stage(daemon, NAME, incident, unwatched)


def panicked(
    defaults: dict[str, Any],
    *,
    state: str = "",
    ending: str = "",
    then: str = "",
    times: int = 1,
    refused: str = "",
    **qemu: Any,
) -> State:
    """A domain whose guest panicked: how its incident stands or ended, and what others did then."""

    @asynccontextmanager
    async def made(directory: Path) -> AsyncIterator[Stage]:
        async with running(directory, defaults, **qemu) as (daemon, vm):
            if refused:
                vm.refuse(refused, times=None)
            for count in range(1, times + 1):
                vm.panic(CAUSE)
                if count < times:
                    await daemon.wait_incident(NAME, ending=ending, count=count)
            if then:
                await daemon.wait_incident(NAME, state="preserved")
                await vm.foreign(then)
            incident = await daemon.wait_incident(NAME, state=state, ending=ending, count=times)
            await daemon.wait_kept(incident)
            yield stage(daemon, incident.id)

    return made


def as_it_is(defaults: dict[str, Any], **qemu: Any) -> State:
    """A domain that has not panicked."""

    @asynccontextmanager
    async def made(directory: Path) -> AsyncIterator[Stage]:
        async with running(directory, defaults, **qemu) as (daemon, _):
            yield stage(daemon)

    return made


@asynccontextmanager
async def unreachable(directory: Path) -> AsyncIterator[Stage]:
    async with running(directory, {}) as (daemon, vm):
        vm.exit()
        gone = "nobody listens on this socket"
        await daemon.wait_log("monitor is not connected", domain=NAME, reason=gone)
        yield stage(daemon)


@asynccontextmanager
async def silent(directory: Path) -> AsyncIterator[Stage]:
    async with running(directory, {}) as (daemon, vm):
        vm.swallow("query-status", times=None)
        await daemon.wait_log("QEMU does not answer", domain=NAME)
        yield stage(daemon)


@asynccontextmanager
async def held(directory: Path) -> AsyncIterator[Stage]:
    async with running(directory, {}) as (daemon, _):
        await daemon.call("hold", domain=NAME, why="forgotten")
        yield stage(daemon)


@dataclass(frozen=True)
class Spoilt(Stage):
    """A daemon that is in a bad state itself.

    Attributes:
        mend: does what the runbook says of the cause.
        fails: commands that fail in that state, and what with.
        wedged: its event loop stands still until it is mended.
    """

    mend: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
    fails: tuple[tuple[str, str], ...] = ()
    wedged: bool = False


def spoilt(daemon: ObservedDaemon, **how: Any) -> Spoilt:
    unwatched = daemon.directory / "elsewhere" / "other.qmp"
    return Spoilt(daemon, NAME, WITHOUT_INCIDENT, unwatched, **how)


@asynccontextmanager
async def down(directory: Path) -> AsyncIterator[Stage]:
    """It does not run, and a guest panics meanwhile."""
    async with (
        RunningDaemon.start(directory, time_limit=90) as daemon,
        FakeQemu(directory / f"{NAME}.qmp", name=NAME).running() as vm,
    ):
        await daemon.wait_armed(NAME)
        await daemon.terminate()
        vm.panic()

        async def start() -> None:
            await daemon.start_again()
            incident = await daemon.wait_incident(NAME, state="preserved")
            await daemon.wait_kept(incident)

        refused = (
            ("curl -s http://127.0.0.1:10077/healthz", "connection refused"),
            ("panicd status", "is panicd running?"),
        )
        there = spoilt(daemon, mend=start, fails=refused)
        yield there
        assert f"{NAME} " in there.said[-1]  # what panicked meanwhile


@asynccontextmanager
async def wedged(directory: Path) -> AsyncIterator[Stage]:
    async with running(directory, {}) as (daemon, _):
        unhealthy = (("curl -s http://127.0.0.1:10077/healthz", "HTTP status 503"),)
        yield spoilt(daemon, fails=unhealthy, wedged=True)


@asynccontextmanager
async def partly_blind(directory: Path) -> AsyncIterator[Stage]:
    """The directory of a socket of panicd's is gone, and can't be made anew."""
    lost = directory / "lost"
    monitors = [{"glob": str(directory / "*.qmp")}, {"listen": str(lost / "dial-in.sock")}]
    lost.mkdir()
    async with DaemonInside.start(directory, monitors=monitors, time_limit=90) as daemon:
        (lost / "dial-in.sock").unlink()
        lost.rmdir()
        lost.touch()
        await daemon.wait_log("there is a problem", count=2)

        async def make_again() -> None:
            lost.unlink()
            lost.mkdir()
            await daemon.wait_log("the problem is over")

        there = spoilt(daemon, mend=make_again)
        yield there
        assert "Problem" not in there.said[-1]


@asynccontextmanager
async def full(directory: Path) -> AsyncIterator[Stage]:
    with small_disk(directory, "1m") as disk:
        async with (
            DaemonInside.start(directory, state_directory=str(disk), time_limit=90) as daemon,
            FakeQemu(directory / f"{NAME}.qmp", name=NAME).running() as vm,
        ):
            await daemon.wait_armed(NAME)
            filler = fill(disk)
            vm.panic()
            await daemon.wait_log("the journal can't be written")
            there = spoilt(daemon, mend=trio.Path(filler).unlink)
            yield there
            assert "The journal" not in there.said[-1]


@asynccontextmanager
async def damaged(directory: Path) -> AsyncIterator[Stage]:
    async with (
        RunningDaemon.start(directory, time_limit=90) as daemon,
        FakeQemu(directory / f"{NAME}.qmp", name=NAME).running(),
    ):
        await daemon.terminate()
        (directory / "state/journal.sqlite3").write_bytes(b"not a database" * 1000)
        await daemon.start_again()
        await daemon.wait_armed(NAME, since=daemon.began)
        said = await daemon.wait_log("the journal is damaged")
        there = spoilt(daemon, mend=trio.Path(said["set_aside"]).unlink)
        yield there
        assert "The journal" not in there.said[-1]


@asynccontextmanager
async def reload_failed(directory: Path) -> AsyncIterator[Stage]:
    async with running(directory, {}) as (daemon, _):
        daemon.write_config(domains=[{"match": NAME, "on_crush": "restart"}])
        config = str(daemon.config_file)
        with pytest.raises(RefusedError):
            await daemon.call("reload")

        async def correct() -> None:
            daemon.write_config(domains=[{"match": NAME, "on_crash": "restart"}])

        there = spoilt(daemon, mend=correct, fails=(("panicd check", config),))
        yield there
        assert "If it panicked now: restart" in there.said[-1]


PRESERVED = panicked(DUMP, state="preserved")
# The state, and what the first command has to say about it.
STATES: dict[str, tuple[State, str]] = {
    "PanicdDomainPanicked": (PRESERVED, "preserved"),
    "PanicdPanickedDomainGone": (
        panicked({"on_crash": "destroy"}, ending="destroyed"),
        "destroyed",
    ),
    "PanicdManyDomainsPanicked": (PRESERVED, NAME),
    "PanicdSamePanicOnManyHosts": (PRESERVED, "SYSTEM_THREAD_EXCEPTION"),
    "PanicdCrashLoop": (panicked(RESTART, ending="restarted", times=2), "restarted"),
    "PanicdRestartBudgetSpent": (panicked(SPENT, state="preserved"), "budget-spent"),
    "PanicdDomainAwaitsOperator": (PRESERVED, "preserved"),
    "PanicdActionFailed": (
        panicked(RESTART, state="preserved", refused="system_reset"),
        "action-failed",
    ),
    "PanicdFellBack": (
        panicked({"on_crash": "ignore"}, state="preserved", profile=QEMU_1_6),
        "irreversible",
    ),
    "PanicdCoredumpFailed": (panicked(FULL, state="preserved"), NAME),
    "PanicdCoredumpSpaceLow": (as_it_is(FULL), ""),
    "PanicdDomainNotArmed": (as_it_is({}, profile=QEMU_2_8), "not-armed"),
    "PanicdDomainWithoutPanicDevice": (as_it_is({}, devices=()), "no-device"),
    "PanicdMonitorUnreachable": (unreachable, "nobody listens"),
    "PanicdDomainSilent": (silent, "silent"),
    "PanicdForeignResume": (
        panicked({}, ending="foreign-resume", then="cont"),
        "foreign-resume",
    ),
    "PanicdGuestLeftReset": (panicked({}, state="reset", then="system_reset"), "reset"),
    "PanicdHoldForgotten": (held, "held"),
    "PanicdDomainsExposed": (as_it_is(FULL), "no-dump-space"),
    "PanicdDown": (down, "good"),
    "PanicdHostGone": (down, "is panicd running?"),
    "PanicdWedged": (wedged, ""),
    "PanicdPartlyBlind": (partly_blind, "can't be bound anew"),
    "PanicdJournalFailing": (full, "The journal can't be written"),
    "PanicdJournalFailing, damaged": (damaged, "The journal was damaged"),
    "PanicdReloadFailing": (reload_failed, "on_crush"),
}


def runbook(state: str) -> str:
    return state.partition(",")[0]


def test_each_runbook_has_a_state() -> None:
    assert {*map(runbook, STATES)} == {path.stem for path in RUNBOOKS}


async def done(there: Stage, text: str) -> dict[str, str]:
    """Run the commands of a runbook's part; return what was wrong with them, by command."""
    failed = {}
    for command in commands(text):
        if command.split()[1] in ENDING:
            continue  # on a real guest each: test_runbooks
        problem = await there.run(command)
        if problem and not (
            problem == NOTHING and not any(there.daemon.directory.glob("state/coredumps/*/*/*"))
        ):
            failed[command] = problem
    return failed


def done_meanwhile(there: Stage, text: str) -> dict[str, str]:
    """Do the same while the event loop stands still, which is the one of this thread."""
    found: dict[str, str] = {}

    def do() -> None:
        while (served := trio.run(there.run, "curl http://127.0.0.1:10077/healthz")) == "":
            pass  # it has not stood still for long enough
        assert served
        found.update(trio.run(done, there, text))

    thread = Thread(target=do)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("name", STATES)
async def test_the_steps_work_in_the_state_that_the_alert_tells_of(
    socket_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "ASK_EVERY", 0.2)
    monkeypatch.setattr(liveness, "SILENT_AFTER", patience(0.2))
    monkeypatch.setattr(listening, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(service, "PULSE_EVERY", 0.05)
    state, shows = STATES[name]
    text = text_of(DIRECTORY / f"{runbook(name)}.md")
    before, after = text.split("## Mitigation")
    async with state(socket_dir) as there:
        match there:
            case Spoilt(wedged=True):
                with monkeypatch.context() as meanwhile:
                    meanwhile.setattr(service, "WEDGED_AFTER", WEDGED)
                    failed = done_meanwhile(there, before)
            case _:
                failed = await done(there, before)
        if isinstance(there, Spoilt):
            for command, what in there.fails:
                if command in before:
                    assert what in failed.pop(command)
            await there.mend()
        failed |= await done(there, after)
        assert any(shows in said for said in there.said[:1]) or not shows, there.said
        assert not failed
