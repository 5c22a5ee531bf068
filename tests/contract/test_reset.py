"""What panicd relies on in a QEMU 7.2 or later: resets."""

from __future__ import annotations

import itertools

import pytest

from tests.contract.asking import end_of, status
from tests.contract.subjects import PAUSES, Setup, Start

BY_QMP_RESET = {"guest": False, "reason": "host-qmp-system-reset"}


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
