"""``panicd arm``: a panic device for a VM that runs, and what comes with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.demo.guests import Guest
from panicd.service.control_client import RefusedError
from tests.parts.daemon import RunningDaemon
from tests.parts.libvirt import Libvirtd
from tests.parts.linux import Kernel, Trouble, linux_guest
from tests.parts.patience import fail_after, patience
from tests.parts.qemu import RealQemu

pytestmark = pytest.mark.real

TIME_LIMIT = 120.0  # seconds
WAITS = Trouble("while true; do /bin/busybox sleep 999; done", append="unknown_nmi_panic")
"""A Linux that panics when it is sent an NMI."""


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(2 * TIME_LIMIT):
        yield


async def arm(daemon: RunningDaemon, name: str, *, yes: bool = True) -> Any:
    return await daemon.call("arm", domain=name, why="it has none", yes=yes)


async def arm_once_booted(daemon: RunningDaemon, name: str) -> Any:
    """Arm a Linux, whose drivers come some seconds after its start."""
    answer = await arm(daemon, name)
    while not answer["taken"]:
        answer = await arm(daemon, name)  # what is there already is looked at
    return answer


async def send_nmi(daemon: RunningDaemon, inject: Callable[[], Awaitable[object]]) -> None:
    """Have a Linux panic. On a busy machine an emulated one was seen to miss an NMI."""
    while not daemon.logged("guest panicked"):
        await inject()
        with trio.move_on_after(patience(10)):
            await daemon.wait_log("guest panicked")


@pytest.mark.linux
async def test_a_linux_of_libvirt_s(
    libvirtd: Libvirtd, socket_dir: Path, linux_kernel: Kernel
) -> None:
    config: dict[str, Any] = {"libvirt": {"uri": libvirtd.uri}, "monitors": []}
    guest = linux_kernel, WAITS
    async with (
        libvirtd.plain_domain(socket_dir, "restart", guest=guest, panic="", ports=8) as domain,
        RunningDaemon.start(socket_dir, time_limit=TIME_LIMIT, **config) as daemon,
    ):
        await daemon.wait_armed("vm")
        assert (await daemon.domain("vm"))["standing"] == "no-panic-device"
        before = await domain.xml("--inactive")

        answer = await arm_once_booted(daemon, "vm")
        assert answer["argument"].startswith("pvpanic-pci,id=panicd-panic,bus=pci.")
        status = await daemon.domain("vm")
        assert status["panic_device"] == "requested"
        assert status["standing"] == "ready"
        assert status["armed"] == "yes"
        assert await domain.xml("--inactive") == before
        assert answer["argument"] in await domain.xml(), "the metadata of this start has it"
        assert (await daemon.call("explain", domain="vm"))["plugged"] is True
        assert "virt-xml vm --add-device" in (await daemon.exposures("vm"))["plugged"]

        await daemon.call("disarm", domain="vm", why="to be migrated")
        assert (await daemon.domain("vm"))["panic_device"] == "none"
        assert "panicd-panic" not in await domain.xml()
        await arm_once_booted(daemon, "vm")

        await daemon.kill()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        assert (await daemon.domain("vm"))["panic_device"] == "requested", "it is known again"
        await send_nmi(daemon, domain.inject_nmi)
        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [("restart", "on-crash")]
        assert incident.source == "event"

        await libvirtd.virsh("destroy", "vm")
        mark = daemon.mark()
        await domain.start()
        await daemon.wait_armed("vm", since=mark)
        assert (await daemon.domain("vm"))["panic_device"] == "none", "it ended with the start"


@pytest.mark.linux
@pytest.mark.parametrize("dials_in", [False, True], ids=["dialled", "dials-in"])
async def test_a_linux_with_a_monitor(
    socket_dir: Path, linux_kernel: Kernel, dials_in: bool
) -> None:
    listening = socket_dir / "in.sock"
    config: dict[str, Any] = {"monitors": [{"listen": str(listening)}]} if dials_in else {}
    policy = {"on_crash": "preserve"}
    async with (
        RunningDaemon.start(socket_dir, policy, time_limit=TIME_LIMIT, **config) as daemon,
        linux_guest(
            socket_dir,
            linux_kernel,
            devices=[],
            trouble=WAITS,
            dial=listening if dials_in else None,
        ) as guest,
    ):
        await daemon.wait_armed("linux")
        assert (await daemon.domain("linux"))["panic_device"] == "none"
        await arm_once_booted(daemon, "linux")
        assert (await daemon.domain("linux"))["panic_device"] == "requested"
        assert len(daemon.logged("domain connected")) == 1, "it is still the same session"
        await send_nmi(daemon, partial(guest.vm.hmp, "nmi"))
        await daemon.wait_incident("linux", state="preserved")
        with pytest.raises(RefusedError, match="goes on"):
            await daemon.call("disarm", domain="linux", why="it is of no use")


async def test_a_guest_without_the_driver(socket_dir: Path) -> None:
    async with (
        RunningDaemon.start(socket_dir, time_limit=TIME_LIMIT) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, devices=[]),
    ):
        await daemon.wait_armed("vm")
        with pytest.raises(RefusedError, match="can't be started"):
            await arm(daemon, "vm", yes=False)
        answer = await arm(daemon, "vm")
        assert answer["taken"] is False
        with pytest.raises(RefusedError, match="has not released"):
            await daemon.call("disarm", domain="vm", why="a mistake")
        assert (await daemon.domain("vm"))["panic_device"] == "requested"
        asked = await daemon.wait_log("operator asked", why="a mistake")
        assert asked["what"].startswith("disarm ")


@pytest.mark.parametrize(
    ("devices", "extra", "why"),
    [
        (["pvpanic"], [], "has a panic device: pvpanic"),
        ([], ["-machine", "q35"], "does not support hotplugging"),
    ],
    ids=["has-one", "no-free-port"],
)
async def test_where_it_can_t_be(
    socket_dir: Path, devices: list[str], extra: list[str], why: str
) -> None:
    async with (
        RunningDaemon.start(socket_dir, time_limit=TIME_LIMIT) as daemon,
        RealQemu.start(socket_dir, guest=Guest.COUNT, devices=devices, extra=extra),
    ):
        await daemon.wait_armed("vm")
        with pytest.raises(RefusedError, match=why):
            await arm(daemon, "vm")
        with pytest.raises(RefusedError, match="no panic device from `panicd arm`"):
            await daemon.call("disarm", domain="vm", why="it has none")
