"""Two domains, as virt-install makes them on a fresh host, and panicd with its two lines."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.process import kill_by_pid_file
from tests.e2e.test_policies import ENOUGH_SPACE, dumps
from tests.parts.daemon import RunningDaemon
from tests.parts.libvirt import Libvirtd, PlainDomain
from tests.parts.linux import BUSY_HOST, Kernel, Trouble, make_initramfs
from tests.parts.patience import fail_after

pytestmark = [pytest.mark.real, pytest.mark.linux]

TIME_LIMIT = 180.0  # seconds
BOOTED = "its drivers are loaded"
WAITS = Trouble(f"/bin/busybox echo {BOOTED}; while true; do /bin/busybox sleep 999; done")
KERNEL_ARGUMENTS = (
    f"unknown_nmi_panic console=tty0 console=ttyS0 {BUSY_HOST}"  # it panics when it is sent an NMI
)


def console_of(initrd: Path, name: str) -> Path:
    """Where a domain's serial console is written to."""
    return initrd.with_name(f"{name}.console")


@asynccontextmanager
async def installed(
    libvirtd: Libvirtd, name: str, on_crash: str, kernel: Path, initrd: Path
) -> AsyncIterator[PlainDomain]:
    """Have virt-install make a domain, and start it; in the end it is gone."""
    boot = f"kernel={kernel},initrd={initrd},kernel_args={KERNEL_ARGUMENTS}"
    await trio.run_process(
        [
            *("virt-install", "--connect", libvirtd.uri, "--virt-type", "qemu", "--name", name),
            *("--memory", "256", "--import", "--disk", "none", "--network", "none"),
            *("--osinfo", "detect=off,require=off", "--boot", boot, "--noautoconsole"),
            *("--graphics", "vnc,listen=none", "--panic", "default"),
            *("--serial", f"file,path={console_of(initrd, name)}"),
            *("--features", "vmcoreinfo.state=on", "--events", f"on_crash={on_crash}"),
        ],
        capture_stdout=True,
        capture_stderr=True,
        env={**os.environ, "HOME": str(initrd.parent)},
    )
    try:
        yield PlainDomain(libvirtd, name)
    finally:
        run = Path(f"/proc/{libvirtd.pid}/root/run/libvirt/qemu")
        await kill_by_pid_file(run / f"{name}.pid", f"guest={name}")
        with trio.CancelScope(shield=True):
            await libvirtd.forget(name)


async def test_both_panic_and_nothing_was_edited(
    libvirtd: Libvirtd, socket_dir: Path, linux_kernel: Kernel
) -> None:
    if shutil.which("virt-install") is None:
        pytest.skip("no virt-install here: apt-get install virtinst")
    initrd = socket_dir / "initramfs"
    initrd.write_bytes(make_initramfs(linux_kernel, WAITS))
    space: dict[str, Any] = {"coredump": ENOUGH_SPACE, "evidence": {"budget": "30s"}}
    with fail_after(TIME_LIMIT):
        async with (
            installed(libvirtd, "ends", "coredump-destroy", linux_kernel.image, initrd) as ends,
            installed(libvirtd, "stays", "coredump-restart", linux_kernel.image, initrd) as stays,
        ):
            domains = ends, stays
            before = [await domain.xml("--inactive") for domain in domains]
            async with RunningDaemon.start(
                socket_dir,
                space,
                libvirt={"uri": libvirtd.uri},
                monitors=[],
                time_limit=TIME_LIMIT,
            ) as daemon:
                for domain, ending in zip(domains, ("destroyed", "restarted"), strict=True):
                    await daemon.wait_armed(domain.name)
                    await panic(domain, console_of(initrd, domain.name))
                    found = await daemon.wait_incident(domain.name, ending=ending)
                    await daemon.wait_kept(found)
                    incident: Any = await daemon.call("incident", incident=found.id)
                    assert incident["panic_line"].startswith("Kernel panic - not syncing: NMI")
                    kept = Path(incident["evidence_directory"])
                    assert (kept / "screen.png").read_bytes().startswith(b"\x89PNG")
                    assert incident["dumps"]
                assert len(dumps(socket_dir / "state" / "coredumps")) == 2
            assert [await domain.xml("--inactive") for domain in domains] == before
            await ends.wait_state("shut off (destroyed)")
            assert await stays.state() == "running (unpaused)"


async def panic(domain: PlainDomain, console: Path) -> None:
    """Have a Linux panic once it has its driver: before, nobody would be told."""
    said = trio.Path(console)
    while not await said.exists() or BOOTED.encode() not in await said.read_bytes():
        await domain.state()  # each look is a process
    await domain.inject_nmi()
