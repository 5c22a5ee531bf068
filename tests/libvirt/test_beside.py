"""What libvirt is told to do with a domain that has a monitor for panicd beside libvirt's own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from panicd.libvirt import beside
from panicd.libvirt.client import Client
from panicd.libvirt.errors import LibvirtAwayError, LibvirtRefusedError, LibvirtSilentError
from panicd.libvirt.protocol import Procedure, State
from panicd.libvirt.xdr import Decoder
from panicd.qemu.session import Session
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.machine.vm import Stand
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd
from tests.parts.libvirt_client import connected
from tests.parts.patience import fail_after

VERBS = {
    "reset": Procedure.DOMAIN_RESET,
    "resume": Procedure.DOMAIN_RESUME,
    "destroy": Procedure.DOMAIN_DESTROY_FLAGS,
}
CRASHED, STOPPED, RUNNING = (State.CRASHED, 1), (State.PAUSED, 0), (State.RUNNING, 1)


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(30):
        yield


@asynccontextmanager
async def told(directory: Path) -> AsyncIterator[tuple[FakeLibvirtd, Client]]:
    """A libvirtd with a domain that has panicked, and the connection to it."""
    async with FakeLibvirtd.start(directory) as fake, connected(fake.uri) as listener:
        fake.domain().state = CRASHED
        yield fake, listener.client


def of(domain: FakeDomain, number: int | None = None) -> LibvirtDomain:
    return LibvirtDomain(domain.id if number is None else number, domain.name, domain.uuid)


def stays(stand: Stand) -> Callable[[], Stand]:
    return lambda: stand


async def act(client: Client, domain: LibvirtDomain, verb: str, **how: Any) -> None:
    await beside.act(client, domain, verb, Stand.PANICKED, known=stays(Stand.PANICKED), **how)


async def dump(client: Client, domain: LibvirtDomain, path: Path, timeout: float = 20.0) -> None:
    known = stays(Stand.PANICKED)
    await beside.dump(client, domain, path, "elf", known=known, timeout=timeout)


async def looked_at(fake: FakeLibvirtd, times: int) -> None:
    """Wait until it was asked some times more how its domain stands, and told nothing meanwhile."""
    before, acts = Counter(fake.told), set(VERBS.values())
    while fake.told[Procedure.DOMAIN_GET_STATE] < before[Procedure.DOMAIN_GET_STATE] + times:
        assert not {each for each in acts if fake.told[each] > before[each]}
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("before", [RUNNING, STOPPED], ids=["runs", "stopped"])
@pytest.mark.parametrize("verb", VERBS)
async def test_libvirt_acts_once_it_has_taken_in_the_panic(
    socket_dir: Path, verb: str, before: tuple[int, int]
) -> None:
    """It takes in QEMU's stop before: it would say 'crashed' of a guest that was resumed then."""
    async with told(socket_dir) as (fake, client):
        vm = fake.domain()
        vm.state = before
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act, client, of(vm), verb)
            await looked_at(fake, 3)
            vm.state = CRASHED
        assert fake.told[VERBS[verb]] == 1


@pytest.mark.parametrize("state", [CRASHED, (State.PAUSED, 10)], ids=["crashed", "reset"])
async def test_a_guest_that_was_reset_is_let_run_at_once(
    socket_dir: Path, state: tuple[int, int]
) -> None:
    """libvirt's own resume waits for its reset."""
    async with told(socket_dir) as (fake, client):
        fake.domain().state = state
        known = stays(Stand.RESET)
        await beside.act(client, of(fake.domain()), "resume", Stand.RESET, known=known)
        assert fake.told[Procedure.DOMAIN_GET_STATE] == 2


@pytest.mark.parametrize("verb", VERBS)
async def test_another_domain_with_its_number_is_left_alone(socket_dir: Path, verb: str) -> None:
    """libvirtd was started anew: it numbers its domains anew."""
    async with told(socket_dir) as (fake, client):
        fake.domain().state = CRASHED
        before = replace(of(fake.domain()), uuid="5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51")
        with pytest.raises(LibvirtAwayError, match="has ended"):
            await act(client, before, verb)
        assert not fake.told[VERBS[verb]]


async def test_a_monitor_is_one_whatever_links_lead_to_it(tmp_path: Path) -> None:
    os.symlink(".", tmp_path / "link")  # noqa: PTH211 - one call that waits for nothing
    here, there = str(tmp_path / "vm.qmp"), str(tmp_path / "link/vm.qmp")
    assert beside.names_monitor([there], here)
    assert beside.names_monitor([here], there)
    assert not beside.names_monitor([here], there + "2")


