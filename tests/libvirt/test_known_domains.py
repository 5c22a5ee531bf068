"""libvirt as panicd keeps it in memory, on a fake libvirtd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from panicd.libvirt import known_domains as module
from panicd.libvirt import requests
from panicd.libvirt.domain_process import DomainProcess
from panicd.libvirt.errors import LibvirtAwayError
from panicd.libvirt.known_domains import Libvirt
from panicd.libvirt.protocol import EventKind, Procedure
from panicd.libvirt.takeover import give_back, take_over
from panicd.libvirt.xdr import Decoder
from panicd.rules.libvirt import METADATA_URI, parse_domain
from panicd.rules.on_crash import OnCrash
from panicd.rules.settings import LibvirtSettings, OnStop
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd
from tests.parts.patience import fail_after

MONITOR = Path("/run/qemu/vm.qmp")
ACTS = {Procedure.DOMAIN_SET_METADATA, Procedure.DOMAIN_SET_LIFECYCLE_ACTION}


@pytest.fixture(autouse=True)
async def _in_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "RETRY_EVERY", 0.05)
    monkeypatch.setattr(module, "KNOWN_WITHIN", 5.0)
    with fail_after(20):
        yield


@asynccontextmanager
async def knowing(
    fake: FakeLibvirtd, *, dry_run: bool = False, **settings: Any
) -> AsyncIterator[Libvirt]:
    """A libvirt that is connected to, with its domains listed."""
    configured = LibvirtSettings(fake.uri, **settings)
    known = Libvirt(lambda: configured, dry_run=dry_run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.run)
        await until(known, lambda: bool(known.running))
        yield known
        nursery.cancel_scope.cancel()


async def until(known: Libvirt, holds: Any) -> None:
    while not holds():
        await known.changes()


async def test_a_domain_is_taken_over(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        vm = fake.monitored(MONITOR)
        await known.learn(vm.uuid, str(MONITOR), "")

        domain = known.known(str(MONITOR))
        assert domain is not None
        assert (domain.acts, domain.on_crash) == (False, OnCrash.RESTART)
        assert vm.on_crash == "preserve"
        element = '<policy on_crash="restart" taken_from="restart"/>'
        assert vm.metadata == {METADATA_URI: element}


async def test_what_can_t_be_kept_is_not_taken_over(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        fake.faults.refuses[Procedure.DOMAIN_SET_METADATA] = "no"
        vm = fake.monitored(MONITOR)
        await known.learn(vm.uuid, str(MONITOR), "")

        domain = known.known(str(MONITOR))
        assert domain is not None
        assert domain.acts
        assert vm.on_crash == "restart"


@pytest.mark.parametrize("options", [{"take_over": False}, {"dry_run": True}])
async def test_libvirt_is_left_as_it_is(socket_dir: Path, options: dict[str, bool]) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake, **options) as known:
        vm = fake.monitored(MONITOR)
        await known.learn(vm.uuid, str(MONITOR), "")

        domain = known.known(str(MONITOR))
        assert domain is not None
        assert domain.acts
        assert not ACTS & set(fake.told)


async def test_what_was_taken_over_elsewhere_is_put_right(socket_dir: Path) -> None:
    """A saved image, or a migration, brings panicd's own doing along."""
    element = "<p:policy xmlns:p='urn:panicd:libvirt:1' on_crash='restart' taken_from='restart'/>"
    arrived = FakeDomain("vm", 1, on_crash="preserve", metadata={METADATA_URI: element})
    async with (
        FakeLibvirtd.start(socket_dir, arrived) as fake,
        knowing(fake, take_over=False) as known,
    ):
        start = known.start_of(arrived.uuid)
        assert start is not None
        domain = await known.describe(start)
        assert (arrived.on_crash, arrived.metadata) == ("restart", {})
        assert domain.acts


@pytest.mark.parametrize("on_stop", OnStop)
async def test_what_becomes_of_it_at_the_end(socket_dir: Path, on_stop: OnStop) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake:
        async with knowing(fake, on_stop=on_stop) as known:
            start = known.start_of(fake.domain().uuid)
            assert start is not None
            await known.describe(start)
            assert fake.domain().on_crash == "preserve"
        restored = on_stop is OnStop.RESTORE
        assert fake.domain().on_crash == ("restart" if restored else "preserve")
        assert bool(fake.domain().metadata) is not restored


async def test_one_that_refuses_keeps_no_other_from_being_given_back(socket_dir: Path) -> None:
    domains = [FakeDomain(f"vm{number}", number) for number in (1, 2, 3)]
    async with FakeLibvirtd.start(socket_dir, *domains) as fake:
        async with knowing(fake, on_stop=OnStop.RESTORE) as known:
            for domain in domains:
                start = known.start_of(domain.uuid)
                assert start is not None
                await known.describe(start)
            fake.domains.remove(domains[0])  # it has ended, and is not yet told of
        assert [domain.on_crash for domain in domains] == ["preserve", "restart", "restart"]


