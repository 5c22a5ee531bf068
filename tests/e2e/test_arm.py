"""A real Linux on 64-bit Arm panics: the policy, the evidence, and dumps that tools open.

It boots once, for all tests: under TCG that takes some seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.cli.filtering import write_filtered
from panicd.dumps.coredump import dump_guest_memory
from panicd.dumps.facts import dump_facts
from panicd.dumps.reader import read_dumped_log
from panicd.qemu.monitor import event_loop
from panicd.rules.guest_memory.reading import NotReadableError
from panicd.rules.kernel_log import panic_line
from panicd.rules.settings import CoredumpSettings, DumpFormat, FreeSpaceFloor
from tests.dumps.test_coredump import session_with
from tests.parts.apt import MissingError
from tests.parts.commands import ask
from tests.parts.daemon import RunningDaemon
from tests.parts.linux import linux_guest
from tests.parts.linux_arm import find_arm_kernel
from tests.parts.patience import patience

pytestmark = [pytest.mark.linux, pytest.mark.real]

TIME_LIMIT = 180.0
NAME = "linux"
OWN_KERNEL = bool(os.environ.get("PANICD_TEST_ARM_KERNEL"))
"""The kernel is one of ``tests/parts/arm_64k.sh``: pages are left out of 4 KiB only."""
LARGE_PAGES = "its pages have 65536 bytes, not 4096"
PANIC = "Kernel panic - not syncing: sysrq triggered crash"
READ_BY_DRGN = """
information = prog["VMCOREINFO"].string_().decode()
(symbol,) = [line for line in information.splitlines() if line.startswith("SYMBOL(init_uts_ns)=")]
print(prog.read(int(symbol.partition("=")[2], 16), 390).replace(bytes(1), b" "))
"""
"""As for x86: guest memory by its virtual address, through the guest's page tables."""


@dataclass(frozen=True)
class Seen:
    """What was seen of one panic.

    Attributes:
        domain: How it stood, armed.
        incident: Its record.
        log: Of ``panicd incident --log``.
        files: The evidence.
        dumps: What the policy made, and further formats, unpacked.
    """

    domain: Any
    incident: Any
    log: str
    files: dict[str, str]
    dumps: dict[str, Path]


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    try:
        kernel = find_arm_kernel()
    except MissingError as missing:
        pytest.skip(f"no Linux guest on Arm here: {missing}")
    with tempfile.TemporaryDirectory(prefix="panicd-") as directory:
        yield trio.run(see, Path(directory), kernel)


async def see(directory: Path, kernel: Any) -> Seen:
    policy = {
        "on_crash": "coredump-preserve",
        "coredump": {"min_free": "1MiB"},
        "evidence": {"budget": "20s"},
    }
    devices = kernel.machine.devices
    async with linux_guest(directory, kernel, devices=devices, paused=True) as guest:
        async with RunningDaemon.start(directory, policy, time_limit=TIME_LIMIT) as daemon:
            await daemon.wait_armed(NAME)
            domain = await daemon.domain(NAME)
            await guest.vm.start_guest()
            found = await daemon.wait_incident(NAME, state="preserved")
            await daemon.wait_kept(found)
            incident: Any = await daemon.call("incident", incident=found.id)
            log = await ask(daemon, "incident", found.id, "--log")
        bundle = directory / "state" / "incidents" / found.id
        files = {path.name: path.read_text(errors="replace") for path in bundle.iterdir()}
        dumps = {"policy": unpacked(Path(incident["dump_facts"][0]["path"]), directory)}
        settings = CoredumpSettings(directory / "more", min_free=FreeSpaceFloor(), level=1)
        async with event_loop(), session_with(guest.vm) as session:
            for kind in (DumpFormat.ELF, DumpFormat.ELF_ZSTD, DumpFormat.KDUMP_ZLIB):
                made = await dump_guest_memory(session, settings, NAME, f"{kind}", kind)
                dumps[kind] = unpacked(made.path, directory)
    return Seen(domain, incident, log, files, dumps)


def unpacked(dump: Path, directory: Path) -> Path:
    """A dump that tools open: one that is compressed as a whole is unpacked."""
    if dump.suffix != ".zst":
        return dump
    target = directory / f"unpacked-{dump.stem}"
    subprocess.run(["zstd", "-q", "-d", dump, "-o", target], check=True)
    return target


def test_the_panic_is_known_by_its_cause(seen: Seen) -> None:
    assert (seen.domain["panic_device"], seen.domain["armed"]) == ("requested", "yes")
    assert seen.incident["panic_line"] == PANIC
    assert seen.incident["signature"]["title"] == "crash key"


def test_the_log_is_read_from_memory(seen: Seen) -> None:
    log = seen.files["kernel.log"]
    assert "Booting Linux on physical CPU" in log
    assert "vfs_write" in log.partition(PANIC)[2]
    assert "PC=" in seen.files["registers.txt"]
    assert PANIC in seen.log


def test_a_vm_without_a_screen_has_no_picture(seen: Seen) -> None:
    problems = json.loads(seen.files["bundle.json"])["problems"]
    assert list(problems) == ["screenshot"]
    assert "the VM has no screen" in problems["screenshot"]


def test_the_dump_leaves_out_what_its_level_says(seen: Seen) -> None:
    (facts,) = seen.incident["dump_facts"]
    if OWN_KERNEL:
        assert (facts["level"], facts["reason"]) == (1, LARGE_PAGES)
        assert facts["path"].endswith(".elf.zst")
        return
    assert (facts["level"], facts["reason"]) == (31, "")
    assert facts["path"].endswith(".kdump")
    assert facts["left_out"]["free"] > 1000
    assert 1 << 20 < facts["size"] < 32 << 20


KINDS = ["policy", DumpFormat.ELF, DumpFormat.ELF_ZSTD, DumpFormat.KDUMP_ZLIB]


@pytest.mark.parametrize("kind", KINDS)
def test_drgn_and_panicd_read_the_dump(seen: Seen, kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(READ_BY_DRGN)
    drgn = Path(sys.executable).with_name("drgn")
    if not drgn.exists():
        pytest.skip("no drgn here")
    core = ("--core", str(seen.dumps[kind]))
    printed = subprocess.run(
        [drgn, "--quiet", *core, "--no-default-symbols", script],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    ).stdout
    assert "aarch64" in printed
    assert "SMP" in printed  # of the kernel's version, which no header holds

    log = read_dumped_log(seen.dumps[kind])
    assert log.complete
    assert log.lines[0].text.startswith("Booting Linux on physical CPU")
    assert panic_line(log.lines) == PANIC


def test_a_full_dump_is_filtered_on_its_way_out(seen: Seen, tmp_path: Path) -> None:
    target = tmp_path / "filtered.kdump"
    with target.open("wb+") as file:
        if OWN_KERNEL:
            with pytest.raises(NotReadableError, match=LARGE_PAGES):
                write_filtered(seen.dumps[DumpFormat.ELF], 31, file)
            return
        write_filtered(seen.dumps[DumpFormat.ELF], 31, file)
    (facts,) = seen.incident["dump_facts"]
    assert dump_facts(target).left_out == facts["left_out"]
