"""Starting a VM again: what is run, and what becomes of it when that goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from panicd.incident.relaunch import run_relaunch
from panicd.rules.incident import Outcome
from panicd.rules.plan import RunRelaunch
from tests.parts.patience import fail_after
from tests.parts.systemd import Bus, FakeSystemd

UUID = "6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11"
MONITOR = "/run/qemu/web-1.qmp"
VM = {"PANICD_DOMAIN": "web-1", "PANICD_UUID": UUID, "PANICD_MONITOR": MONITOR}
UNIT = RunRelaunch(20.0, unit="qemu@{domain}.service")
LIBVIRT = RunRelaunch(20.0, libvirt_uri="qemu:///system")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test puts its own programs."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def xml(monitor: str) -> str:
    """A domain that does not run, with a QMP monitor of its own."""
    return f"""<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web-1</name>
  <qemu:commandline>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='socket,id=panicd,path={monitor},server=on,wait=off'/>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='chardev:panicd'/>
  </qemu:commandline>
</domain>
"""


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
async def systemd(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSystemd]:
    async with Bus.start(socket_dir) as bus, bus.systemd() as systemd:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield systemd


async def test_libvirt_is_asked_once_it_knows_that_qemu_has_ended(programs: Path) -> None:
    states = f"echo . >>{programs}/looks; [ $(wc -l <{programs}/looks) = 3 ] || exec echo running"
    (programs / "xml").write_text(xml(MONITOR))
    script = (
        f'case "$4" in domstate) {states}; echo "shut off";; dumpxml) cat {programs}/xml;;'
        f' *) echo "$*" >>{programs}/told; esac'
    )
    write_program(programs / "virsh", script)
    assert (await run_relaunch(LIBVIRT, VM)).outcome is Outcome.DONE
    told = (programs / "told").read_text()
    assert told == f"--quiet --connect qemu:///system start {UUID}\n"
    assert len((programs / "looks").read_text()) == 6, "that took three looks"


@pytest.mark.parametrize("answer", ["", "no XML", xml("/run/qemu/other.qmp")])
async def test_a_domain_that_does_not_name_the_monitor_is_not_started(
    programs: Path, answer: str
) -> None:
    (programs / "xml").write_text(answer)
    script = (
        f'case "$4" in domstate) echo "shut off";; dumpxml) cat {programs}/xml;;'
        f" *) touch {programs}/told; esac"
    )
    write_program(programs / "virsh", script)
    result = await run_relaunch(LIBVIRT, VM)
    assert result.outcome is Outcome.FAILED
    assert f"does not name the monitor {MONITOR}" in result.detail
    assert not (programs / "told").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no domain' >&2; exit 5", "virsh: no domain"),
        ("echo 'in shutdown'", "not started in 0.5 s: it was 'in shutdown'"),
        ("exec sleep 60", "not started in 0.5 s"),
    ],
)
async def test_a_domain_that_does_not_start_says_why(
    programs: Path, script: str, said: str
) -> None:
    write_program(programs / "virsh", script)
    timeout = 0.5 if "0.5" in said else 20.0
    result = await run_relaunch(RunRelaunch(timeout, libvirt_uri="qemu:///system"), VM)
    assert result.outcome is Outcome.FAILED
    assert said in result.detail


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
