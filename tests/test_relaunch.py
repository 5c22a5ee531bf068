"""Starting a VM again: what is run, and what becomes of it when that goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from panicd.relaunch import run_relaunch
from panicd.rules.incident import Outcome
from panicd.rules.plan import RunRelaunch

UUID = "6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11"
VM = {"PANICD_DOMAIN": "web-1", "PANICD_UUID": UUID}
UNIT = RunRelaunch(20.0, unit="qemu@{domain}.service")
LIBVIRT = RunRelaunch(20.0, libvirt_uri="qemu:///system")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test puts its own systemctl and virsh."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "step", "arguments"),
    [
        ("systemctl", UNIT, r"--no-ask-password --quiet start -- qemu@web\x2d1.service"),
        ("virsh", LIBVIRT, f"--quiet --connect qemu:///system start {UUID}"),
    ],
)
async def test_what_is_run(programs: Path, name: str, step: RunRelaunch, arguments: str) -> None:
    write_program(programs / name, f'printf "%s" "$*" >{programs}/told')
    assert (await run_relaunch(step, VM)).outcome is Outcome.DONE
    assert (programs / "told").read_text() == arguments


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Unit qemu@web.service not found.' >&2; exit 5", "exit status 5: Unit qemu@web"),
        ("exec sleep 60", "ran 0.2 s"),
    ],
)
async def test_a_unit_that_does_not_start_says_why(programs: Path, script: str, said: str) -> None:
    write_program(programs / "systemctl", script)
    result = await run_relaunch(RunRelaunch(0.2 if "ran" in said else 20.0, unit="a.service"), VM)
    assert result.outcome is Outcome.FAILED
    assert said in result.detail


async def test_a_name_that_makes_no_unit_starts_none(programs: Path) -> None:
    write_program(programs / "systemctl", f"touch {programs}/told")
    step = RunRelaunch(20.0, unit="qemu@{domain_as_is}.service")
    result = await run_relaunch(step, {**VM, "PANICD_DOMAIN": "x y"})
    assert result.outcome is Outcome.FAILED
    assert "makes no unit's name" in result.detail
    assert not (programs / "told").exists()


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
@pytest.mark.parametrize("step", [RunRelaunch(5.0, command=("/bin/true",)), UNIT])
async def test_a_name_that_no_environment_can_hold_is_a_failure(
    name: str, step: RunRelaunch
) -> None:
    """A QEMU that was taken over may call itself anything; that must not end the daemon."""
    with trio.fail_after(10):
        result = await run_relaunch(step, {"PANICD_DOMAIN": name})
    assert result.outcome is Outcome.FAILED
