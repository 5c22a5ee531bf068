"""A guest that stands for a Windows, on a real QEMU: its bug check over the monitor."""

from pathlib import Path

import pytest

from panicd.evidence.bundle import begin_bundle, by_monitor, collect
from panicd.host.timers import Timers
from panicd.qemu.guest_memory import monitor_reader, read_words
from panicd.rules.bug_check import BugCheck
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.guest_memory.windows import WindowsCrash
from panicd.rules.qapi import RunState
from tests.parts.background import background
from tests.parts.patience import fail_after
from tests.parts.windows import windows_guest
from tests.qemu.test_guest_memory import session_at
from tests.rules.windows_memory import BUG_CHECK_AT, WindowsMemory

TIME_LIMIT = 30.0


@pytest.mark.real
@pytest.mark.parametrize("levels", [4, 5])
async def test_bug_check_is_read_over_the_monitor(socket_dir: Path, levels: int) -> None:
    memory = WindowsMemory(levels=levels, encoded=True)
    with fail_after(TIME_LIMIT):
        async with windows_guest(socket_dir, memory, proxied=True) as vm:
            await vm.wait_status("guest-panicked")
            async with session_at(vm.socket) as session:
                before = len(vm.proxy.commands)
                found = await read_words(monitor_reader(session, TIME_LIMIT), 60)
                code, *parameters = memory.bug_check
                assert found == WindowsCrash(BugCheck(code, tuple(parameters)), 20348, 1)
                sent = vm.proxy.commands[before:]
                assert set(sent) == {"getfd", "dump-guest-memory"}
                assert len(sent) <= 30
                assert await session.query_status() is RunState.GUEST_PANICKED


@pytest.mark.real
async def test_evidence_has_the_bug_check(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with windows_guest(socket_dir, WindowsMemory()) as vm:
            await vm.wait_status("guest-panicked")
            async with session_at(vm.socket) as session:
                place, timers = socket_dir / "bundle", Timers()
                bundle = begin_bundle(session, place, "")
                async with background() as nursery:
                    nursery.start_soon(timers.run)
                    items = by_monitor(timers, TIME_LIMIT, None, is_wanted=True)
                    await collect(session, bundle, consoles=(), budget=TIME_LIMIT, items=items)
    words = bundle.words
    bundle.write({}, dict)
    assert words.line.startswith("Windows bug check 0x0000007E SYSTEM_THREAD_EXCEPTION_NOT")
    assert words.signature is not None
    assert words.signature.title.startswith("bug check 0x7e SYSTEM_THREAD")
    said = (place / "bug-check.txt").read_text()
    assert said == f"{words.line}\nbuild: 20348\nprocessors: 1\n"


@pytest.mark.real
async def test_a_windows_without_a_bug_check(socket_dir: Path) -> None:
    memory = WindowsMemory()
    memory.write_virtual(BUG_CHECK_AT, bytes(40))
    with fail_after(TIME_LIMIT):
        async with windows_guest(socket_dir, memory) as vm:
            await vm.wait_status("guest-panicked")
            async with session_at(vm.socket) as session:
                with pytest.raises(NotReadableError, match="noted no bug check"):
                    await read_words(monitor_reader(session, TIME_LIMIT), 60)
