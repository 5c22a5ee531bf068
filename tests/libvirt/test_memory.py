"""The memory and the screen of a domain by libvirt's API, on a real libvirtd with a Linux guest."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.evidence.screen import take_picture_by_libvirt
from panicd.libvirt import requests
from panicd.libvirt.memory import PeekReader, dumper
from panicd.libvirt.protocol import CrashedDetail, DomainRef, DumpFormat, EventKind
from panicd.qemu.dump_error import DumpError
from panicd.qemu.guest_memory import read_words
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from panicd.rules.kernel_log import KernelLog
from tests.parts.fake_libvirtd import FakeLibvirtd
from tests.parts.libvirt import Libvirtd
from tests.parts.libvirt_client import ANSWERED_WITHIN, Listener, connected
from tests.parts.linux import Kernel, Trouble
from tests.parts.patience import fail_after, patience

WITHIN = 20.0  # seconds


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(120):
        yield


@asynccontextmanager
async def panicked_linux(
    libvirtd: Libvirtd, directory: Path, kernel: Kernel, *, vmcoreinfo: bool = True
) -> AsyncIterator[tuple[Listener, DomainRef]]:
    """A Linux guest that has panicked, and that libvirt preserves."""
    async with (
        connected(libvirtd.uri) as listener,
        libvirtd.plain_domain(
            directory, "preserve", guest=(kernel, Trouble()), vmcoreinfo=vmcoreinfo
        ),
    ):
        yield listener, await listener.wait_event(EventKind.CRASHED, CrashedDetail.PANICKED)


@pytest.mark.real
@pytest.mark.linux
async def test_log_screen_and_dump_of_a_panicked_linux(
    libvirtd: Libvirtd, socket_dir: Path, linux_kernel: Kernel
) -> None:
    async with panicked_linux(libvirtd, socket_dir, linux_kernel) as (listener, domain):
        client = listener.client
        stood = await client.call(requests.state_of(domain), timeout=ANSWERED_WITHIN)
        began = trio.current_time()
        reader = PeekReader(client, domain, began + patience(WITHIN))
        log = await read_words(reader, 200)
        assert isinstance(log, KernelLog)
        took = trio.current_time() - began
        text = [line.text for line in log.lines]
        assert any("sysrq triggered crash" in line for line in text), text[-20:]
        print(f"{len(text)} lines of the kernel's log in {took * 1000:.0f} ms")

        began = trio.current_time()
        for _ in range(10):
            assert len(await reader.read(ReadRequest(0, 4096))) == 4096
        print(f"a page in {(trio.current_time() - began) * 100:.1f} ms")
        began = trio.current_time()
        async with reader.range(ReadRequest(16 << 20, 16 << 20)) as pieces:
            assert sum(end - start for _, start, end in pieces) == 16 << 20
        print(f"16 MiB in {(trio.current_time() - began) * 1000:.0f} ms")
        with pytest.raises(NotReadableError, match="no guest memory at 0xfee00000"):
            await reader.read(ReadRequest(0xFEE00000, 4096))

        began = trio.current_time()
        picture, kind = await take_picture_by_libvirt(client, domain)
        print(f"a picture in {(trio.current_time() - began) * 1000:.0f} ms")
        assert kind == "png"
        path = socket_dir / "screen.png"
        path.write_bytes(picture)
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")

        # libvirt thinks of the domain as it did before, and does not resume it after a dump.
        assert await client.call(requests.state_of(domain), timeout=ANSWERED_WITHIN) == stood
        assert stood.panicked
        assert libvirtd.running
        assert "custom" not in await libvirtd.virsh("dominfo", "vm"), "nothing has tainted it"


@pytest.mark.real
@pytest.mark.linux
async def test_a_linux_that_leaves_no_note_has_no_log(
    libvirtd: Libvirtd, socket_dir: Path, linux_kernel: Kernel
) -> None:
    without = panicked_linux(libvirtd, socket_dir, linux_kernel, vmcoreinfo=False)
    async with without as (listener, domain):
        reader = PeekReader(listener.client, domain, trio.current_time() + patience(WITHIN))
        with pytest.raises(NotReadableError, match="VMCOREINFO"):
            await read_words(reader, 200)


async def test_a_domain_that_libvirt_takes_for_running_is_not_dumped(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        dump = dumper(listener.client, fake.domain().ref)
        with pytest.raises(DumpError, match="does not say that the guest is stopped"):
            await dump(Path(os.devnull), "elf", 1.0)
        fake.panic()
        await dump(socket_dir / "dump", "elf", 1.0)
        assert (socket_dir / "dump").exists()


async def test_the_next_start_of_a_domain_is_not_dumped(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        before = fake.domain().ref
        dump = dumper(listener.client, before)
        fake.domain().id += 1
        fake.panic()
        with pytest.raises(DumpError, match="no domain with matching id"):
            await dump(Path(os.devnull), "elf", 1.0)


@pytest.mark.parametrize(("operation", "given_up"), [(8, 1), (5, 0), (0, 0)])
async def test_a_dump_that_is_given_up_is_given_up_by_libvirt_too_and_nothing_else_is(
    socket_dir: Path, operation: int, given_up: int
) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.panic()
        fake.job = (2, operation)
        fake.faults.hangs = {requests.core_dump(fake.domain().ref, "", DumpFormat.RAW).procedure}
        dump = dumper(listener.client, fake.domain().ref)
        with pytest.raises(DumpError, match="no answer within"):
            await dump(Path(os.devnull), "elf", 0.05)
        assert fake.told[requests.abort_job(fake.domain().ref).procedure] == given_up


async def test_a_dump_that_was_refused_gives_nobody_s_job_up(socket_dir: Path) -> None:
    async with FakeLibvirtd.start(socket_dir) as fake, connected(fake.uri) as listener:
        fake.panic()
        fake.job = (2, 8)  # somebody else's
        core_dump = requests.core_dump(fake.domain().ref, "", DumpFormat.RAW).procedure
        fake.faults.refuses = {core_dump: "cannot acquire state change lock"}
        dump = dumper(listener.client, fake.domain().ref)
        with pytest.raises(DumpError, match="cannot acquire state change lock"):
            await dump(Path(os.devnull), "elf", 1.0)
        assert not fake.told[requests.abort_job(fake.domain().ref).procedure]
