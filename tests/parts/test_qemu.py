"""Starting, seeing and ending a real QEMU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from panicd.demo.guests import Guest
from tests.parts.patience import fail_after
from tests.parts.qemu import QemuMissingError, QemuStartError, RealQemu, qemu_binary
from tests.parts.qmp import connect_qmp

TIME_LIMIT = 20.0
UUID = "00000000-0000-0000-0000-000000000001"


async def test_a_missing_qemu_is_named(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANICD_TEST_QEMU", "no-such-qemu")
    with pytest.raises(QemuMissingError, match=r"no-such-qemu is not installed.*apt-get install"):
        async with RealQemu.start(socket_dir):
            pass


async def test_a_long_socket_path_is_refused(socket_dir: Path) -> None:
    with pytest.raises(ValueError, match="too long for a unix socket"):
        async with RealQemu.start(socket_dir, name="x" * 100):
            pass


@pytest.mark.real
async def test_a_qemu_that_does_not_start_says_why(socket_dir: Path) -> None:
    with (
        fail_after(TIME_LIMIT),
        pytest.raises(QemuStartError, match=r"exit status 1(.|\n)*nonsense"),
    ):
        async with RealQemu.start(socket_dir, devices=["nonsense"]):
            pass


OLD = """#!/bin/sh
# As those before 2.12, which exit on a file descriptor (fd=), and before 2.2 (reconnect=).
for argument in "$@"; do
  case "$argument" in
    *,fd=*|*,reconnect*) echo "Invalid parameter: $argument" >&2; exit 1 ;;
    -action|*set-action*) echo "invalid option: $argument" >&2; exit 1 ;;
  esac
done
exec "{qemu}" "$@"
"""


@pytest.mark.real
async def test_an_old_qemu_can_be_run(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = socket_dir / "old-qemu"
    old.write_text(OLD.format(qemu=qemu_binary()))
    old.chmod(0o755)
    monkeypatch.setenv("PANICD_TEST_QEMU", str(old))
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(
            socket_dir, guest=Guest.PANIC_ON_KEY, extra=["-no-shutdown"]
        ) as vm:
            await vm.press_key()
            await vm.wait_status("guest-panicked")


@pytest.mark.real
async def test_it_is_gone_in_the_end(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir) as vm:
            os.kill(vm.pid, 0)
        assert vm.returncode == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(vm.pid, 0)


@pytest.mark.real
async def test_a_killed_qemu_leaves_its_socket(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir) as vm:
            vm.kill()
            assert await vm.wait_exit() == -signal.SIGKILL
            assert await trio.Path(vm.socket).exists()
            with pytest.raises(ConnectionRefusedError):
                async with connect_qmp(vm.socket):
                    pass


@pytest.mark.real
async def test_a_paused_guest_waits(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with RealQemu.start(socket_dir, guest=Guest.COUNT, paused=True) as vm:
            assert await vm.status() == "prelaunch"
            assert await vm.counter() == 0
            await vm.witness.execute("cont")
            await vm.wait_counting()


@pytest.mark.real
async def test_many_run_side_by_side(socket_dir: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            RealQemu.start(socket_dir, name="one", guest=Guest.PANIC_ON_KEY) as one,
            RealQemu.start(socket_dir, name="two", uuid=UUID) as two,
        ):
            await one.press_key()
            assert await one.wait_exit() == 0
            assert [event["event"] for event in two.events] == ["RESUME"]
            assert (await two.witness.execute("query-uuid"))["UUID"] == UUID
