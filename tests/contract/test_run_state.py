"""What panicd relies on in a QEMU 7.2 or later: what changes its run state."""

from __future__ import annotations

from tests.contract.asking import end_of, status
from tests.contract.subjects import PAUSES, Setup, Start


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
