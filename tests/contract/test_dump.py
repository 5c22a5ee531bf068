"""What panicd relies on in a QEMU 7.2 or later: memory dumps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.contract.asking import end_of, opened, refusal, status
from tests.contract.subjects import PAUSES, Start
from tests.parts.background import background
from tests.parts.qmp import QmpClient
from tests.parts.wire import Message

MAGIC = {"elf": b"\x7fELF", "kdump-zlib": b"makedumpfile"}


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
        ("arguments", "descriptions"),  # by QEMU 7.2, and by later ones that say it otherwise
        [
            ({"protocol": "fd:nofd"}, ["File descriptor named 'nofd' has not been found"]),
            (
                {"protocol": "file:/nonexistent/core"},
                [
                    "Could not open '/nonexistent/core': No such file or directory",
                    "Could not create '/nonexistent/core': No such file or directory",
                ],
            ),
            (
                {"protocol": "bad:core"},
                [
                    "Invalid parameter 'protocol'",
                    "parameter 'protocol' must start with 'file:' or 'fd:'",
                ],
            ),
            (
                {"protocol": "fd:nofd", "format": "nope"},
                ["Parameter 'format' does not accept value 'nope'"],
            ),
            ({"protocol": "fd:nofd", "format": "kdump-lzo"}, ["kdump-lzo is not available now"]),
            ({"protocol": "fd:nofd", "begin": 0}, ["Parameter 'length' is missing"]),
            ({"protocol": "fd:nofd", "length": 4096}, ["Parameter 'begin' is missing"]),
            (
                {"protocol": "fd:nofd", "begin": 0, "length": 4096, "format": "kdump-zlib"},
                ["kdump-compressed format doesn't support paging or filter"],
            ),
        ],
    )
    async def test_refuses(self, start: Start, arguments: Message, descriptions: list[str]) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            full = {"paging": False, "detach": True} | arguments
            error_class, described = await refusal(qmp, "dump-guest-memory", full)
            assert error_class == "GenericError"
            assert described in descriptions
