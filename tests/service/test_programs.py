"""What a configuration has panicd run, and is not there."""

from pathlib import Path

import pytest

from panicd.config.config import load
from panicd.service.programs import MissingProgram, missing_programs
from tests.parts.commands import DONE, panicd
from tests.parts.daemon import DaemonInside

CONFIG = """
monitors: [{{glob: /run/qemu/*.qmp}}]
notify: {{hook: {{command: [{gone}/hook]}}}}
domains:
  - {{match: a, relaunch: {{command: [{gone}/start, "{{domain}}"]}}}}
  - {{match: b, relaunch: {{command: [/bin/sh, -c, exit]}}}}
  - {{match: c, relaunch: {{libvirt: "qemu:///system"}}}}
  - {{match: d, relaunch: {{unit: "vm@{{domain}}.service"}}}}
"""


def test_each_is_named_with_who_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    file = tmp_path / "panicd.yaml"
    file.write_text(CONFIG.format(gone=tmp_path))

    assert missing_programs(load(file)) == [
        MissingProgram(f"{tmp_path}/start", "relaunch.command", ""),
        MissingProgram("virsh", "relaunch.libvirt", "libvirt-clients"),
        MissingProgram(f"{tmp_path}/hook", "notify.hook.command", ""),
    ]
    checked = panicd("--config", file, "check")
    assert checked.exit_code == DONE
    assert "relaunch.libvirt: virsh is not there, or no program (Debian: libvirt-clients)" in (
        checked.output
    )


async def test_the_daemon_says_so_when_it_starts(socket_dir: Path) -> None:
    notify = {"hook": {"command": [f"{socket_dir}/hook"]}}
    async with DaemonInside.start(socket_dir, notify=notify) as daemon:
        told = await daemon.wait_log("a program is missing")
        assert told["program"] == f"{socket_dir}/hook"
        assert told["wanted_by"] == "notify.hook.command"
