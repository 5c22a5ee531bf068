"""``panicd demo``: that it shows every policy working, sees what does not, and cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo import story
from panicd.demo.cases import CASES
from panicd.demo.dump_file import DamagedDumpError, read_elf_memory
from panicd.demo.process import kill_by_pid_file
from panicd.demo.proofs import compressed_dump, process_gone, runs, stays_panicked, was_reset
from panicd.demo.scene import Case
from panicd.rules.on_crash import OnCrash
from panicd.service.control_client import call
from tests.parts.dump_files import Dump
from tests.parts.patience import fail_after, patience

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TIME_LIMIT = 110.0


@contextmanager
def demo(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, with ``directory`` for its temporary files."""
    with subprocess.Popen(
        [sys.executable, "-m", "panicd", "demo", *options],
        env={**os.environ, "TMPDIR": str(directory), "NO_COLOR": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_nothing_left(directory: Path) -> None:
    assert list(directory.iterdir()) == []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            assert bytes(directory) not in command, f"process {entry.name} is left: {command!r}"


def test_every_policy_has_a_case() -> None:
    shown = {case.rule["on_crash"] for case in CASES}
    assert shown == {str(policy) for policy in OnCrash}


@pytest.mark.real
def test_all_is_seen_working_and_nothing_is_left(socket_dir: Path) -> None:
    with demo(socket_dir) as process:
        printed, _ = process.communicate(timeout=patience(TIME_LIMIT))

    assert process.returncode == 0, printed
    assert f"{len(CASES)} of {len(CASES)} policies seen working" in printed
    assert "✘" not in printed
    for command in ("panicd status", "panicd incidents", "panicd explain", "curl"):
        assert f"$ {command}" in printed
    assert 'panicd_panics_total{source="reconciliation"} 1.0' in printed
    assert_nothing_left(socket_dir)


def interrupted(directory: Path, number: signal.Signals) -> tuple[int, str]:
    """Interrupt a demonstration in its midst; return its exit status, and what it printed then."""
    with demo(directory) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "relaunched:" in line:  # the last that starts anything
                break
        process.send_signal(number)
        printed, _ = process.communicate(timeout=patience(TIME_LIMIT))
    return process.returncode, printed


@pytest.mark.real
def test_nothing_is_left_of_one_that_is_interrupted(socket_dir: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    places = [socket_dir / str(int(number)) for number in numbers]
    for place in places:
        place.mkdir()

    with ThreadPoolExecutor() as threads:  # beside each other, as each takes seconds
        for status, printed in threads.map(interrupted, places, numbers):
            assert status == 1
            assert "interrupted" in printed
    for place in places:
        assert_nothing_left(place)


@pytest.mark.real
def test_it_ends_when_nobody_reads_it(socket_dir: Path) -> None:
    with demo(socket_dir) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=patience(TIME_LIMIT)) == 1
    assert_nothing_left(socket_dir)


def printed_until(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line.rstrip())
        if words in line:
            return printed
    raise AssertionError("\n".join(printed))


@pytest.mark.real
def test_one_that_is_kept_takes_commands_until_it_is_interrupted(socket_dir: Path) -> None:
    with demo(socket_dir, "--keep") as process:
        assert process.stdin is not None
        introduced = printed_until(process, "Type the name")
        (config,) = socket_dir.glob("*/panicd.yaml")
        assert f"  export PANICD_CONFIG={config}" in introduced
        for name, said in (
            *(("web-1", "The guest of web-1 panicked"), ("db-1", "The guest of db-1 panicked")),
            *(("test-1", "The guest of test-1 panicked"), ("web-9", "There is no VM 'web-9'")),
        ):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            printed_until(process, said)
        became: dict[str, Any] = {}
        expected = {"web-1": "restarted", "db-1": "preserved", "test-1": "destroyed"}
        while became != expected:
            listed: Any = call(config.with_name("control.sock"), "incidents")
            became = {each["domain"]: each["ending"] or each["state"] for each in listed}
        words = {each["panic_line"] for each in listed}
        assert words == {"Kernel panic - not syncing: panicd demo"}
        process.stdin.write("test-1\n")
        process.stdin.close()
        printed_until(process, "test-1 has ended.")

        process.send_signal(signal.SIGINT)
        printed_until(process, "The demonstration has ended")
        assert process.wait(timeout=patience(TIME_LIMIT)) == 0
    assert_nothing_left(socket_dir)


@pytest.mark.real
def test_what_does_not_work_is_seen(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (
        Case("not-gone", "", {"on_crash": "preserve"}, "preserved", (process_gone(0),)),
        Case("not-running", "", {"on_crash": "preserve"}, "preserved", (runs,)),
        Case("not-panicked", "", {"on_crash": "restart"}, "restarted", (stays_panicked,)),
        Case("not-dumped", "", {"on_crash": "preserve"}, "preserved", (compressed_dump,)),
        Case("not-reset", "", {"on_crash": "ignore"}, "running-on", (was_reset,)),
        Case("not-destroyed", "", {"on_crash": "preserve"}, "destroyed", ()),
    )
    monkeypatch.setattr(story, "CASES", wrong)
    limit = patience(2.0)
    monkeypatch.setattr(story, "_CASE_SECONDS", limit)
    monkeypatch.setattr("tempfile.tempdir", str(socket_dir))

    assert story.tell() == 1

    printed = capsys.readouterr().out
    assert f"0 of {len(wrong)} policies seen working" in printed
    for fault in (
        f"not-gone: not done within {limit:g} seconds",
        f"not-running: not done within {limit:g} seconds",
        "not-panicked: run state: expected guest-panicked, found running",
        "not-dumped: no finished dump",
        f"not-reset: not done within {limit:g} seconds",
        "not-destroyed: the incident is preserved, and not destroyed",
    ):
        assert fault in printed
    assert_nothing_left(socket_dir)


def test_a_missing_qemu_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert story.tell() == 1
    assert "apt-get install --no-install-recommends qemu-system-x86" in capsys.readouterr().out


@pytest.mark.real
def test_a_long_temporary_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert story.tell() == 1
    assert "too long for a unix socket" in capsys.readouterr().out
    assert_nothing_left(long)


def written(path: Path, kind: str) -> bytes:
    """A dump of 64 KiB of zeros."""
    content = b"".join(Dump(-1, kind, 65536, detached=True, resumes=False).chunks())
    path.write_bytes(content)
    return content


def test_a_compressed_dump_is_complete_or_not(tmp_path: Path) -> None:
    path = tmp_path / "dump.elf.zst"
    content = zstd.compress(written(path, "elf"))
    path.write_bytes(content)
    assert read_elf_memory(path, 0, 4) == bytes(4)

    for damaged in (b"", content[1:], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDumpError):
            read_elf_memory(path, 0, 4)


def test_an_elf_dump_is_complete_or_not(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    content = written(path, "elf")
    path.write_bytes(content[:-4] + b"last")
    assert read_elf_memory(path, 65532, 4) == b"last"
    with pytest.raises(DamagedDumpError, match="does not hold"):
        read_elf_memory(path, 65533, 4)

    for damaged in (b"", content[1:], content[:-1], content[:80], content[:20]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDumpError):
            read_elf_memory(path, 0, 4)


async def test_only_the_process_meant_is_ended_by_its_pid_file(tmp_path: Path) -> None:
    with fail_after(TIME_LIMIT):
        sleeper = await trio.lowlevel.open_process(["sleep", "1000"])
        while not await trio.Path(f"/proc/{sleeper.pid}/cmdline").read_bytes():
            pass  # it has no arguments for a moment yet
        try:
            pid_file = tmp_path / "pid"
            pid_file.write_text(f"{sleeper.pid}\n")
            await kill_by_pid_file(pid_file, "another")
            assert sleeper.poll() is None
            await kill_by_pid_file(pid_file, "1000")
            assert await sleeper.wait() == -signal.SIGKILL
            await kill_by_pid_file(tmp_path / "none", "")
        finally:
            sleeper.kill()
