"""What people type: each command's answer, its JSON, its exit status."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from panicd import __version__
from panicd.cli import main, probing
from panicd.host.control import RefusedError
from panicd.rules.on_crash import OnCrash
from tests.parts.background import background
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState
from tests.parts.qemu import RealQemu, qemu_binary

DONE, FAILED, BAD_USAGE = 0, 1, 2

TIME_LIMIT = 20.0

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f54"


def panicd(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """Run a command; a traceback is a failure."""
    result = CliRunner().invoke(main, [*map(str, arguments)], env=env, prog_name="panicd")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def ask(daemon: ObservedDaemon, *arguments: str, status: int = DONE) -> str:
    """Run a command that asks a daemon, and return what it printed."""
    result = await trio.to_thread.run_sync(panicd, "--config", daemon.config_file, *arguments)
    assert result.exit_code == status, result.output
    return result.output


async def ask_json(daemon: ObservedDaemon, *arguments: str, status: int = DONE) -> Any:
    return json.loads(await ask(daemon, *arguments, "--json", status=status))


# -- without a daemon


def test_help_lists_every_command_with_what_it_does() -> None:
    overview = panicd("--help")
    assert overview.exit_code == DONE
    for name, command in main.commands.items():
        assert f"\n  {name} " in overview.output
        assert command.get_short_help_str(), f"{name} says nothing of itself"
        shown = panicd(name, "--help")
        assert shown.exit_code == DONE
        assert f"Usage: panicd {name}" in shown.output


def test_version() -> None:
    assert panicd("--version").output == f"panicd, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["explain"],
        ["act", "vm", "explode", "--why", "because"],
        ["release", "vm"],
        ["hold", "--why", "because"],
        ["hold", "vm", "--all", "--why", "because"],
        ["hold", "vm", "--for", "2 hours", "--why", "because"],
        ["qemu-args"],
        ["qemu-args", "--name", "vm", "--qemu-version", "seven"],
        ["incidents", "--limit", "0"],
        ["incidents", "--since", "tomorrow"],
        ["incidents", "--until", "2026-02-30"],
        ["incidents", "--since", "1h", "--until", "2h"],
        ["export"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_2(arguments: list[str]) -> None:
    result = panicd(*arguments)
    assert result.exit_code == BAD_USAGE
    assert "Error: " in result.output


def test_commands_that_need_a_daemon_say_where_they_looked(tmp_path: Path) -> None:
    result = panicd("--socket", tmp_path / "control.sock", "status")
    assert result.exit_code == FAILED
    assert str(tmp_path / "control.sock") in result.output


def test_check_says_that_a_configuration_is_good(tmp_path: Path) -> None:
    config = tmp_path / "panicd.yaml"
    config.write_text("monitors: [{glob: /run/qemu/*.qmp}]\ndomains: [{match: web-*}]\n")
    result = panicd("--config", config, "check")
    assert result.exit_code == DONE
    assert "good, 1 domain rules" in result.output


@pytest.mark.parametrize("command", ["check", "run"])
def test_every_mistake_is_printed_with_its_line(tmp_path: Path, command: str) -> None:
    config = tmp_path / "panicd.yaml"
    config.write_text("monitors:\n  - glob: qemu\ndefaults:\n  on_crush: restart\n  fallback: no\n")
    result = panicd("--config", config, command)
    assert result.exit_code == BAD_USAGE
    lines = result.output.splitlines()
    assert [line.split(": ")[0] for line in lines if line.startswith(str(config))] == [
        f"{config}:2:11",
        f"{config}:4:3",
        f"{config}:5:13",
    ]


def why_it_does_not_run(daemon: ObservedDaemon) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "panicd", "--config", daemon.config_file, "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == FAILED
    assert "Traceback" not in finished.stderr
    return finished.stderr


def test_run_without_a_place_for_its_state_says_so(socket_dir: Path) -> None:
    below_a_file = str(socket_dir / "panicd.yaml" / "state")
    daemon = ObservedDaemon(socket_dir, state_directory=below_a_file)
    assert "Not a directory" in why_it_does_not_run(daemon)


def test_run_without_a_place_to_listen_says_so(socket_dir: Path) -> None:
    nowhere = str(socket_dir / "nowhere" / "listen.sock")
    daemon = ObservedDaemon(socket_dir, monitors=[{"listen": nowhere}])
    assert "No such file or directory" in why_it_does_not_run(daemon)


def test_probe_of_nothing_fails(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    result = panicd("--config", daemon.config_file, "probe", socket_dir / "no.qmp")
    assert result.exit_code == FAILED
    assert "no.qmp: No such file or directory" in result.output


@pytest.mark.parametrize("version", ["1.5", "2.8", "5.2", "7.2", "11.1"])
@pytest.mark.parametrize("more", [[], ["--pci"], ["--dial-in", "/run/panicd/qmp.sock"]])
def test_qemu_args_are_a_shell_s_words(version: str, more: list[str]) -> None:
    result = panicd("qemu-args", "--name", "it's web-1", "--qemu-version", version, *more)
    if "--pci" in more and version in {"1.5", "2.8", "5.2"}:
        assert result.exit_code == BAD_USAGE  # pvpanic-pci came with 6.0
        return
    assert result.exit_code == DONE
    words = shlex.split(result.output, comments=True)
    assert words[:2] == ["-name", "it's web-1"]
    assert "-mon" in words
    assert ("-no-shutdown" in words) == (version in {"2.8", "5.2"})  # 1.5 pauses on a panic


# -- with a daemon


async def test_status_and_explain(socket_dir: Path) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "coredump-restart"}) as daemon,
        FakeQemu(socket_dir / "web-1.qmp", name="web-1", uuid=UUID).running(),
    ):
        await daemon.wait_armed("web-1")
        (domain,) = (await ask_json(daemon, "status"))["domains"]
        assert (domain["domain"], domain["uuid"], domain["armed"]) == ("web-1", UUID, "yes")
        shown = await ask(daemon, "status")
        assert "web-1" in shown
        assert "coredump-restart" in shown

        for name in ("web-1", UUID):
            explained = await ask_json(daemon, "explain", name)
            assert (explained["plan"]["action"], explained["plan"]["reason"]) == (
                *("coredump-restart", "on-crash"),
            )
            assert [step["step"] for step in explained["plan"]["steps"]][-2:] == [
                *("SystemReset", "Cont"),
            ]
        shown = await ask(daemon, "explain", "web-1")
        assert "If it panicked now: coredump-restart" in shown
        assert shown.index("Dump") < shown.index("SystemReset") < shown.index("Cont")

        assert "no domain is called 'web-2'" in await ask(daemon, "explain", "web-2", status=FAILED)


async def test_status_of_nothing_asks_the_right_questions(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        assert "Does a monitor's glob match" in await ask(daemon, "status")
        assert "No incident." in await ask(daemon, "incidents")


async def test_incidents_and_incident(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "ack", incident.id, "--why", "seen")  # it is in the journal by now
        (kept,) = await ask_json(daemon, "incidents", "--open", "--domain", UUID)
        assert (kept["id"], kept["state"]) == (incident.id, "preserved")
        assert await ask_json(daemon, "incidents", "--domain", "other") == []
        assert incident.id in await ask(daemon, "incidents")
        whole = await ask_json(daemon, "incident", incident.id)
        assert whole["id"] == incident.id
        shown = await ask(daemon, "incident", incident.id)
        assert "EnsureStopped" in shown
        assert "seen" in shown
        await ask(daemon, "incident", "no-such", status=FAILED)
        await ask(daemon, "ack", "no-such", "--why", "seen", status=FAILED)


async def test_incidents_are_filtered(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic({"type": "hyper-v", "arg1": 0xA, "arg2": 1, "arg3": 2, "arg4": 3, "arg5": 4})
        incident = await daemon.wait_incident("vm", state="preserved")

        async def found(*options: str) -> list[str]:
            return [one["id"] for one in await ask_json(daemon, "incidents", *options)]

        await ask(daemon, "act", "vm", "preserve", "--why", "it is in the journal by now")
        assert await found("--unacknowledged") == [incident.id]
        assert await found("--since", "1h") == await found("--until", "2126-01-01") == [incident.id]
        assert await found("--since", "2126-01-01") == await found("--until", "1h") == []
        await ask(daemon, "ack", incident.id, "--why", "seen")
        assert await found("--unacknowledged") == []
        assert await found("--open") == [incident.id]
        (told,) = daemon.logged("guest panicked", incident=incident.id)
        assert told["payload"] == "Windows bug check 0x0000000a: IRQL_NOT_LESS_OR_EQUAL"
        assert told["payload"] in await ask(daemon, "incidents")
        shown = await ask(daemon, "incident", incident.id)
        assert "Windows bug check 0x0000000a: IRQL_NOT_LESS_OR_EQUAL" in shown
        with pytest.raises(RefusedError, match="since: expected seconds"):
            await daemon.call("incidents", since="yesterday")


async def test_incident_is_exported_with_and_without_a_daemon(
    socket_dir: Path, tmp_path: Path
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "ack", incident.id, "--why", "it is in the journal by now")
        await ask(daemon, "export", incident.id, "-o", str(tmp_path / "up"))
        await ask(daemon, "export", incident.id, "-o", str(tmp_path / "up"), status=FAILED)
        await ask(daemon, "export", "no-such", status=FAILED)
    await ask(daemon, "export", incident.id, "-o", str(tmp_path / "down"))
    said = await ask(daemon, "export", "no-such", status=FAILED)
    assert "the journal has no incident 'no-such'" in said
    for name in ("up", "down"):
        with tarfile.open(tmp_path / name) as archive:
            record = archive.extractfile(f"panicd-{incident.id}/record.json")
            assert record is not None
            assert json.load(record)["id"] == incident.id


def test_export_says_why_the_journal_cannot_be_read(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    result = panicd("--config", daemon.config_file, "export", "20261123T040000-0a1b2c3d")
    assert result.exit_code == FAILED
    assert "the journal can't be read" in result.output


async def test_operator_acts_releases_and_holds(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        because = ("--why", "a test")
        refused = await ask(daemon, "release", "vm", *because, status=FAILED)
        assert "no open incident" in refused

        vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "release", "vm", *because)
        assert vm.machine.state is RunState.RUNNING
        await daemon.wait_incident("vm", ending="released")

        await ask(daemon, "hold", "vm", "--for", "2h", *because)
        assert (await daemon.domain("vm"))["held_why"] == "a test"
        vm.panic()
        await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "act", "vm", "restart", *because)
        await daemon.wait_incident("vm", ending="restarted")
        await ask(daemon, "unhold", "vm", *because)
        assert vm.changing_commands == ["set-action", "cont", "system_reset", "cont"]
        asked = daemon.logged("operator asked", uid=os.getuid(), why="a test")
        assert {line["what"].split()[0] for line in asked} == {
            *("release", "hold", "act", "unhold"),
        }


async def test_reload_is_all_or_nothing(socket_dir: Path) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "destroy"}) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        mark = daemon.mark()
        daemon.write_config(defaults={"on_crash": "preserve"})
        await ask(daemon, "reload")
        await daemon.wait_armed("vm", since=mark)
        assert (await daemon.domain("vm"))["on_crash"] == "preserve"

        daemon.write_config(defaults={"on_crash": "explode", "fallback": "no"})
        refused = await ask(daemon, "reload", status=BAD_USAGE)
        assert "defaults.on_crash" in refused
        assert "defaults.fallback" in refused
        assert await daemon.metric("panicd_config_last_reload_successful") == 0

        nowhere = {"listen": str(socket_dir / "nowhere" / "listen.sock")}
        glob = {"glob": str(socket_dir / "*.qmp")}
        other = {"glob": str(socket_dir / "*.other")}
        daemon.write_config(defaults={"on_crash": "destroy"}, monitors=[glob, other, nowhere])
        assert "No such file or directory" in await ask(daemon, "reload", status=BAD_USAGE)
        assert (await daemon.domain("vm"))["on_crash"] == "preserve"
        assert vm.sessions == 1

        daemon.write_config(monitors=[other])
        await ask(daemon, "reload")
        assert await daemon.metric("panicd_config_last_reload_successful") == 1
        assert (await daemon.call("status"))["domains"] == []


@pytest.mark.real
async def test_probe_tells_what_a_real_qemu_can_do_and_changes_nothing(socket_dir: Path) -> None:
    with trio.fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, devices=["pvpanic", "pvpanic-pci"], uuid=UUID) as vm:
            daemon = ObservedDaemon(socket_dir)
            seen = await ask_json(daemon, "probe", str(vm.socket))
            assert (seen["name"], seen["uuid"], seen["panic_device"]) == ("vm", UUID, "requested")
            assert seen["device_types"] == ["pvpanic", "pvpanic-pci"]
            assert {plan["on_crash"] for plan in seen["policies"]} == set(OnCrash)
            assert seen["remedies"] == []
            assert "pvpanic-pci" in await ask(daemon, "probe", str(vm.socket))
            await vm.panic()
            assert await vm.wait_exit() == 0  # as QEMU does where nobody armed it


@pytest.mark.real
async def test_probe_says_what_is_missing(socket_dir: Path) -> None:
    with trio.fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, devices=[], extra=["-no-reboot"]) as vm:
            daemon = ObservedDaemon(socket_dir)
            seen = await ask_json(daemon, "probe", str(vm.socket), status=FAILED)
            assert seen["panic_device"] == "none"
            assert any("pvpanic" in remedy for remedy in seen["remedies"])
            (restart,) = [plan for plan in seen["policies"] if plan["on_crash"] == "restart"]
            assert restart["reason"] == "reset-impossible"


@pytest.mark.real
async def test_probe_of_a_monitor_that_is_taken_says_so(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "GREETING_TIMEOUT", 0.05)
    async with (
        DaemonInside.start(socket_dir) as daemon,
        RealQemu.start(socket_dir) as vm,
    ):
        await daemon.wait_armed("vm")
        said = await ask(daemon, "probe", str(vm.socket), status=FAILED)
        assert "another client may hold this monitor" in said


@pytest.mark.real
async def test_vm_started_with_qemu_args_is_armed(socket_dir: Path) -> None:
    printed = panicd("qemu-args", "--name", "vm", "--directory", socket_dir).output
    machine = ["-nodefaults", "-display", "none", "-S", "-machine", "pc,accel=tcg"]
    command = [qemu_binary(), *machine, *shlex.split(printed, comments=True)]
    async with DaemonInside.start(socket_dir) as daemon, background() as nursery:
        await nursery.start(partial(trio.run_process, command, stdin=subprocess.DEVNULL))
        await daemon.wait_armed("vm")
        status = await daemon.domain("vm")
        assert (status["armed"], status["panic_device"]) == ("yes", "requested")


# -- completion


def completions(daemon: ObservedDaemon, *words: str) -> list[str]:
    """What bash would offer for the last of these words; it gives them joined by spaces."""
    typed = ["panicd", "--config", str(daemon.config_file), *words]
    env = {
        "_PANICD_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    return [line.partition(",")[2] for line in panicd(env=env).output.split("\n") if line]


async def test_domains_and_incidents_are_completed(socket_dir: Path) -> None:
    web, db = (FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in ("web-1", "db-1"))
    async with DaemonInside.start(socket_dir) as daemon, web.running(), db.running():
        for vm in (web, db):
            await daemon.wait_armed(vm.machine.name)

        async def offered(*words: str) -> list[str]:
            return await trio.to_thread.run_sync(lambda: completions(daemon, *words))

        assert await offered("explain", "") == ["db-1", "web-1"]
        assert await offered("explain", "we") == ["web-1"]
        assert await offered("incidents", "--domain", "d") == ["db-1"]
        assert set(OnCrash) <= set(await offered("act", "db-1", ""))
        db.panic()
        incident = await daemon.wait_incident("db-1", state="preserved")
        await daemon.call("ack", incident=incident.id, why="it is in the journal by now")
        assert await offered("incident", "") == [incident.id]


def test_completion_offers_nothing_where_no_daemon_answers(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    assert completions(daemon, "explain", "") == []
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(daemon.control_socket))
        silent.listen()
        assert completions(daemon, "explain", "") == []
