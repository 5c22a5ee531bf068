"""What a configuration has panicd run, and is not there."""

from pathlib import Path
from socket import AF_UNIX, socket

import pytest

from panicd.config.config import load
from panicd.host.systemd import bus_that_is_missing
from panicd.service.programs import MissingProgram, missing_programs
from tests.parts.commands import DONE, panicd
from tests.parts.daemon import DaemonInside

CONFIG = """
monitors: [{{glob: /run/qemu/*.qmp}}]
notify: {{hook: {{command: [{gone}/hook]}}}}
domains:
  - {{match: a, relaunch: {{command: [{gone}/start, "{{domain}}"]}}}}
  - {{match: b, relaunch: {{command: [/bin/sh, -c, exit]}}}}
  - {{match: c, relaunch: {{libvirt: "qemu:///system?socket={gone}/libvirt-sock"}}}}
  - {{match: d, relaunch: {{unit: "vm@{{domain}}.service"}}}}
"""


def test_each_is_named_with_who_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    file = tmp_path / "panicd.yaml"
    file.write_text(CONFIG.format(gone=tmp_path))

    assert missing_programs(load(file)) == [
        MissingProgram(f"{tmp_path}/start", "relaunch.command"),
        MissingProgram(f"{tmp_path}/hook", "notify.hook.command"),
        MissingProgram("/nowhere/bus", "relaunch.unit", "dbus"),
        MissingProgram(f"{tmp_path}/libvirt-sock", "relaunch.libvirt", "libvirt-daemon"),
    ]
    checked = panicd("--config", file, "check")
    assert checked.exit_code == DONE
    assert "relaunch.unit: /nowhere/bus is missing or unusable (Debian: dbus)" in checked.output


@pytest.mark.parametrize(
    ("address", "missing"),
    [
        ("unix:path={there}", ""),
        ("unix:path={gone}", "{gone}"),
        ("unix:abstract=/known/when/it/is/called", ""),
        ("tcp:host=127.0.0.1", "DBus transports ({{'tcp'}}) not supported. Supported: ('unix',)"),
    ],
)
def test_the_bus_is_looked_for(
    address: str, missing: str, socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"there": socket_dir / "there", "gone": socket_dir / "gone"}
    with socket(AF_UNIX) as bus:
        bus.bind(str(places["there"]))
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address.format(**places))

        assert bus_that_is_missing() == missing.format(**places)


async def test_the_daemon_says_so_when_it_starts(socket_dir: Path) -> None:
    uri = f"qemu:///system?socket={socket_dir}/libvirt-sock"
    async with DaemonInside.start(socket_dir, {"relaunch": {"libvirt": uri}}) as daemon:
        told = await daemon.wait_log("a program is missing")
        assert told["program"] == f"{socket_dir}/libvirt-sock"
        assert (told["wanted_by"], told["package"]) == ("relaunch.libvirt", "libvirt-daemon")
