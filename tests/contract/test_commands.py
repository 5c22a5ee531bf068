"""What panicd relies on in a QEMU 7.2 or later: commands, and their errors."""

from __future__ import annotations

from pathlib import Path

from tests.contract.asking import opened, refusal
from tests.contract.subjects import PAUSES, UUID, Start
from tests.parts.machine import Machine
from tests.parts.profile import QEMU_7_2


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
