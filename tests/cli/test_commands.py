"""What people type: each command's answer, its JSON, its exit status."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from panicd import __version__
from panicd.cli import main
from panicd.cli.program import COMMANDS
from tests.parts.background import background
from tests.parts.commands import BAD_USAGE, DONE, FAILED, ask, ask_json, panicd
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.profile import RunState
from tests.parts.qemu import qemu_binary

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f54"


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
        ["hold", "vm", "--for", "0h", "--why", "because"],
        ["hold", "vm", "--for", "36501d", "--why", "because"],
        ["hold", "vm", "--for", "99999999999s", "--why", "because"],
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
    assert "good, 1 domain rule\n" in result.output


def test_check_warns_of_a_glob_that_matches_nothing(socket_dir: Path) -> None:
    config = socket_dir / "panicd.yaml"
    (socket_dir / "no-socket.qmp").touch()
    nowhere, reason = socket_dir / "nowhere", os.strerror(errno.ENOENT)
    globs = ["*.qmp", "nowhere/*/qmp.sock", "*.sock", "plain.sock"]
    monitors = [{"glob": str(socket_dir / name)} for name in globs]
    config.write_text(yaml.safe_dump({"monitors": monitors}))
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(socket_dir / "a.sock"))
        other.bind(str(socket_dir / "plain.sock"))
        result = panicd("--config", config, "check")
    assert result.exit_code == DONE
    assert result.output.splitlines() == [
        f"{config}: monitors: {socket_dir}/*.qmp matches no socket now",
        f"{config}: monitors: {nowhere}/*/qmp.sock matches no socket now ({nowhere}: {reason})",
        f"{config}: good, 0 domain rules",
    ]


def test_check_takes_a_file_and_warns_of_a_path_too_long_for_a_socket(socket_dir: Path) -> None:
    (config := socket_dir / "other.yaml").write_text(f"monitors: [{{glob: {socket_dir}/*/m}}]\n")
    (deep := socket_dir / ("d" * (106 - len(str(socket_dir))))).mkdir()
    there = os.open(deep, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as long:
        long.bind(f"/proc/self/fd/{there}/m")
        os.close(there)
        result = panicd("check", config)
    assert result.exit_code == DONE
    length = len(str(deep / "m"))
    assert result.output.splitlines() == [
        (
            f"{config}: monitors: {deep}/m: the path has {length} bytes; "
            "a socket's may have 107 (unix(7))"
        ),
        f"{config}: good, 0 domain rules",
    ]


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


@pytest.mark.parametrize("version", ["1.5", "2.8", "5.2", "7.2", "11.1"])
@pytest.mark.parametrize("more", [[], ["--pci"], ["--dial-in", "/run/panicd/qmp.sock"]])
def test_qemu_args_are_a_shell_s_words(version: str, more: list[str]) -> None:
    result = panicd("qemu-args", "--name", "it's web-1", "--qemu-version", version, *more)
    if "--pci" in more and version in {"1.5", "2.8", "5.2"}:
        assert result.exit_code == BAD_USAGE  # pvpanic-pci came with 6.0
        return
    if "--dial-in" in more and version == "1.5":
        assert result.exit_code == BAD_USAGE  # reconnect= came with 2.2
        return
    assert result.exit_code == DONE
    words = shlex.split(result.output, comments=True)
    assert words[:2] == ["-name", "it's web-1"]
    assert "-qmp" in words
    assert ("-no-shutdown" in words) == (version in {"2.8", "5.2"})  # 1.5 pauses on a panic


def test_qemu_args_say_why_to_people_alone() -> None:
    asked = ("qemu-args", "--name", "web-1")
    assert "#" not in panicd(*asked).output
    assert (
        "# lets the guest report that it panics" in panicd(*asked, env={"FORCE_COLOR": "1"}).output
    )


# -- with a daemon


async def test_status_and_explain(socket_dir: Path) -> None:
    async with (
        DaemonInside.start(socket_dir, {"on_crash": "coredump-restart"}) as daemon,
        FakeQemu(socket_dir / "web-1.qmp", name="web-1", uuid=UUID).running() as vm,
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
        assert "at work       no, by QEMU's own events" in shown
        assert (await ask_json(daemon, "explain", "web-1"))["work"] == "idle"
        vm.machine.begin_job("mirror")
        while (await ask_json(daemon, "explain", "web-1"))["work"] != "busy":
            pass  # each look asks the daemon
        assert "at work       perhaps" in await ask(daemon, "explain", "web-1")

        assert "no domain is called 'web-2'" in await ask(daemon, "explain", "web-2", status=FAILED)


async def test_two_domains_of_one_name_which_is_asked(socket_dir: Path) -> None:
    other = UUID.replace("5e1f", "6e1f")
    one = FakeQemu(socket_dir / "a.qmp", name="twin", uuid=UUID)
    two = FakeQemu(socket_dir / "b.qmp", name="twin", uuid=other)
    async with DaemonInside.start(socket_dir) as daemon, one.running(), two.running():
        await daemon.wait_log("policy in force", count=2)
        for vm in (one, two):
            vm.panic()
        await daemon.wait_log("incident stays open", count=2)
        asked = await ask(daemon, "release", "twin", "--why", "a test", status=FAILED)
        head, *which = asked.splitlines()
        assert head == "panicd: 2 domains are called 'twin'. Which one? Give its monitor:"
        assert sorted(line.split()[0] for line in which) == [str(one.socket), str(two.socket)]
        assert all("UUID" in line for line in which)
        await ask(daemon, "release", str(two.socket), "--why", "a test")
        assert one.machine.state is RunState.GUEST_PANICKED
        assert two.machine.state is RunState.RUNNING


async def test_a_name_with_line_breaks_adds_no_line_to_a_question_or_an_error(
    socket_dir: Path,
) -> None:
    name = "web-1\n  /run/qemu/other.qmp  (web-1)"
    vms = [FakeQemu(socket_dir / f"{n}.qmp", name=name, uuid=None) for n in ("a", "b")]
    async with DaemonInside.start(socket_dir) as daemon, vms[0].running(), vms[1].running():
        await daemon.wait_log("policy in force", count=2)
        asked = await ask(daemon, "explain", name, status=FAILED)
        assert len(asked.splitlines()) == 3
        asked = await ask(daemon, "explain", name.replace("web-1", "web-2"), status=FAILED)
        assert "did you mean" in asked
        assert len(asked.splitlines()) == 1


async def test_options_of_the_program_stand_before_a_command_or_after_it(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        config = str(daemon.config_file)
        for words in (
            ("--config", config, "status"),
            ("status", "--config", config),
            ("--config", "/nowhere", "status", "--config", config),
            ("status", "--socket", str(daemon.control_socket)),
        ):
            result = await trio.to_thread.run_sync(panicd, *words)
            assert result.output.startswith("0 domains"), words


def test_help_is_grouped_and_none_of_its_lines_is_cut() -> None:
    lines = panicd("--help", env={"COLUMNS": "80"}).output.splitlines()
    assert max(map(len, lines[1:])) <= 80
    for purpose, commands in COMMANDS.items():
        first = lines.index(f"{purpose}:") + 1
        listed = lines[first : first + len(commands)]
        assert [line.split()[0] for line in listed] == list(commands), "a line each"
        for line, (_, told) in zip(listed, commands.values(), strict=True):
            assert line.endswith(told)


async def test_status_of_nothing_asks_the_right_questions(socket_dir: Path) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        assert "Does a monitor's glob match" in await ask(daemon, "status")
        assert "No incident." in await ask(daemon, "incidents")


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
        by_us: dict[str, Any] = {"uid": os.getuid(), "why": "a test"}
        await daemon.wait_log("operator asked", count=4, **by_us)
        asked = daemon.logged("operator asked", **by_us)
        assert {line["what"].split()[0] for line in asked} == {
            *("release", "hold", "act", "unhold"),
        }


async def test_hold_answers_what_it_is_on(socket_dir: Path) -> None:
    web = FakeQemu(socket_dir / "web.qmp", name="web-1", uuid=UUID)
    because = ("--why", "a test")
    async with DaemonInside.start(socket_dir) as daemon, web.running():
        await daemon.wait_armed("web-1")
        said = await ask(daemon, "hold", "web-1", *because)
        assert said == "Held until `panicd unhold`: web-1.\n"
        said = await ask(daemon, "hold", UUID.upper(), "--for", "2h", *because)
        assert said.startswith("Held until 20")
        assert said.endswith(f": {UUID.upper()}.\nIt matches web-1.\n")
        said = await ask(daemon, "hold", "--all", *because)
        assert said == "Held until `panicd unhold`: the whole host.\nIt matches web-1.\n"

        said = await ask(daemon, "unhold", "web-1", *because)
        assert said == (
            "No longer held: web-1.\nAnother hold still matches web-1; see `panicd status`.\n"
        )
        said = await ask(daemon, "unhold", "--all", *because)
        assert said == "No longer held: the whole host.\n"
        assert not (await daemon.domain("web-1"))["held_why"]

        answer = await ask_json(daemon, "hold", "web-1", "--for", "1h", *because)
        assert answer["matches"] == ["web-1"]
        (domain,) = (await ask_json(daemon, "status"))["domains"]
        assert answer["until"] == domain["held_until"]


async def test_hold_of_what_there_is_none_of_is_refused(socket_dir: Path) -> None:
    because = ("--why", "a test")
    vm = FakeQemu(socket_dir / "web.qmp", name="web-1", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon:
        async with vm.running():
            await daemon.wait_armed("web-1")
            refused = await ask(daemon, "hold", "web-2", *because, status=FAILED)
            assert "no domain is called 'web-2'; did you mean \"web-1\"?\nAdd --future" in refused
            for pattern in ("web-*", "web-[12]", "web-?"):
                refused = await ask(daemon, "hold", pattern, "--future", *because, status=FAILED)
                assert "a hold is on one domain" in refused
            for never_held in ("web-1", "web-2", "--all"):
                refused = await ask(daemon, "unhold", never_held, *because, status=FAILED)
                assert "there is no hold on" in refused
            assert not (await daemon.domain("web-1"))["held_why"]
            assert not daemon.logged("operator asked")
            vm.exit()
            vm.socket.unlink()
        await daemon.wait_log("monitor is gone")

        for name in ("web-1", UUID):
            said = await ask(daemon, "hold", name, "--future", *because)
            assert said.endswith("No domain matches now. panicd will hold one that comes.\n")
        mark = daemon.mark()
        again = FakeQemu(socket_dir / "web.qmp", name="web-1", uuid=UUID)
        async with again.running():
            await daemon.wait_armed("web-1", since=mark)
            assert (await daemon.domain("web-1"))["held_why"] == "a test"
            assert await ask(daemon, "unhold", "web-1", *because) == "No longer held: web-1.\n"
            assert not (await daemon.domain("web-1"))["held_why"]


async def test_each_change_answers_what_it_did(socket_dir: Path) -> None:
    because = ("--why", "a test")
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = (await daemon.wait_incident("vm", state="preserved")).id
        said = await ask(daemon, "ack", incident, *because)
        assert said == f"Acknowledged: incident {incident} of vm.\n"
        said = await ask(daemon, "act", "vm", "preserve", *because)
        assert said == f"vm: preserved; incident {incident} stays open.\n"
        said = await ask(daemon, "act", "vm", "restart", *because)
        assert said == f"vm: restarted; incident {incident} is closed.\n"
        said = await ask(daemon, "ack", incident, *because)
        assert said == f"Acknowledged: incident {incident} of vm.\n"
        mark = daemon.mark()
        vm.panic()
        incident = (await daemon.wait_incident("vm", state="preserved", since=mark)).id
        said = await ask(daemon, "release", "vm", *because)
        assert said == f"vm: released; incident {incident} is closed.\n"

        assert await ask(daemon, "reload") == (
            "In force: 1 monitor, 0 domain rules.\nNo domain's policy changed.\n"
        )
        rules = [{"match": "vm", "on_crash": "restart"}, {"match": "x", "on_crash": "restart"}]
        daemon.write_config(domains=rules, metrics={"listen": "off"})
        assert await ask(daemon, "reload") == (
            "In force: 1 monitor, 2 domain rules.\nThe policy of vm changed.\n"
            "metrics_listen takes effect at the next start.\n"
        )
        assert (await ask_json(daemon, "reload"))["changed"] == []


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


async def test_commands_reach_the_daemon_whatever_is_wrong_with_the_file(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        preserved = await daemon.wait_incident("vm", state="preserved")
        await daemon.wait_kept(preserved)
        incident = preserved.id
        with daemon.config_file.open("a") as file:
            file.write("domains: [\n")
        because = ("--why", "a test")
        for command in (
            ("status",),
            ("explain", "vm"),
            ("incidents",),
            ("incident", incident),
            ("hold", "vm", *because),
            ("unhold", "vm", *because),
            ("ack", incident, *because),
            ("release", "vm", *because),
        ):
            await ask(daemon, *command)
        refused = await ask(daemon, "reload", status=BAD_USAGE)
        assert f"{daemon.config_file}:" in refused
        assert "expected valid YAML" in refused
    refused = await ask(daemon, "status", status=FAILED)
    assert f"can't reach panicd at {daemon.control_socket}" in refused
    assert "expected valid YAML" in refused


@pytest.mark.parametrize("command", ["check", "run", "probe /nowhere.sock", "export 1-2"])
def test_file_that_is_no_yaml_is_an_error_with_its_place_where_it_is_needed(
    tmp_path: Path, command: str
) -> None:
    config = tmp_path / "panicd.yaml"
    config.write_text(f"control_socket: {tmp_path}/c.sock\ndomains: [\n")
    result = panicd("--config", config, *command.split())
    assert result.exit_code == BAD_USAGE
    assert f"{config}:3:1: expected valid YAML" in result.output


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
