"""What panicd relies on in a QEMU 7.2 or later. Each test runs on the fake and on a real one."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.contract.subjects import UUID, Setup, Start
from tests.parts.background import background
from tests.parts.machine import Machine
from tests.parts.profile import QEMU_7_2
from tests.parts.proxy import listen
from tests.parts.qmp import QmpClient, QmpCommandError, qmp_over
from tests.parts.wire import Message

PAUSES = Setup(panic="pause")
BY_QMP_RESET = {"guest": False, "reason": "host-qmp-system-reset"}
MAGIC = {"elf": b"\x7fELF", "kdump-zlib": b"makedumpfile"}


async def status(qmp: QmpClient) -> str:
    return str((await qmp.execute("query-status"))["status"])


async def refusal(
    qmp: QmpClient, command: str, arguments: Message | None = None
) -> tuple[str, str]:
    with pytest.raises(QmpCommandError) as caught:
        await qmp.execute(command, arguments)
    return caught.value.error_class, caught.value.desc


async def end_of(qmp: QmpClient, command: str, since: int) -> set[str]:
    """What comes from a QEMU that ``command`` ends: its reply may get lost, or come before."""
    await qmp.send(command)
    await qmp.wait_closed()
    return set(qmp.sequence(since))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor to write to."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds less than any dump: what is dumped into it waits for its reader."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


async def drain(fd: int) -> None:
    """Read a pipe for ever."""
    async for _ in trio.lowlevel.FdStream(os.dup(fd)):
        pass


async def begin_dump(qmp: QmpClient, fd: int, kind: str = "elf") -> None:
    await qmp.execute("getfd", {"fdname": "core"}, fds=[fd])
    await qmp.execute(
        "dump-guest-memory",
        {"paging": False, "protocol": "fd:core", "format": kind, "detach": True},
    )


class TestSession:
    async def test_greets_with_its_version(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client(negotiate=False) as qmp:
            await qmp.wait_greeting()
            version = qmp.greeting["version"]
            assert set(version["qemu"]) == {"major", "minor", "micro"}
            assert isinstance(version["package"], str)
            assert qmp.greeting["capabilities"] == ["oob"]
            await qmp.execute("qmp_capabilities")
            assert await qmp.execute("query-version") == version

    async def test_negotiates_before_any_command(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client(negotiate=False) as qmp:
            await qmp.wait_greeting()
            assert await refusal(qmp, "query-status") == (
                "CommandNotFound",
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            )
            assert await qmp.execute("qmp_capabilities") == {}
            assert (await refusal(qmp, "qmp_capabilities"))[0] == "CommandNotFound"

    async def test_sends_no_event_before_negotiation(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client(negotiate=False) as qmp:
            await qmp.wait_greeting()
            await vm.panic()
            await qmp.execute("qmp_capabilities")
            while await status(qmp) != "guest-panicked":
                pass
            assert "GUEST_PANICKED" not in qmp.sequence()

    async def test_greets_the_next_client_when_the_first_leaves(self, start: Start) -> None:
        async with (
            start(PAUSES) as vm,
            vm.client() as first,
            vm.client(negotiate=False) as second,
        ):
            for _ in range(10):
                await status(first)
            assert not second.greeting
            first.hang_up()
            await second.wait_greeting()
            await second.execute("qmp_capabilities")
            assert await status(second) == "running"

    async def test_does_not_replay_events(self, start: Start) -> None:
        async with start(PAUSES) as vm:
            async with vm.client() as qmp:
                await vm.panic()
                await qmp.wait_event("STOP")
            async with vm.client() as qmp:
                assert await status(qmp) == "guest-panicked"
                assert qmp.sequence() == ["return qmp_capabilities", "return query-status"]

    async def test_takes_commands_without_newlines_and_echoes_ids(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await qmp.send_raw(b'{"execute": "query-status"}{"execute": "nope"}')
            await qmp.send_raw(b' {"execute":"stop", "arguments": {}} ')
            await qmp.wait_event("STOP")
            await status(qmp)
            assert qmp.sequence(mark) == [
                *("return ?", "error ?", "STOP", "return ?", "return query-status")
            ]

    @pytest.mark.parametrize("line", [b"[1, 2]\n", b'{"a": 1}\n', b'{"arguments": {}}\n'])
    async def test_survives_what_is_no_command(self, start: Start, line: bytes) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await qmp.send_raw(line)
            assert await status(qmp) == "running"
            assert qmp.sequence(mark) == ["error ?", "return query-status"]

    async def test_ends_lines_by_cr_and_lf(self, start: Start) -> None:
        async with start(PAUSES) as vm:
            with socket.socket(socket.AF_UNIX) as plain:
                sock = trio.socket.from_stdlib_socket(plain)
                await sock.connect(bytes(vm.socket))
                assert (await sock.recv(4096)).endswith(b"}\r\n")
                await sock.send(b'{"execute": "qmp_capabilities"}')
                assert await sock.recv(4096) == b'{"return": {}}\r\n'

    async def test_dials_in_again_and_again(self, start: Start, socket_dir: Path) -> None:
        path = socket_dir / "dial"
        with listen(path) as listener:
            async with start(Setup(dial=path)):
                for _ in range(2):
                    sock, _address = await listener.accept()
                    async with qmp_over(sock) as qmp:
                        assert await status(qmp) == "running"


class TestCommands:
    async def test_refuses_unknown_commands(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await refusal(qmp, "nope") == (
                "CommandNotFound",
                "The command nope has not been found",
            )

    async def test_refuses_wrong_arguments(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await refusal(qmp, "getfd", {}) == (
                "GenericError",
                "Parameter 'fdname' is missing",
            )
            assert await refusal(qmp, "set-action", {"panik": "pause"}) == (
                "GenericError",
                "Parameter 'panik' is unexpected",
            )

    async def test_tells_name_and_uuid(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await qmp.execute("query-name") == {"name": "contract"}
            assert await qmp.execute("query-uuid") == {"UUID": UUID}

    async def test_knows_the_fakes_commands_with_the_same_arguments(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            listed = {command["name"] for command in await qmp.execute("query-commands")}
            schema = {entity["name"]: entity for entity in await qmp.execute("query-qmp-schema")}
        fakes = Machine(QEMU_7_2, emit=lambda *_: None).commands()
        assert listed >= set(fakes)
        for name, command in fakes.items():
            members = schema[schema[name]["arg-type"]]["members"]
            required = {member["name"] for member in members if "default" not in member}
            optional = {member["name"] for member in members if "default" in member}
            assert (required, optional) == (set(command.required), set(command.optional)), name

    async def test_runs_human_monitor_commands(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            registers = await qmp.execute(
                "human-monitor-command", {"command-line": "info registers"}
            )
            assert "CPU#0" in registers
            assert "EAX=" in registers
            assert (
                await qmp.execute("human-monitor-command", {"command-line": "bogus x"})
                == "unknown command: 'bogus'\r\n"
            )

    async def test_has_no_migration(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await qmp.execute("query-migrate") == {}

    async def test_getfd_wants_a_file_descriptor(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await refusal(qmp, "getfd", {"fdname": "core"}) == (
                "GenericError",
                "No file descriptor supplied via SCM_RIGHTS",
            )
            assert await refusal(qmp, "closefd", {"fdname": "core"}) == (
                "GenericError",
                "File descriptor named 'core' not found",
            )
            with opened(Path("/dev/null")) as null:
                await qmp.execute("getfd", {"fdname": "core"}, fds=[null])
            assert await qmp.execute("closefd", {"fdname": "core"}) == {}


class TestPanicDevices:
    async def test_finds_an_unnamed_one(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            listed = await qmp.execute("qom-list", {"path": "/machine/peripheral-anon"})
            assert {"name": "device[0]", "type": "child<pvpanic>"} in listed
            node = "/machine/peripheral-anon/device[0]"
            ioport = {"path": node, "property": "ioport"}
            assert await qmp.execute("qom-get", ioport) == 0x505
            assert await qmp.execute("qom-get", {"path": node, "property": "events"}) in (3, 7)
            assert await qmp.execute("qom-get", {"path": node, "property": "type"}) == "pvpanic"

    async def test_finds_a_named_one(self, start: Start) -> None:
        setup = Setup(devices=("pvpanic-pci,id=pv0",))
        async with start(setup) as vm, vm.client() as qmp:
            listed = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
            assert {"name": "pv0", "type": "child<pvpanic-pci>"} in listed
            assert await qmp.execute("qom-list", {"path": "/machine/peripheral-anon"}) == [
                {"name": "type", "type": "string"}
            ]

    async def test_has_none_builtin(self, start: Start) -> None:
        async with start(Setup(devices=())) as vm, vm.client() as qmp:
            for path in ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"):
                listed = await qmp.execute("qom-list", {"path": path})
                assert not [node for node in listed if "pvpanic" in node["type"]]

    async def test_names_what_is_not_there(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await refusal(qmp, "qom-list", {"path": "/machine/nope"}) == (
                "DeviceNotFound",
                "Device '/machine/nope' not found",
            )
            missing = {"path": "/machine/peripheral-anon/device[0]", "property": "nope"}
            assert await refusal(qmp, "qom-get", missing) == (
                "GenericError",
                "Property 'pvpanic.nope' not found",
            )


class TestPanic:
    @pytest.mark.parametrize(
        "setup", [PAUSES, Setup(shutdown="pause"), Setup(shutdown="pause", panic="shutdown")]
    )
    async def test_pause_leaves_the_guest_panicked(self, start: Start, setup: Setup) -> None:
        async with start(setup) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await vm.panic()
            await qmp.wait_event("STOP")
            assert qmp.sequence(mark) == ["GUEST_PANICKED", "STOP"]
            assert qmp.events[0]["data"] == {"action": "pause"}
            assert "data" not in qmp.events[1]
            answer = await qmp.execute("query-status")
            assert answer == {"status": "guest-panicked", "running": False, "singlestep": False}

    async def test_none_lets_it_run(self, start: Start) -> None:
        async with start(Setup(panic="none")) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await vm.panic()
            await qmp.wait_event("GUEST_PANICKED")
            assert await status(qmp) == "running"
            assert qmp.sequence(mark) == ["GUEST_PANICKED", "return query-status"]
            assert qmp.events[0]["data"] == {"action": "run"}

    @pytest.mark.parametrize(
        ("panic", "exit_status"), [(None, 0), ("shutdown", 0), ("exit-failure", 1)]
    )
    async def test_shutdown_ends_qemu(
        self, start: Start, panic: str | None, exit_status: int
    ) -> None:
        async with start(Setup(panic=panic)) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await vm.panic()
            await qmp.wait_closed()
            assert qmp.sequence(mark) == ["GUEST_PANICKED", "SHUTDOWN"]
            assert qmp.events[0]["data"] == {"action": "poweroff"}
            assert qmp.events[1]["data"] == {"guest": True, "reason": "guest-panic"}
            assert await vm.wait_exit() == exit_status
            assert not vm.socket.exists()

    async def test_exit_failure_with_no_shutdown_needs_a_reset(self, start: Start) -> None:
        setup = Setup(panic="exit-failure", shutdown="pause")
        async with start(setup) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await vm.panic()
            await qmp.wait_event("STOP")
            assert qmp.sequence(mark) == ["GUEST_PANICKED", "SHUTDOWN", "STOP"]
            assert await status(qmp) == "shutdown"
            needs_reset = ("GenericError", "Resetting the Virtual Machine is required")
            assert await refusal(qmp, "cont") == needs_reset

    async def test_set_action_takes_effect_at_once(self, start: Start) -> None:
        async with start(Setup()) as vm, vm.client() as qmp:
            assert await qmp.execute("set-action", {"panic": "pause"}) == {}
            await vm.panic()
            await qmp.wait_event("STOP")
            assert await status(qmp) == "guest-panicked"

    async def test_set_action_refuses_a_bad_value(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await refusal(qmp, "set-action", {"panic": "run"}) == (
                "GenericError",
                "Parameter 'panic' does not accept value 'run'",
            )

    async def test_a_stopped_guest_keeps_its_state(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await qmp.execute("stop")
            mark = qmp.mark()
            await vm.panic_while_stopped()
            await qmp.wait_event("GUEST_PANICKED")
            assert await status(qmp) == "paused"
            assert qmp.sequence(mark) == ["GUEST_PANICKED", "return query-status"]
            assert qmp.events[-1]["data"] == {"action": "pause"}

    async def test_a_crashloaded_guest_runs_on(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await vm.crashload()
            await qmp.wait_event("GUEST_CRASHLOADED")
            assert qmp.events[-1]["data"] == {"action": "run"}
            assert await status(qmp) == "running"
            assert qmp.sequence(mark) == ["GUEST_CRASHLOADED", "return query-status"]


class TestRunState:
    async def test_cont_resumes_a_panicked_guest(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            await qmp.execute("cont")
            assert qmp.sequence(mark) == ["RESUME", "return cont"]
            assert await status(qmp) == "running"

    async def test_cont_does_nothing_to_a_running_guest(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await qmp.execute("cont")
            assert await status(qmp) == "running"
            assert qmp.sequence(mark) == ["return cont", "return query-status"]

    async def test_stop_pauses_a_running_guest(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await qmp.execute("stop")
            assert qmp.sequence(mark) == ["STOP", "return stop"]
            assert await status(qmp) == "paused"

    async def test_stop_does_nothing_to_a_panicked_guest(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            await qmp.execute("stop")
            assert await status(qmp) == "guest-panicked"
            assert qmp.sequence(mark) == ["return stop", "return query-status"]

    async def test_starts_prelaunch_when_paused(self, start: Start) -> None:
        async with start(Setup(paused=True)) as vm, vm.client() as qmp:
            assert await status(qmp) == "prelaunch"
            mark = qmp.mark()
            await qmp.execute("cont")
            assert qmp.sequence(mark) == ["RESUME", "return cont"]

    async def test_powerdown_only_asks(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await qmp.execute("system_powerdown")
            await qmp.wait_event("POWERDOWN")
            assert await status(qmp) == "running"
            assert "STOP" not in qmp.sequence(mark)

    async def test_quit_ends_qemu(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            assert await end_of(qmp, "quit", mark) <= {"SHUTDOWN", "return quit"}
            assert qmp.events[-1]["data"] == {"guest": False, "reason": "host-qmp-quit"}
            assert await vm.wait_exit() == 0
            assert not vm.socket.exists()

    async def test_quit_ends_qemu_in_spite_of_no_shutdown(self, start: Start) -> None:
        async with start(Setup(shutdown="pause")) as vm, vm.client() as qmp:
            assert "SHUTDOWN" in await end_of(qmp, "quit", qmp.mark())
            assert await vm.wait_exit() == 0


class TestReset:
    async def test_a_panicked_guest_waits_for_cont(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            await qmp.execute("system_reset")
            assert qmp.sequence(mark) == ["RESET", "return system_reset"]
            assert qmp.events[-1]["data"] == BY_QMP_RESET
            assert await status(qmp) == "prelaunch"
            await qmp.execute("cont")
            assert await status(qmp) == "running"

    async def test_cont_may_follow_at_once(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            await qmp.send("system_reset")
            await qmp.execute("cont")
            assert qmp.sequence(mark) == ["RESET", "return system_reset", "RESUME", "return cont"]

    async def test_a_running_guest_runs_on(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            mark = qmp.mark()
            await qmp.execute("system_reset")
            assert await status(qmp) == "running"
            assert qmp.sequence(mark) == ["RESET", "return system_reset", "return query-status"]

    async def test_a_guest_may_reset_itself(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.guest_reset()
            event = await qmp.wait_event("RESET")
            assert event["data"] == {"guest": True, "reason": "guest-reset"}
            assert await status(qmp) == "running"

    async def test_a_firmware_resets_once_more(self, start: Start) -> None:
        setup = Setup(panic="pause", firmware=True, panics_at_boot=True, paused=True)
        async with start(setup) as vm, vm.client() as qmp:
            await qmp.execute("cont")
            await qmp.wait_event("STOP")
            assert "RESET" not in qmp.sequence()
            await qmp.execute("system_reset")
            mark = qmp.mark()
            await qmp.execute("cont")
            await qmp.wait_event("STOP", since=mark)
            events = [event["event"] for event in qmp.messages[mark:] if "event" in event]
            # SeaBIOS asks for its reset in several ways one after the other: mostly one takes
            # effect, and now and then two.
            assert [name for name, _ in itertools.groupby(events)] == [
                *("RESUME", "RESET", "GUEST_PANICKED", "STOP")
            ]
            assert qmp.events[-3]["data"] == {"guest": True, "reason": "guest-reset"}

    async def test_a_guest_that_panics_at_boot_panics_again(self, start: Start) -> None:
        setup = Setup(panic="pause", panics_at_boot=True)
        async with start(setup) as vm, vm.client() as qmp:
            await qmp.execute("stop")
            await qmp.execute("system_reset")
            mark = qmp.mark()
            await qmp.execute("cont")
            await qmp.wait_event("STOP", since=mark)
            assert await status(qmp) == "guest-panicked"

    @pytest.mark.parametrize("by_set_action", [False, True])
    async def test_reboot_shutdown_ends_qemu(self, start: Start, *, by_set_action: bool) -> None:
        setup = Setup(panic="pause", reboot="reset" if by_set_action else "shutdown")
        async with start(setup) as vm, vm.client() as qmp:
            if by_set_action:
                await qmp.execute("set-action", {"reboot": "shutdown"})
            mark = qmp.mark()
            assert "RESET" not in await end_of(qmp, "system_reset", mark)
            assert qmp.events[-1]["event"] == "SHUTDOWN"
            assert qmp.events[-1]["data"] == BY_QMP_RESET
            assert await vm.wait_exit() == 0

    async def test_no_reboot_with_no_shutdown_leaves_it_panicked(self, start: Start) -> None:
        setup = Setup(reboot="shutdown", shutdown="pause")
        async with start(setup) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            await qmp.execute("system_reset")
            assert await status(qmp) == "guest-panicked"
            assert set(qmp.sequence(mark)) == {
                *("SHUTDOWN", "return system_reset", "return query-status")
            }
            assert qmp.events[-1]["data"] == BY_QMP_RESET
            await qmp.execute("set-action", {"reboot": "reset"})
            await qmp.execute("system_reset")
            assert await status(qmp) == "prelaunch"


class TestDump:
    async def test_offers_its_formats(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            formats = (await qmp.execute("query-dump-guest-memory-capability"))["formats"]
            assert {"elf", "kdump-zlib"} <= set(formats)

    async def test_has_none_at_first(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await qmp.execute("query-dump") == {"status": "none", "completed": 0, "total": 0}

    @pytest.mark.parametrize("kind", ["elf", "kdump-zlib"])
    async def test_dumps_detached_to_a_file(self, start: Start, tmp_path: Path, kind: str) -> None:
        core = tmp_path / "core"
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            mark = qmp.mark()
            with opened(core) as fd:
                await begin_dump(qmp, fd, kind)
            result = (await qmp.wait_event("DUMP_COMPLETED"))["data"]["result"]
            assert qmp.sequence(mark) == [
                *("return getfd", "return dump-guest-memory", "DUMP_COMPLETED")
            ]
            assert result["status"] == "completed"
            assert result["completed"] == result["total"] > 0
            assert await qmp.execute("query-dump") == result
            assert await status(qmp) == "guest-panicked"
        assert core.read_bytes().startswith(MAGIC[kind])

    async def test_uses_the_file_descriptor_up(self, start: Start, tmp_path: Path) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await qmp.execute("stop")
            with opened(tmp_path / "core") as fd:
                await begin_dump(qmp, fd)
            await qmp.wait_event("DUMP_COMPLETED")
            arguments = {"paging": False, "protocol": "fd:core", "detach": True}
            assert await refusal(qmp, "dump-guest-memory", arguments) == (
                "GenericError",
                "File descriptor named 'core' has not been found",
            )

    async def test_refuses_all_else_meanwhile(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            with unread_pipe() as (_reading, writing):
                await begin_dump(qmp, writing)
                progress = await qmp.execute("query-dump")
                assert progress["status"] == "active"
                assert progress["completed"] < progress["total"]
                in_process = ("GenericError", "There is a dump in process, please wait.")
                assert await refusal(qmp, "cont") == in_process
                arguments = {"paging": False, "protocol": "file:/dev/null", "detach": True}
                assert await refusal(qmp, "dump-guest-memory", arguments) == in_process
                assert await status(qmp) == "guest-panicked"

    async def test_goes_on_when_its_client_leaves(self, start: Start) -> None:
        async with start(PAUSES) as vm:
            with unread_pipe() as (reading, writing):
                async with vm.client() as qmp:
                    await qmp.execute("stop")
                    await begin_dump(qmp, writing)
                async with vm.client() as qmp:
                    assert (await qmp.execute("query-dump"))["status"] == "active"
                    async with background() as nursery:
                        nursery.start_soon(drain, reading)
                        await qmp.wait_event("DUMP_COMPLETED")

    async def test_stops_a_running_guest_for_its_length(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            with unread_pipe() as (reading, writing):
                mark = qmp.mark()
                await begin_dump(qmp, writing)
                assert await status(qmp) == "save-vm"
                async with background() as nursery:
                    nursery.start_soon(drain, reading)
                    await qmp.wait_event("RESUME", since=mark)
            assert [word for word in qmp.sequence(mark) if not word.startswith("return")] == [
                *("STOP", "DUMP_COMPLETED", "RESUME")
            ]
            assert await status(qmp) == "running"

    async def test_a_reset_during_a_dump_of_a_running_guest_aborts(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            with unread_pipe() as (_reading, writing):
                await begin_dump(qmp, writing)
                await qmp.send("system_reset")
                await qmp.wait_closed()
                assert await vm.wait_exit() == -6

    async def test_quit_during_a_dump_ends_qemu(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await qmp.execute("stop")
            with unread_pipe() as (_reading, writing):
                await begin_dump(qmp, writing)
                await end_of(qmp, "quit", qmp.mark())
                assert await vm.wait_exit() == 0

    async def test_tells_that_it_failed(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            await vm.panic()
            await qmp.wait_event("STOP")
            with opened(Path("/dev/full")) as full:
                await begin_dump(qmp, full)
            data = (await qmp.wait_event("DUMP_COMPLETED"))["data"]
            assert data["result"]["status"] == "failed"
            assert data["error"].startswith("dump: failed to")
            assert (await qmp.execute("query-dump"))["status"] == "failed"
            assert await status(qmp) == "guest-panicked"

    async def test_not_detached_returns_when_it_is_complete(
        self, start: Start, tmp_path: Path
    ) -> None:
        core = tmp_path / "core"
        async with start(PAUSES) as vm, vm.client() as qmp:
            await qmp.execute("stop")
            mark = qmp.mark()
            await qmp.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{core}"})
            assert qmp.sequence(mark) == ["DUMP_COMPLETED", "return dump-guest-memory"]
        assert core.read_bytes().startswith(MAGIC["elf"])
        assert core.stat().st_mode & 0o777 == 0o400

    @pytest.mark.parametrize(
        ("arguments", "desc"),
        [
            ({"protocol": "fd:nofd"}, "File descriptor named 'nofd' has not been found"),
            (
                {"protocol": "file:/nonexistent/core"},
                "Could not open '/nonexistent/core': No such file or directory",
            ),
            ({"protocol": "bad:core"}, "Invalid parameter 'protocol'"),
            (
                {"protocol": "fd:nofd", "format": "nope"},
                "Parameter 'format' does not accept value 'nope'",
            ),
            ({"protocol": "fd:nofd", "format": "kdump-lzo"}, "kdump-lzo is not available now"),
            ({"protocol": "fd:nofd", "begin": 0}, "Parameter 'length' is missing"),
            ({"protocol": "fd:nofd", "length": 4096}, "Parameter 'begin' is missing"),
            (
                {"protocol": "fd:nofd", "begin": 0, "length": 4096, "format": "kdump-zlib"},
                "kdump-compressed format doesn't support paging or filter",
            ),
        ],
    )
    async def test_refuses(self, start: Start, arguments: Message, desc: str) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            full = {"paging": False, "detach": True} | arguments
            assert await refusal(qmp, "dump-guest-memory", full) == ("GenericError", desc)
