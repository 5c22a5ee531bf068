"""What panicd relies on in a QEMU 7.2 or later: what a panic does."""

from __future__ import annotations

import pytest

from tests.contract.asking import refusal, status
from tests.contract.subjects import PAUSES, Setup, Start


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
            answer.pop("singlestep", None)  # QEMU before 9.0 tells whether TCG takes single steps
            assert answer == {"status": "guest-panicked", "running": False}

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
