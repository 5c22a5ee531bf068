"""What the machine has libvirt do with a domain, on a fake libvirtd: and what it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.fleet import libvirt_domains
from panicd.incident import liveness
from panicd.incident.reaction import Reaction
from panicd.libvirt import domain_monitor
from panicd.libvirt.protocol import EventKind, Procedure, State
from panicd.libvirt.xdr import Decoder
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd
from tests.parts.patience import patience

RESET, RESUME = Procedure.DOMAIN_RESET, Procedure.DOMAIN_RESUME
DESTROY = Procedure.DOMAIN_DESTROY_FLAGS
PANICKED, STOPPED = (State.CRASHED, 1), (State.PAUSED, 0)


@asynccontextmanager
async def looked_after(
    directory: Path, *domains: FakeDomain, **config: Any
) -> AsyncIterator[tuple[FakeLibvirtd, DaemonInside]]:
    async with (
        FakeLibvirtd.start(directory, *domains) as fake,
        DaemonInside.start(
            directory, monitors=[], libvirt={"uri": fake.uri}, time_limit=60, **config
        ) as daemon,
    ):
        for domain in fake.domains:
            await daemon.wait_armed(domain.name)
        yield fake, daemon


async def test_it_is_reset_and_let_run(socket_dir: Path) -> None:
    async with looked_after(socket_dir) as (fake, daemon):
        fake.panic()
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "event"
        assert (fake.told[RESET], fake.told[RESUME]) == (1, 1)
        assert fake.domain().state[0] == State.RUNNING


async def test_it_is_destroyed(socket_dir: Path) -> None:
    async with looked_after(socket_dir, FakeDomain("vm", 1, on_crash="destroy")) as (fake, daemon):
        fake.panic()
        await daemon.wait_incident("vm", ending="destroyed")
        assert fake.told[DESTROY] == 1


async def test_libvirt_says_that_it_has_panicked_before_stop_is_heard(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt gives events and answers in no common order; a panic goes as foreseen either way."""
    begun: list[Reaction] = []
    begin = Reaction.begin

    def noted(reaction: Reaction, *how: Any) -> None:
        begun.append(reaction)
        begin(reaction, *how)

    monkeypatch.setattr(Reaction, "begin", noted)
    async with looked_after(socket_dir) as (fake, daemon):
        fake.domain().state = PANICKED
        fake.say_panic(fake.domain(), stops=False)
        await daemon.wait_incident("vm", ending="restarted")
        assert (fake.told[RESET], fake.told[RESUME]) == (1, 1)
    (reaction,) = begun
    assert reaction.is_given


async def test_libvirt_has_taken_in_the_panic_before(socket_dir: Path) -> None:
    """It would say 'crashed' for good of a guest that was reset by then."""
    async with looked_after(socket_dir) as (fake, daemon):
        fake.domain().state = STOPPED
        fake.say_panic(fake.domain())
        await daemon.wait_log("guest panicked")
        while fake.told[Procedure.DOMAIN_GET_STATE] < 4:  # it is looked again and again
            await trio.lowlevel.checkpoint()
        assert not fake.told[RESET]
        fake.domain().state = PANICKED
        fake.say_lifecycle(fake.domain(), EventKind.CRASHED)
        await daemon.wait_incident("vm", ending="restarted")


