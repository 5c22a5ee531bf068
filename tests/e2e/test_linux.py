"""A real Linux kernel panics, and its domain's policy is carried out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.parts.commands import ask
from tests.parts.daemon import RunningDaemon
from tests.parts.linux import BUSY_HOST, Kernel, linux_guest
from tests.parts.qemu import RealQemu

pytestmark = [pytest.mark.linux, pytest.mark.real]

TIME_LIMIT = 120.0
"""Seconds; under TCG a kernel panics some seconds after its start."""

NAME = "linux"

GUIDE = Path(__file__).parents[2] / "docs/guide.md"


@pytest.mark.parametrize(
    ("device", "on_crash", "ending"),
    [("pvpanic", "destroy", "destroyed"), ("pvpanic-pci", "restart", "restarted")],
)
async def test_linux_panic_leads_to_its_policy(
    socket_dir: Path, linux_kernel: Kernel, device: str, on_crash: str, ending: str
) -> None:
    async with (
        RunningDaemon.start(socket_dir, {"on_crash": on_crash}, time_limit=TIME_LIMIT) as daemon,
        linux_guest(socket_dir, linux_kernel, devices=[device], paused=True) as guest,
    ):
        await daemon.wait_armed(NAME)
        assert (await daemon.domain(NAME))["panic_device"] == "requested"
        await guest.vm.start_guest()
        incident = await daemon.wait_incident(NAME, ending=ending)
        assert incident.source == "event"
        assert incident.decisions == [(on_crash, "on-crash")]
        if on_crash == "destroy":
            assert await guest.vm.wait_exit() == 0
        else:
            await guest.vm.wait_event("RESET")
            assert await guest.vm.status() == "running"
        console = await trio.Path(guest.console).read_text(errors="replace")
        assert "Kernel panic - not syncing: sysrq triggered crash" in console


async def test_a_dump_holds_what_a_kernel_panic_is_debugged_with(
    socket_dir: Path, linux_kernel: Kernel
) -> None:
    policy = {"on_crash": "coredump-destroy", "coredump": {"min_free": "1MiB"}}
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=TIME_LIMIT) as daemon,
        linux_guest(socket_dir, linux_kernel, paused=True) as guest,
    ):
        await daemon.wait_armed(NAME)
        await guest.vm.start_guest()
        incident = await daemon.wait_incident(NAME, ending="destroyed")
        await daemon.wait_kept(incident)
        record = await daemon.call("incident", incident=incident.id)
        (dump,) = record["dump_facts"]
        assert dump["path"].endswith(f"{incident.id}.kdump")
        assert (dump["level"], dump["reason"]) == (31, "")
        assert 1 << 20 < dump["size"] < 32 << 20
        assert dump["left_out"]["free"] > 1000
        assert dump["open"][0].startswith("crash /usr/lib/debug/boot/vmlinux-")
        (line,) = daemon.logged("memory dumped")
        assert line["pages_left_out"] == dump["left_out"]
        log = await ask(daemon, "incident", incident.id, "--log")
        assert "Kernel panic - not syncing: sysrq triggered crash" in log


async def test_the_guide_s_guest_panics_and_its_kernel_log_is_kept(
    socket_dir: Path, linux_kernel: Kernel
) -> None:
    text = GUIDE.read_text(encoding="utf-8").partition("### A guest that panics")[2]
    script = text.partition("```sh\n")[2].partition("\nstart ")[0]
    for told, here in {
        "/lib/modules/$(uname -r)": str(linux_kernel.image.parents[1]),
        "sleep 60": "sleep 0",
    }.items():
        assert told in script
        script = script.replace(told, here)
    await trio.run_process(["/bin/sh", "-c", script], env={**os.environ, "HOME": str(socket_dir)})
    policy = {"on_crash": "destroy", "evidence": {"budget": "9s"}}
    boot = ("-kernel", str(linux_kernel.image), "-initrd", str(socket_dir / "vms/guest.cpio"))
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=TIME_LIMIT) as daemon,
        RealQemu.start(
            socket_dir,
            guest=None,
            devices=("pvpanic", "vmcoreinfo"),
            name=NAME,
            accel="tcg",
            paused=True,
            extra=("-m", "256", *boot, "-append", BUSY_HOST),
        ) as vm,
    ):
        await daemon.wait_armed(NAME)
        await vm.start_guest()
        incident = await daemon.wait_incident(NAME, ending="destroyed")
        await daemon.wait_kept(incident)
        log = await ask(daemon, "incident", incident.id, "--log")
        assert "Kernel panic - not syncing: sysrq triggered crash" in log
