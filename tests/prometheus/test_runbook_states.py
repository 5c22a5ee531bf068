"""The first steps of each runbook, on a live daemon that is in the state that the alert tells of.

What the first command says has to show the thing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from panicd.incident import liveness
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_1_6, QEMU_2_8
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


PRESERVED = panicked(DUMP, state="preserved")
HEALTHY = as_it_is({})
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
    "PanicdDown": (HEALTHY, ""),
    "PanicdHostGone": (HEALTHY, ""),
    "PanicdWedged": (HEALTHY, ""),
    "PanicdPartlyBlind": (HEALTHY, ""),
    "PanicdJournalFailing": (HEALTHY, ""),
    "PanicdReloadFailing": (HEALTHY, ""),
}


def test_each_runbook_has_a_state() -> None:
    assert STATES.keys() == {path.stem for path in RUNBOOKS}


@pytest.mark.parametrize("name", STATES)
async def test_the_steps_work_in_the_state_that_the_alert_tells_of(
    socket_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "ASK_EVERY", 0.2)
    monkeypatch.setattr(liveness, "SILENT_AFTER", 0.2)
    state, shows = STATES[name]
    text = text_of(DIRECTORY / f"{name}.md")
    async with state(socket_dir) as there:
        failed = {}
        for command in commands(text):
            if command.split()[1] in ENDING:
                continue  # on a real guest each: test_runbooks
            problem = await there.run(command)
            if problem and not (
                problem == NOTHING and not any(there.daemon.directory.glob("state/coredumps/*/*/*"))
            ):
                failed[command] = problem
        assert shows in there.said[0], there.said[0]
        assert not failed