async def test_libvirt_takes_in_a_reset_after_it_has_answered(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy host it was seen to say 'crashed' for a moment more."""

    def reset(fake: FakeLibvirtd, items: Decoder) -> bytes:
        domain = fake._running(items)
        fake._say_qemu(domain, "RESET", '{"guest":false}')
        return b""

    monkeypatch.setattr(FakeLibvirtd, "_reset", reset)
    async with looked_after(socket_dir) as (fake, daemon):
        fake.panic()
        while not fake.told[RESET]:
            await trio.lowlevel.checkpoint()
        before = fake.told[Procedure.DOMAIN_GET_STATE]
        while fake.told[Procedure.DOMAIN_GET_STATE] < before + 4:  # it is looked again and again
            await trio.lowlevel.checkpoint()
        fake.domain().state = State.PAUSED, 10
        await daemon.wait_incident("vm", ending="restarted")
        assert (fake.told[RESET], fake.told[RESUME]) == (1, 1)
        assert len(daemon.incidents()) == 1


async def test_the_next_start_of_a_domain_is_not_met(socket_dir: Path) -> None:
    """Its events may be late; libvirt would reset whatever has the UUID by now."""
    async with looked_after(socket_dir) as (fake, daemon):
        fake.domain().state = PANICKED
        fake.say_panic(fake.domain())
        fake.domain().id = 77  # a panicked guest, but another one
        mark = daemon.mark()
        await daemon.wait_log("connection ended", since=mark)
        assert not fake.told[RESET]
        # It is found as it stands: libvirt tells of it when it is listed or heard of.
        fake.say_lifecycle(fake.domain(), EventKind.STARTED)
        await daemon.wait_armed("vm", since=mark)


async def test_a_guest_that_somebody_has_let_run_is_left_alone(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else did may not have been heard of yet."""
    async with looked_after(socket_dir) as (fake, daemon):
        monkeypatch.setattr(domain_monitor, "TAKEN_IN_WITHIN", 0.0)
        fake.say_panic(fake.domain())
        await daemon.wait_incident("vm", ending="foreign-resume")
        assert not fake.told[RESET]
        assert not fake.told[Procedure.DOMAIN_SUSPEND]


async def test_a_panic_that_libvirt_takes_in_late_is_not_lost(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job has held the domain; until that ended libvirt said that the guest runs."""
    async with looked_after(socket_dir) as (fake, daemon):
        monkeypatch.setattr(domain_monitor, "TAKEN_IN_WITHIN", 0.0)
        mark = daemon.mark()
        fake.say_panic(fake.domain())
        await daemon.wait_incident("vm", ending="foreign-resume")
        await daemon.wait_armed("vm", since=mark)
        fake.domain().state = PANICKED
        fake.say_lifecycle(fake.domain(), EventKind.CRASHED)
        await daemon.wait_incident("vm", ending="restarted")


async def test_libvirt_is_let_act_on_one_panic_only(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest panicked before libvirt was had to preserve; the next panic is panicd's."""
    monkeypatch.setattr(libvirt_domains, "LASTING", 0.1)
    async with (
        FakeLibvirtd.start(socket_dir) as fake,
        DaemonInside.start(
            socket_dir, monitors=[], libvirt={"uri": fake.uri}, time_limit=60
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        fake.faults.hangs = {Procedure.DOMAIN_SET_METADATA}
        started = FakeDomain("new", 50)
        fake.domains.append(started)
        fake.say_lifecycle(started, EventKind.STARTED)
        while fake.told[Procedure.DOMAIN_SET_METADATA] < 2:
            await trio.lowlevel.checkpoint()
        mark = daemon.mark()
        fake.say_panic(started)
        fake.say_resume(started)  # libvirt has restarted it by itself
        await fake.go_on()
        await daemon.wait_log("guest panicked", domain="new")
        await daemon.wait_log("connection ended", since=mark)
        await daemon.wait_armed("new", since=mark)
        fake.panic("new")
        await daemon.wait_incident("new", ending="restarted")
        assert fake.told[RESET] == 1


@pytest.mark.parametrize("dies_after", [RESET, RESUME])
async def test_a_libvirtd_that_ends_with_a_command(socket_dir: Path, dies_after: Procedure) -> None:
    """Whether it was carried out is seen by the domain's state; nothing is done twice."""
    async with looked_after(socket_dir) as (fake, daemon):
        fake.faults.dies_after = dies_after
        fake.panic()
        while not fake.told[dies_after]:
            await trio.lowlevel.checkpoint()
        fake.faults.dies_after = None
        await daemon.wait_incident("vm", ending="restarted")
        assert (fake.told[RESET], fake.told[RESUME]) == (1, 1)


async def test_one_that_hangs_delays_no_other(socket_dir: Path) -> None:
    domains = [FakeDomain(f"vm{number}", number) for number in range(1, 9)]
    async with looked_after(socket_dir, *domains, storm="off") as (fake, daemon):
        fake.faults.qemu_hangs = {"vm1"}
        fake.panic("vm1")
        await daemon.wait_log("guest panicked", domain="vm1")
        for domain in domains[1:]:
            fake.panic(domain.name)
        for domain in domains[1:]:
            await daemon.wait_incident(domain.name, ending="restarted")
        assert fake.domain("vm1").state == PANICKED


async def test_an_idle_one_that_hangs_counts_as_silent(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirtd itself knows how it stands, and would say so for ever."""
    monkeypatch.setattr(liveness, "ASK_EVERY", 0.05)
    monkeypatch.setattr(liveness, "SILENT_AFTER", patience(0.2))
    async with looked_after(socket_dir) as (fake, daemon):
        fake.faults.qemu_hangs = {"vm"}
        await daemon.wait_log("QEMU does not answer", domain="vm")
        await daemon.wait_domain("vm", lambda domain: domain["silent"])
        fake.faults.qemu_hangs = set()
        await daemon.wait_log("QEMU answers again", domain="vm")


async def test_libvirt_s_own_events_do_where_qemu_s_are_refused(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake:
        fake.faults.qemu_events = False
        async with DaemonInside.start(
            socket_dir, monitors=[], libvirt={"uri": fake.uri}, time_limit=60
        ) as daemon:
            await daemon.wait_armed("vm")
            fake.panic()
            incident = await daemon.wait_incident("vm", ending="restarted")
            assert incident.source == "event"
            assert (fake.told[RESET], fake.told[RESUME]) == (1, 1)


async def test_a_late_word_of_an_earlier_start_counts_for_nothing(socket_dir: Path) -> None:
    async with looked_after(socket_dir, FakeDomain("vm", 7)) as (fake, daemon):
        domain, mark = fake.domain(), daemon.mark()
        for number in (3, -1):
            domain.id = number
            fake.say_panic(domain)
        domain.id = 3
        fake.say_lifecycle(domain, EventKind.STOPPED)
        domain.id = 7
        fake.panic()
        await daemon.wait_incident("vm", ending="restarted")
        assert not daemon.logged("domain ended", since=mark)
        assert len(daemon.incidents()) == 1


async def test_found_panicked_when_panicd_comes(socket_dir: Path) -> None:
    domain = FakeDomain("vm", 1, state=PANICKED)
    async with (
        FakeLibvirtd.start(socket_dir, domain) as fake,
        DaemonInside.start(
            socket_dir, monitors=[], libvirt={"uri": fake.uri}, time_limit=60
        ) as daemon,
    ):
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"


async def test_found_panicked_when_libvirt_has_learnt_of_it(socket_dir: Path) -> None:
    """A libvirtd that has just started asks QEMU how its guest stands, and tells nobody."""
    async with looked_after(socket_dir) as (fake, daemon):
        fake.domain().state = PANICKED
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.source == "reconciliation"


async def test_a_job_of_libvirt_s_is_waited_for(socket_dir: Path) -> None:
    async with looked_after(socket_dir) as (fake, daemon):
        fake.job = 1, 5
        fake.panic()
        await daemon.wait_log("waiting", until_the_end_of="a migration")
        assert not fake.told[RESET]
        fake.job = 0, 0
        await daemon.wait_incident("vm", ending="restarted")


async def test_an_idle_domain_without_a_panic_device_is_told_of(socket_dir: Path) -> None:
    domain = FakeDomain("vm", 1, inside="")
    async with looked_after(socket_dir, domain) as (_fake, daemon):
        status = await daemon.domain("vm")
        assert status["panic_device"] == "none"
        assert status["libvirt"] == "preserve"
        exposed = (await daemon.call("audit"))["exposed"]
        (exposed,) = [one for one in exposed if one["monitor"] == status["monitor"]]
        assert "virt-xml vm --add-device --panic default" in str(exposed)


@pytest.mark.parametrize("on_crash", ["restart", "destroy"])
async def test_panicd_is_killed_between_the_record_and_the_command(
    socket_dir: Path, on_crash: str
) -> None:
    domain = FakeDomain("vm", 1, on_crash=on_crash)
    act, ending = (RESET, "restarted") if on_crash == "restart" else (DESTROY, "destroyed")
    async with (
        FakeLibvirtd.start(socket_dir, domain) as fake,
        RunningDaemon.start(
            socket_dir, monitors=[], libvirt={"uri": fake.uri}, time_limit=60
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        fake.faults.hangs.add(Procedure.DOMAIN_LOOKUP_BY_UUID)
        fake.panic()
        while not daemon.journal():  # the commit that has the command's beginning is the first
            await trio.lowlevel.checkpoint()
        await daemon.kill()
        assert not fake.told[act]
        assert daemon.journal()[0].steps, "it is on record"

        fake.faults.hangs.clear()
        await daemon.start_again()
        await daemon.wait_incident("vm", ending=ending)
        assert fake.told[act] == 1
        assert len(daemon.journal()) == 1


async def test_panicd_is_killed_when_the_command_was_carried_out(socket_dir: Path) -> None:
    async with (
        FakeLibvirtd.start(socket_dir) as fake,
        RunningDaemon.start(
            socket_dir, monitors=[], libvirt={"uri": fake.uri}, time_limit=60
        ) as daemon,
    ):
        await daemon.wait_armed("vm")
        fake.faults.dies_after = RESET
        fake.panic()
        while not fake.told[RESET]:
            await trio.lowlevel.checkpoint()
        await daemon.kill()
        fake.faults.dies_after = None
        await daemon.start_again()
        await daemon.wait_incident("vm", ending="restarted")
        assert (fake.told[RESET], fake.told[RESUME]) == (1, 1), "nothing is done twice"