async def test_a_word_that_is_none_ends_nothing(socket_dir: Path) -> None:
    """Whoever may write a domain's metadata does not end panicd by it."""
    element = "<p:policy xmlns:p='urn:panicd:libvirt:1' on_crash='restart' taken_from='nonsense'/>"
    odd = FakeDomain("vm", 1, on_crash="preserve", metadata={METADATA_URI: element})
    async with FakeLibvirtd.start(socket_dir, odd) as fake, knowing(fake, take_over=False) as known:
        start = known.start_of(odd.uuid)
        assert start is not None
        await known.describe(start)
        assert not ACTS & set(fake.told)


async def test_one_that_can_t_be_read_keeps_no_other_from_being_described(
    socket_dir: Path,
) -> None:
    bad, good = FakeDomain("bad", 1), FakeDomain("good", 2)
    async with (
        FakeLibvirtd.start(socket_dir, bad, good) as fake,
        knowing(fake, dry_run=True) as known,
    ):
        for start in known.running:
            await known.describe(start)
        bad.metadata["urn:x"] = "<broken"
        good.on_crash = "coredump-destroy"
        asked = fake.told[Procedure.DOMAIN_GET_XML_DESC]
        known.refresh_soon()
        while fake.told[Procedure.DOMAIN_GET_XML_DESC] < asked + 2:
            await trio.lowlevel.checkpoint()
        found: set[OnCrash | None] = set()
        while OnCrash.COREDUMP_DESTROY not in found:
            await trio.lowlevel.checkpoint()
            found = {start.domain.on_crash for start in known.running if start.domain}
        assert known.problem == ""


async def test_what_was_told_since_counts_before_the_list(socket_dir: Path) -> None:
    """A list that is long in coming may be from before what was told meanwhile."""
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        start = known.start_of(fake.domain().uuid)
        assert start is not None
        old = fake._states(Decoder(b""))
        fake.faults.hangs = {Procedure.CONNECT_GET_ALL_DOMAIN_STATS}
        listed = fake.told[Procedure.CONNECT_GET_ALL_DOMAIN_STATS]
        known.refresh_soon()
        while fake.told[Procedure.CONNECT_GET_ALL_DOMAIN_STATS] == listed:
            await trio.lowlevel.checkpoint()
        fake.say_lifecycle(fake.domain(), EventKind.STOPPED)
        fake.domain().id = 77
        fake.say_lifecycle(fake.domain(), EventKind.STARTED)
        await until(known, lambda: known.running and known.running[0].ref.id == 77)
        fake.faults.lies[Procedure.CONNECT_GET_ALL_DOMAIN_STATS] = old
        described = fake.told[Procedure.DOMAIN_GET_XML_DESC]
        await fake.go_on()
        (now,) = known.running
        await known.describe(now)
        assert fake.told[Procedure.DOMAIN_GET_XML_DESC] > described
        assert [each.ref.id for each in known.running] == [77]


@pytest.mark.parametrize("monitor", ["/run/qemu/other.qmp", ""])
async def test_what_is_not_this_domain_s_is_not_believed(socket_dir: Path, monitor: str) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        if monitor:
            fake.monitored(Path(monitor))
        await known.learn(fake.domain().uuid, str(MONITOR), "")
        assert known.known(str(MONITOR)) is None


