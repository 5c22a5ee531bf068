"""What panicd relies on in a QEMU 7.2 or later: its monitor."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tests.contract.asking import refusal, status
from tests.contract.subjects import PAUSES, Setup, Start
from tests.parts.proxy import listen
from tests.parts.qmp import qmp_over


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