@pytest.mark.parametrize("verb", VERBS)
async def test_a_guest_that_somebody_lets_run_meanwhile_is_left_alone(
    socket_dir: Path, verb: str
) -> None:
    """The monitor tells of it before libvirt does."""
    heard = [Stand.PANICKED]
    async with told(socket_dir) as (fake, client):
        vm = fake.domain()
        vm.state = STOPPED

        async def refused() -> None:
            with pytest.raises(LibvirtAwayError):
                await beside.act(client, of(vm), verb, Stand.PANICKED, known=lambda: heard[-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            await looked_at(fake, 2)
            heard.append(Stand.RUNS)
        assert not fake.told[VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
async def test_a_guest_that_libvirt_has_let_run_right_before_is_left_alone(
    socket_dir: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt tells of it before the monitor does."""
    async with told(socket_dir) as (fake, client):
        states = iter([CRASHED, RUNNING])
        answer = fake._answers[Procedure.DOMAIN_GET_STATE]

        def state(items: Decoder) -> bytes:
            fake.domain().state = next(states)
            return answer(items)

        monkeypatch.setitem(fake._answers, Procedure.DOMAIN_GET_STATE, state)
        with pytest.raises(LibvirtAwayError):
            await act(client, of(fake.domain()), verb)
        assert not fake.told[VERBS[verb]]


async def test_a_libvirt_that_never_takes_it_in_is_not_waited_for(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have suspended the panicked guest: libvirt says 'paused' of it then."""
    monkeypatch.setattr(beside, "TAKEN_IN_WITHIN", 0.1)
    async with told(socket_dir) as (fake, client):
        fake.domain().state = STOPPED
        await act(client, of(fake.domain()), "reset")
        assert fake.told[Procedure.DOMAIN_RESET] == 1


async def test_the_next_start_of_a_domain_is_not_met(socket_dir: Path) -> None:
    async with told(socket_dir) as (fake, client):
        with pytest.raises(LibvirtAwayError):
            await act(client, of(fake.domain(), 77), "destroy")
        assert not fake.told[Procedure.DOMAIN_DESTROY_FLAGS]


async def test_libvirt_that_is_silent_before_is_told_nothing(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "TAKEN_IN_WITHIN", 0.1)
    async with told(socket_dir) as (fake, client):
        fake.faults.hangs.add(Procedure.DOMAIN_GET_STATE)
        with pytest.raises(LibvirtAwayError):
            await act(client, of(fake.domain()), "reset")
        assert not fake.told[Procedure.DOMAIN_RESET]


async def test_libvirt_that_is_silent_after_may_have_done_it(socket_dir: Path) -> None:
    async with told(socket_dir) as (fake, client):
        fake.faults.hangs.add(Procedure.DOMAIN_RESET)
        with pytest.raises(LibvirtSilentError):
            await act(client, of(fake.domain()), "reset", timeout=0.2)


async def test_libvirt_that_says_no(socket_dir: Path) -> None:
    async with told(socket_dir) as (fake, client):
        fake.faults.refuses[Procedure.DOMAIN_RESET] = "cannot acquire state change lock"
        with pytest.raises(LibvirtRefusedError, match="state change lock"):
            await act(client, of(fake.domain()), "reset")


async def test_a_dump_that_is_given_up_is_ended_in_libvirt_too(socket_dir: Path) -> None:
    async with told(socket_dir) as (fake, client):
        fake.job = (2, 8)  # a dump
        fake.faults.hangs.add(Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT)
        with pytest.raises(LibvirtSilentError):
            await dump(client, of(fake.domain()), socket_dir / "dump", timeout=0.2)
        assert fake.told[Procedure.DOMAIN_ABORT_JOB] == 1


async def test_a_guest_that_libvirt_takes_for_running_is_not_dumped(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would resume it afterwards."""
    monkeypatch.setattr(beside, "TAKEN_IN_WITHIN", 0.1)
    async with told(socket_dir) as (fake, client):
        fake.domain().state = RUNNING
        with pytest.raises(LibvirtAwayError, match="has not seen that the guest is stopped"):
            await dump(client, of(fake.domain()), socket_dir / "dump")
        assert not fake.told[Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT]


# The whole daemon, with a QEMU whose libvirt is slow to take in its panics.


class SlowLibvirtd(FakeLibvirtd):
    """It sees its QEMU stop at once, and that a panic was why when the test says so."""

    qemu: FakeQemu

    def stop_seen(self) -> None:
        """Have the guest panic."""
        self.domain().state = STOPPED
        self.qemu.panic()

    def panic_seen(self) -> None:
        """Take in the panic."""
        self.domain().state = CRASHED

    def _resume(self, items: Decoder) -> bytes:
        answer = super()._resume(items)
        self.qemu.machine.execute("cont", {})
        return answer


async def test_an_ignored_guest_runs_on_once_libvirt_has_taken_in_each_panic(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say 'crashed' of a guest that was let run by then: after the second one, too."""
    monkeypatch.setattr(Session, "by_libvirt", True)
    path = socket_dir / "vm.qmp"
    vm = FakeDomain("vm", 1, on_crash="preserve")
    async with (
        SlowLibvirtd.start(socket_dir, vm) as fake,
        FakeQemu(path, uuid=vm.uuid, panic_action="pause").running() as qemu,
    ):
        assert isinstance(fake, SlowLibvirtd)
        fake.monitored(path)
        fake.qemu = qemu
        rules = [{"match": "vm", "on_crash": "ignore"}]
        libvirt = {"uri": fake.uri}
        async with DaemonInside.start(socket_dir, libvirt=libvirt, domains=rules) as daemon:
            await daemon.wait_domain("vm", lambda domain: domain["libvirt"] == "preserve")
            for panics in (1, 2, 3):
                fake.stop_seen()
                await looked_at(fake, 3)
                assert "cont" not in qemu.changing_commands
                fake.panic_seen()
                while fake.told[Procedure.DOMAIN_RESUME] < panics:
                    assert "cont" not in qemu.changing_commands
                    await trio.lowlevel.checkpoint()
            await daemon.wait_incident("vm", state="running-on")
            assert fake.domain().state[0] == State.RUNNING