async def test_what_libvirt_does_not_know_is_waited_for_briefly(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_WITHIN", 0.05)
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        await known.learn("6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11", str(MONITOR), "")
        assert known.known(str(MONITOR)) is None


async def test_what_libvirt_tells_of_too_late_is_taken_in_when_it_does(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy host a domain's QEMU answers seconds before libvirt says that it has started."""
    monkeypatch.setattr(module, "KNOWN_WITHIN", 0.05)
    domains = FakeDomain("vm", -1), FakeDomain("other", 1)
    async with FakeLibvirtd.start(socket_dir, *domains) as fake, knowing(fake) as known:
        vm = fake.monitored(MONITOR)
        await known.learn(vm.uuid, str(MONITOR), "")
        assert known.known(str(MONITOR)) is None
        changed = trio.Event()
        known.on_change = changed.set
        vm.id = 2
        fake.say_lifecycle(vm, EventKind.STARTED)
        await until(known, lambda: known.start_of(vm.uuid) is not None)
        start = known.start_of(vm.uuid)
        assert start is not None
        await known.describe(start)

        assert changed.is_set()
        domain = known.known(str(MONITOR))
        assert domain is not None
        assert domain.on_crash is OnCrash.RESTART


async def test_a_libvirt_that_is_away_is_not_waited_for(socket_dir: Path) -> None:
    settings = LibvirtSettings(f"qemu:///system?socket={socket_dir}/gone")
    known, told = Libvirt(lambda: settings, dry_run=False), trio.Event()
    known.on_problem = lambda problem: told.set() if problem else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.run)
        await told.wait()
        assert "no libvirtd answers" in known.problem
        with fail_after(1):
            await known.learn("6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11", str(MONITOR), "")
        nursery.cancel_scope.cancel()


async def test_a_uri_of_another_host_is_refused_with_the_reason() -> None:
    known = Libvirt(lambda: LibvirtSettings("qemu+ssh://other/system"), dry_run=False)
    told: list[str] = []
    known.on_problem = told.append
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(told) == 1
    assert "another host" in told[0]


async def test_domains_are_listed_anew_when_libvirtd_comes_back(socket_dir: Path) -> None:
    domains = FakeDomain("gone", 1), FakeDomain("stays", 2), FakeDomain("anew", 3)
    async with FakeLibvirtd.start(socket_dir, *domains) as fake, knowing(fake) as known:
        await until(known, lambda: len(known.running) == 3)
        stays = known.start_of(domains[1].uuid)
        domains[0].id, domains[2].id = -1, 7
        await fake.end()
        await until(known, lambda: len(known.running) == 2)

        anew = known.start_of(domains[2].uuid)
        assert anew is not None
        assert anew.ref.id == 7
        assert known.start_of(domains[1].uuid) is stays
        assert stays is not None
        assert not stays.monitor.events.ended, "there is a new way to it"


async def test_numbers_begin_anew_with_a_new_libvirtd(socket_dir: Path) -> None:
    """It goes on from the highest number of those that run then."""
    async with FakeLibvirtd.start(socket_dir, FakeDomain("vm", 7)) as fake, knowing(fake) as known:
        vm = fake.domain()
        vm.id = -1
        listed = fake._states(Decoder(b""))
        fake.faults.hangs = {Procedure.CONNECT_GET_ALL_DOMAIN_STATS}
        asked = fake.told[Procedure.CONNECT_GET_ALL_DOMAIN_STATS]
        await fake.end()
        while fake.told[Procedure.CONNECT_GET_ALL_DOMAIN_STATS] == asked:
            await trio.lowlevel.checkpoint()
        vm.id = 3
        fake.say_lifecycle(vm, EventKind.STARTED)
        fake.faults.lies[Procedure.CONNECT_GET_ALL_DOMAIN_STATS] = listed  # of before
        await until(known, lambda: known.running and known.running[0].ref.id == 3)
        await fake.go_on()
        (start,) = known.running
        await known.describe(start)
        assert [each.ref.id for each in known.running] == [3]


@pytest.mark.parametrize("change", [take_over, give_back])
async def test_a_take_over_that_waits_its_turn_does_not_meet_the_next_start(
    socket_dir: Path, change: Any
) -> None:
    """That one has an ``<on_crash>`` of its own."""
    async with (
        FakeLibvirtd.start(socket_dir) as fake,
        knowing(fake, take_over=False) as known,
        trio.open_nursery() as nursery,
    ):
        ref, domain = fake.domain().ref, parse_domain(fake.domain().xml)
        if change is give_back:
            domain = domain.taken_over()
        fake.faults.hangs = {Procedure.DOMAIN_GET_IOTHREAD_INFO}
        for _ in range(2):
            known.client.ask(requests.io_threads(ref), lambda _: None, timeout=60)

        async def asked() -> None:
            with pytest.raises(LibvirtAwayError):
                await change(known.client, ref, domain)

        nursery.start_soon(asked)
        await wait_all_tasks_blocked(0.01)
        fake.domain().id = 77
        await fake.go_on()
    assert not ACTS & set(fake.told)


async def test_a_domain_that_is_forgotten_is_known_until_the_next_turn(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        vm = fake.monitored(MONITOR)
        await known.learn(vm.uuid, str(MONITOR), "")
        known.forget(str(MONITOR))
        assert known.known(str(MONITOR)) is not None, "its relaunch may still depend on it"
        known.refresh_soon()
        while known.known(str(MONITOR)) is not None:
            await trio.lowlevel.checkpoint()


async def test_a_monitor_that_is_forgotten_during_its_look_up_belongs_to_nobody(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, begun, let_go = DomainProcess.find, trio.Event(), trio.Event()

    async def find_late(*arguments: Any) -> Any:
        begun.set()
        await let_go.wait()
        return await find(*arguments)

    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        vm = fake.monitored(MONITOR)
        monkeypatch.setattr(DomainProcess, "find", find_late)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(known.learn, vm.uuid, str(MONITOR), "")
            await begun.wait()
            known.forget(str(MONITOR))
            let_go.set()
        assert known.known(str(MONITOR)) is None


async def test_what_somebody_writes_into_the_metadata_is_seen_at_once(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, knowing(fake) as known:
        vm = fake.monitored(MONITOR)
        vm.on_crash = "preserve"
        await known.learn(vm.uuid, str(MONITOR), "")
        changed = trio.Event()
        known.on_change = changed.set
        vm.metadata[METADATA_URI] = f"<p:policy xmlns:p='{METADATA_URI}' on_crash='ignore'/>"
        fake.say_metadata_changed(vm, METADATA_URI)
        await changed.wait()
        domain = known.known(str(MONITOR))
        assert domain is not None
        assert domain.on_crash is OnCrash.IGNORE
