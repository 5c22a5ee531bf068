"""A command that is told of incidents."""

import os
from pathlib import Path

import pytest
import trio

from panicd.config.notify import Hook
from panicd.notify.delivery import DeliveryError
from panicd.notify.hook import run_hook
from tests.parts.patience import fail_after


async def run(*command: str, timeout: float = 10.0, body: bytes = b"{}") -> None:
    with fail_after(20):
        await run_hook(Hook(command, timeout), {"PANICD_X": "a b $HOME"}, body)


async def test_it_has_arguments_environment_and_input(tmp_path: Path) -> None:
    script = 'printf "%s|%s|%s" "$1" "$PANICD_X" "$(cat)" > "$2"'
    kept = tmp_path / "kept"
    await run("/bin/sh", "-c", script, "sh", "; rm -rf $HOME `x`", str(kept))
    assert kept.read_text() == "; rm -rf $HOME `x`|a b $HOME|{}"


async def test_a_failure_says_what_it_said() -> None:
    with pytest.raises(DeliveryError, match=r"^/bin/sh: exit status 3: no\\x1b\[2J way$"):
        await run("/bin/sh", "-c", "printf 'no\\033[2J way\\n' >&2; exit 3")


async def test_a_program_that_there_is_none_of() -> None:
    with pytest.raises(DeliveryError, match="No such file"):
        await run("/nowhere/x")


async def test_it_need_not_read_its_input() -> None:
    await run("/bin/true", body=b"x" * 1_000_000)


async def test_endless_output_is_not_kept() -> None:
    with pytest.raises(DeliveryError) as caught:
        await run("/bin/sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; exit 1")
    assert len(str(caught.value)) < 1200


async def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    await run("/bin/sh", "-c", f"sleep 1000 & echo $! > {pid}")
    os.kill(int(pid.read_text()), 9)


async def test_it_is_ended_with_its_group_when_its_time_is_over(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # Whoever has the pipe open for writing, child or grandchild, ends with the group.
    script = f"exec 3>{fifo}; echo up >&3; sleep 1000 & wait"
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(DeliveryError, match=r"^/bin/sh: ran longer than 0\.5 s$"):
            await run("/bin/sh", "-c", script, timeout=0.5)
        with fail_after(10):
            os.set_blocking(reader, True)
            read = await trio.to_thread.run_sync(_read_all, reader)
        assert read in {b"up\n", b""}
    finally:
        os.close(reader)


def _read_all(descriptor: int) -> bytes:
    read = b""
    while chunk := os.read(descriptor, 100):
        read += chunk
    return read
