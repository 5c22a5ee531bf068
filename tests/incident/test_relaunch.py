"""Starting a VM again: what is run, and what becomes of it when that goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from panicd.incident.relaunch import run_relaunch
from panicd.libvirt.protocol import Procedure, State
from panicd.qemu.process_identity import boot_id
from panicd.rules.incident import Outcome, StepResult
from panicd.rules.libvirt import address_of
from panicd.rules.plan import RunRelaunch
from tests.parts.fake_libvirtd import MONITOR as FAKE_MONITOR
from tests.parts.fake_libvirtd import FakeDomain, FakeLibvirtd
from tests.parts.patience import fail_after
from tests.parts.systemd import Bus, FakeSystemd

UUID = "6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11"
MONITOR = "/run/qemu/web-1.qmp"
VM = {"PANICD_DOMAIN": "web-1", "PANICD_UUID": UUID, "PANICD_MONITOR": MONITOR}
UNIT = RunRelaunch(20.0, unit="qemu@{domain}.service")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test puts its own programs."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
async def systemd(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSystemd]:
    async with Bus.start(socket_dir) as bus, bus.systemd() as systemd:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield systemd


def ended(*, monitor: str = MONITOR) -> FakeDomain:
    """A domain that does not run, with a QMP monitor of its own."""
    domain = FakeDomain("web-1", -1, UUID, (State.SHUTOFF, 5))
    domain.inside += FAKE_MONITOR.format(path=monitor)
    return domain


async def test_libvirt_is_asked_once_it_knows_that_qemu_has_ended(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir, domain := ended()) as fake:
        domain.state = State.SHUTDOWN, 1
        async with trio.open_nursery() as nursery:
            results: list[StepResult] = []

            async def relaunch() -> None:
                results.append(await run_relaunch(RunRelaunch(20.0, libvirt_uri=fake.uri), VM))

            nursery.start_soon(relaunch)
            while fake.told[Procedure.DOMAIN_GET_STATE] < 2:
                await trio.lowlevel.checkpoint()
            assert not fake.told[Procedure.DOMAIN_CREATE_WITH_FLAGS]
            domain.state = State.SHUTOFF, 5
        assert results[0].outcome is Outcome.DONE
        assert domain.id >= 0


@pytest.mark.parametrize("seen", ["before", "meanwhile"])
async def test_a_domain_that_somebody_else_has_started_is_not_panicd_s_to_start(
    socket_dir: Path, seen: str
) -> None:
    """Not even when that start has ended."""
    async with FakeLibvirtd.start(socket_dir, domain := ended(monitor="")) as fake:
        domain.id, domain.state = 4, (State.SHUTDOWN, 1)
        which = VM | {"PANICD_MONITOR": address_of(fake.uri, UUID)}
        earlier = f"libvirt:{boot_id()}/{fake.uri}#{UUID}#3"
        async with trio.open_nursery() as nursery:
            results: list[StepResult] = []

            async def relaunch() -> None:
                step = RunRelaunch(20.0, libvirt_uri=fake.uri)
                process = earlier if seen == "before" else ""
                results.append(await run_relaunch(step, which, process))

            nursery.start_soon(relaunch)
            while not results and fake.told[Procedure.DOMAIN_GET_STATE] < 2:
                await trio.lowlevel.checkpoint()
            domain.id, domain.state = 5, (State.RUNNING, 1)
        assert results == [StepResult(Outcome.DONE, "somebody else has started it")]
        assert not fake.told[Procedure.DOMAIN_CREATE_WITH_FLAGS]


@pytest.mark.parametrize("monitor", ["/run/qemu/other.qmp", ""])
async def test_a_domain_that_does_not_name_the_monitor_is_not_started(
    socket_dir: Path, monitor: str
) -> None:
    async with FakeLibvirtd.start(socket_dir, ended(monitor=monitor)) as fake:
        result = await run_relaunch(RunRelaunch(20.0, libvirt_uri=fake.uri), VM)
        assert result.outcome is Outcome.FAILED
        assert f"does not name {MONITOR}" in result.detail
        assert not fake.told[Procedure.DOMAIN_CREATE_WITH_FLAGS]


async def test_a_domain_that_was_looked_after_by_libvirt_alone_is_the_one_of_its_uuid(
    socket_dir: Path,
) -> None:
    async with FakeLibvirtd.start(socket_dir, ended(monitor="")) as fake:
        which = VM | {"PANICD_MONITOR": address_of(fake.uri, UUID)}
        result = await run_relaunch(RunRelaunch(20.0, libvirt_uri=fake.uri), which)
        assert result.outcome is Outcome.DONE


async def test_a_domain_that_does_not_start_says_why(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir, domain := ended()) as fake:
        fake.faults.refuses[Procedure.DOMAIN_CREATE_WITH_FLAGS] = "no such disk"
        result = await run_relaunch(RunRelaunch(20.0, libvirt_uri=fake.uri), VM)
        assert (result.outcome, result.detail) == (Outcome.FAILED, "libvirt: no such disk")

        domain.state = State.SHUTDOWN, 1
        result = await run_relaunch(RunRelaunch(0.5, libvirt_uri=fake.uri), VM)
        assert (result.outcome, result.detail) == (Outcome.FAILED, "not started in 0.5 s")


async def test_a_libvirt_that_is_away_says_so(socket_dir: Path) -> None:
    uri = f"qemu:///system?socket={socket_dir}/gone"
    result = await run_relaunch(RunRelaunch(20.0, libvirt_uri=uri), VM)
    assert result.outcome is Outcome.FAILED
    assert "no libvirtd answers" in result.detail


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'no VM' >&2; exit 5", "exit status 5: no VM"), ("exec sleep 60", "ran 0.2 s")],
)
async def test_a_command_that_fails_says_why(programs: Path, script: str, said: str) -> None:
    write_program(programs / "start", script)
    timeout = 0.2 if "ran" in said else 20.0
    result = await run_relaunch(RunRelaunch(timeout, command=(str(programs / "start"),)), VM)
    assert result.outcome is Outcome.FAILED
    assert said in result.detail


async def test_a_unit_is_started(systemd: FakeSystemd) -> None:
    result = await run_relaunch(RunRelaunch(20.0, unit="done.{domain}.service"), VM)
    assert result.outcome is Outcome.DONE
    assert systemd.calls[-1] == ("StartUnit", (r"done.web\x2d1.service", "replace"))


async def test_a_unit_that_does_not_start_says_why(systemd: FakeSystemd) -> None:
    result = await run_relaunch(RunRelaunch(20.0, unit="missing.{domain}.service"), VM)
    assert result.outcome is Outcome.FAILED
    assert r"Unit missing.web\x2d1.service not found." in result.detail
    assert [method for method, _ in systemd.calls] == ["Subscribe", "StartUnit"]


async def test_a_name_that_makes_no_unit_starts_none(systemd: FakeSystemd) -> None:
    step = RunRelaunch(20.0, unit="qemu@{domain_as_is}.service")
    result = await run_relaunch(step, {**VM, "PANICD_DOMAIN": "x y"})
    assert result.outcome is Outcome.FAILED
    assert "makes no unit's name" in result.detail
    assert not systemd.calls


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
@pytest.mark.parametrize("step", [RunRelaunch(5.0, command=("/bin/true",)), UNIT])
async def test_a_name_that_no_environment_can_hold_is_a_failure(
    name: str, step: RunRelaunch
) -> None:
    """A QEMU that was taken over may call itself anything; that must not end the daemon."""
    with fail_after(10):
        result = await run_relaunch(step, {"PANICD_DOMAIN": name})
    assert result.outcome is Outcome.FAILED
