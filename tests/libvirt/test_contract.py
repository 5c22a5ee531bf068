"""What libvirt's RPC is, on a fake libvirtd and on a real one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.libvirt import introduction, requests
from panicd.libvirt.client import Standing
from panicd.libvirt.errors import ErrorCode, LibvirtAwayError, LibvirtRefusedError
from panicd.libvirt.protocol import (
    NOT_RUNNING,
    CrashedDetail,
    DomainRef,
    DomainState,
    DumpFormat,
    EventKind,
    LifecycleAction,
    QemuEvent,
    Rebooted,
    State,
    StoppedDetail,
)
from tests.parts.fake_libvirtd import FakeLibvirtd
from tests.parts.libvirt import Libvirtd, LibvirtVm
from tests.parts.libvirt_client import ANSWERED_WITHIN, Listener, connected
from tests.parts.patience import fail_after

NAMESPACE = "urn:panicd:test:1"
NOBODY = DomainRef("nobody", "11111111-2222-3333-4444-555555555555", 7)


class Subject(ABC):
    """A libvirtd with one domain, ``vm``, that runs."""

    uri: str

    @abstractmethod
    async def panic(self) -> None:
        """Have the guest panic."""

    @abstractmethod
    def frozen(self) -> AbstractContextManager[None]:
        """Have libvirtd stand still meanwhile."""


class _Fake(Subject):
    def __init__(self, fake: FakeLibvirtd) -> None:
        self.uri = fake.uri
        self._fake = fake

    async def panic(self) -> None:
        self._fake.panic()

    def frozen(self) -> AbstractContextManager[None]:
        return self._fake.frozen()


class _Real(Subject):
    def __init__(self, libvirtd: Libvirtd, vm: LibvirtVm) -> None:
        self.uri = libvirtd.uri
        self._libvirtd = libvirtd
        self._vm = vm

    async def panic(self) -> None:
        await self._vm.press_key()

    def frozen(self) -> AbstractContextManager[None]:
        return self._libvirtd.frozen()


@asynccontextmanager
async def _start_fake(socket_dir: Path) -> AsyncIterator[Subject]:
    async with FakeLibvirtd.start(socket_dir) as fake:
        yield _Fake(fake)


@asynccontextmanager
async def _start_real(libvirtd: Libvirtd, socket_dir: Path) -> AsyncIterator[Subject]:
    async with libvirtd.domain(socket_dir, "restart") as vm:
        yield _Real(libvirtd, vm)


@pytest.fixture(
    params=[pytest.param("fake"), pytest.param("real", marks=pytest.mark.real)],
)
def start(request: pytest.FixtureRequest, socket_dir: Path) -> Callable[[], Any]:
    if request.param == "fake":
        return partial(_start_fake, socket_dir)
    return partial(_start_real, request.getfixturevalue("libvirtd"), socket_dir)


Start = Callable[[], AbstractAsyncContextManager[Subject]]


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(60):
        yield


@asynccontextmanager
async def taken_over(start: Start) -> AsyncIterator[tuple[Subject, Listener, DomainRef]]:
    """A domain of which libvirt preserves a panic."""
    async with start() as subject, connected(subject.uri) as listener:
        domain = await listener.domain()
        asked = requests.set_on_crash(domain, LifecycleAction.PRESERVE)
        await listener.client.call(asked, timeout=ANSWERED_WITHIN)
        yield subject, listener, domain


async def call(listener: Listener, request: requests.Request[Any]) -> Any:
    return await listener.client.call(request, timeout=ANSWERED_WITHIN)


async def test_a_domain_is_found_and_told_of(start: Start) -> None:
    async with start() as subject, connected(subject.uri) as listener:
        domain = await listener.domain()
        assert domain.name == "vm"
        assert domain.id > 0
        assert await call(listener, requests.look_up(domain.uuid)) == domain
        assert await call(listener, requests.look_up_id(domain.id)) == domain
        assert await call(listener, requests.list_domains(active=False, inactive=True)) == []
        stands = await call(listener, requests.state_of(domain))
        assert stands.state == State.RUNNING
        assert await call(listener, requests.states()) == [(domain, stands)]
        xml = await call(listener, requests.describe(domain))
        assert f"<uuid>{domain.uuid}</uuid>" in xml
        assert "<on_crash>restart</on_crash>" in xml


async def test_version_and_process_are_told(start: Start) -> None:
    async with start() as subject, connected(subject.uri) as listener:
        await listener.domain()
        assert await call(listener, introduction.lib_version()) >= 9_000_000
        peer = listener.client.peer
        assert peer is not None
        assert peer.uid == os.getuid()


@pytest.mark.parametrize(
    "request_of",
    [
        requests.describe,
        requests.state_of,
        requests.reset,
        requests.resume,
        requests.destroy,
        lambda domain: requests.peek(domain, 0, 8),
        lambda domain: requests.metadata(domain, NAMESPACE),
    ],
)
async def test_an_unknown_domain_is_refused(
    start: Start, request_of: Callable[[DomainRef], requests.Request[Any]]
) -> None:
    async with start() as subject, connected(subject.uri) as listener:
        with pytest.raises(LibvirtRefusedError, match="Domain not found") as refused:
            await call(listener, request_of(NOBODY))
        assert refused.value.no_domain


async def test_a_number_that_nobody_has_is_refused(start: Start) -> None:
    async with start() as subject, connected(subject.uri) as listener:
        domain = await listener.domain()
        with pytest.raises(LibvirtRefusedError) as refused:
            await call(listener, requests.look_up_id(domain.id + 1))
        assert refused.value.no_domain


async def test_metadata_is_kept_and_removed(start: Start) -> None:
    element = '<policy on_crash="restart"/>'
    async with start() as subject, connected(subject.uri) as listener:
        domain = await listener.domain()
        with pytest.raises(LibvirtRefusedError) as refused:
            await call(listener, requests.metadata(domain, NAMESPACE))
        assert refused.value.code == ErrorCode.NO_DOMAIN_METADATA
        await call(listener, requests.set_metadata(domain, NAMESPACE, "test", element))
        assert await call(listener, requests.metadata(domain, NAMESPACE)) == element
        await call(listener, requests.set_metadata(domain, NAMESPACE, "test", None))
        with pytest.raises(LibvirtRefusedError):
            await call(listener, requests.metadata(domain, NAMESPACE))


async def test_a_panic_is_heard_and_the_guest_is_reset_and_let_run(start: Start) -> None:
    async with taken_over(start) as (subject, listener, domain):
        assert "<on_crash>preserve</on_crash>" in await call(listener, requests.describe(domain))
        await subject.panic()

        heard = await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)
        assert heard == domain
        await listener.wait(lambda: "STOP" in listener.of_qemu())
        assert listener.of_qemu() == ["GUEST_PANICKED", "STOP"]
        (panic,) = (
            event
            for event in listener.events
            if isinstance(event, QemuEvent) and event.name == "GUEST_PANICKED"
        )
        assert panic.domain == domain
        assert '"action":"pause"' in panic.details
        assert panic.at > 1_600_000_000
        stands = await call(listener, requests.state_of(domain))
        assert stands.panicked
        assert await call(listener, requests.states()) == [(domain, stands)]
        assert await call(listener, requests.list_domains()) == [domain]

        await call(listener, requests.reset(domain))
        assert await call(listener, requests.state_of(domain)) == DomainState(State.PAUSED, 10)
        await call(listener, requests.resume(domain))
        await listener.wait_event(EventKind.RESUMED, 0)
        await listener.wait(lambda: "RESUME" in listener.of_qemu())
        assert listener.of_qemu()[2:] == ["RESET", "RESUME"]
        await listener.wait(lambda: Rebooted(domain) in listener.events)
        stands = await call(listener, requests.state_of(domain))
        assert stands.state == State.RUNNING
        with pytest.raises(LibvirtRefusedError, match="already running") as refused:
            await call(listener, requests.resume(domain))
        assert refused.value.code == ErrorCode.OPERATION_INVALID


async def test_a_reset_whose_answer_asks_to_resume_takes_no_further_turn(start: Start) -> None:
    async with taken_over(start) as (subject, listener, domain):
        await subject.panic()
        await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)
        answers: list[object] = []
        done = trio.Event()

        def resumed(answer: object) -> None:
            answers.append(answer)
            done.set()

        def was_reset(answer: object) -> None:
            answers.append(answer)
            listener.client.ask(requests.resume(domain), resumed, timeout=ANSWERED_WITHIN)

        listener.client.ask(requests.reset(domain), was_reset, timeout=ANSWERED_WITHIN)
        await done.wait()
        assert answers == [None, None]
        assert (await call(listener, requests.state_of(domain))).state == State.RUNNING


async def test_a_panicked_guest_is_ended_and_started_anew(start: Start) -> None:
    async with taken_over(start) as (subject, listener, domain):
        await subject.panic()
        await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)
        await call(listener, requests.destroy(domain))
        ended = await listener.wait_event(EventKind.STOPPED, StoppedDetail.DESTROYED)
        assert ended.uuid == domain.uuid
        assert await call(listener, requests.list_domains()) == []
        with pytest.raises(LibvirtRefusedError):
            await call(listener, requests.look_up_id(domain.id))
        assert (await call(listener, requests.look_up(domain.uuid))).id == NOT_RUNNING
        for request in (requests.reset(domain), requests.destroy(domain)):
            with pytest.raises(LibvirtRefusedError, match="not running") as refused:
                await call(listener, request)
            assert refused.value.code == ErrorCode.OPERATION_INVALID

        anew = await call(listener, requests.start(domain))
        assert anew.uuid == domain.uuid
        assert anew.id > domain.id
        assert await call(listener, requests.look_up_id(anew.id)) == anew


async def test_memory_is_read(start: Start) -> None:
    async with taken_over(start) as (subject, listener, domain):
        await subject.panic()
        await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)
        for length in (8, 4096, 65536):
            assert len(await call(listener, requests.peek(domain, 0, length))) == length


async def test_an_idle_domain_has_no_job_and_a_monitor_that_is_fine(start: Start) -> None:
    async with start() as subject, connected(subject.uri) as listener:
        domain = await listener.domain()
        assert (await call(listener, requests.job(domain))).type == 0
        assert (await call(listener, requests.control(domain))).state == 0
        assert await call(listener, requests.io_threads(domain)) == 0
        with pytest.raises(LibvirtRefusedError, match="no job") as refused:
            await call(listener, requests.abort_job(domain))
        assert refused.value.code == ErrorCode.OPERATION_INVALID


async def test_a_dump_comes_through_a_pipe(start: Start) -> None:
    async with taken_over(start) as (subject, listener, domain):
        await subject.panic()
        await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        size = 0

        async def read() -> None:
            nonlocal size
            async with trio.lowlevel.FdStream(reading) as stream:
                async for piece in stream:
                    assert size or piece.startswith(b"\x7fELF")
                    size += len(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            path = f"/proc/{os.getpid()}/fd/{writing}"
            try:
                await call(listener, requests.core_dump(domain, path, DumpFormat.RAW))
            finally:
                os.close(writing)
        assert size > 1000


async def test_a_libvirtd_that_stands_still_shows_and_no_event_is_lost(start: Start) -> None:
    async with taken_over(start) as (subject, listener, domain):
        with subject.frozen():
            await subject.panic()
            await listener.wait_standing(Standing.SILENT)
            with pytest.raises(LibvirtAwayError, match="does not answer"):
                await call(listener, requests.state_of(domain))
        await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)
        await listener.wait_standing(Standing.UP)
        assert listener.client.generation == 1
        assert (await call(listener, requests.state_of(domain))).panicked
