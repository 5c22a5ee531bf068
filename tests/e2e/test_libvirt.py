"""Domains that a real libvirtd runs: they get from panicd what they ask libvirt for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.test_policies import ENOUGH_SPACE, dumps
from tests.parts.daemon import ObservedDaemon, RunningDaemon
from tests.parts.libvirt import ROOT, Libvirtd, LibvirtVm
from tests.parts.linux import Kernel, Trouble
from tests.parts.patience import fail_after, patiently
from tests.parts.qemu import RealQemu
from tests.rules.windows_memory import WindowsMemory

pytestmark = pytest.mark.real

TIME_LIMIT = 60.0  # seconds; virsh is a process of its own each time

ALL = "PANICD_TEST_LIBVIRT"
"""The environment variable that, with the value ``all``, has the further cases tried too."""

PRESERVE_RUNNING_SINCE = (12, 6)

further = pytest.mark.skipif(os.environ.get(ALL) != "all", reason=f"{ALL}=all tries this too")


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with fail_after(2 * TIME_LIMIT):
        yield


def configured(libvirtd: Libvirtd, **changed: Any) -> dict[str, Any]:
    """Keywords for a daemon that knows this libvirt."""
    return {"libvirt": {"uri": libvirtd.uri, **changed}, "time_limit": TIME_LIMIT}


@asynccontextmanager
async def armed(
    libvirtd: Libvirtd,
    directory: Path,
    on_crash: str,
    policy: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[tuple[LibvirtVm, RunningDaemon]]:
    """A domain of libvirt's with an ``<on_crash>`` of its own, and a daemon that is ready."""
    async with (
        libvirtd.domain(directory, on_crash) as vm,
        RunningDaemon.start(directory, policy, **configured(libvirtd), **config) as daemon,
    ):
        await daemon.wait_armed("vm")
        yield vm, daemon


async def gone(vm: LibvirtVm, how: str) -> None:
    """See libvirt take note of a domain's end."""
    while (state := await vm.state()) != how:
        assert state.startswith(("crashed", "in shutdown")), state


@pytest.mark.parametrize("coredump", [pytest.param("", marks=further), "coredump-"])
async def test_its_own_destroy(libvirtd: Libvirtd, socket_dir: Path, coredump: str) -> None:
    policy = {"on_crash": "preserve", "coredump": ENOUGH_SPACE}
    async with armed(libvirtd, socket_dir, f"{coredump}destroy", policy) as (vm, daemon):
        assert await vm.live("on_crash") == "preserve", "libvirt leaves it to panicd"
        assert await vm.own("on_crash") == f"{coredump}destroy"
        await vm.press_key()

        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [(f"{coredump}destroy", "on-crash")]
        assert ("Quit", "done") in incident.steps
        await gone(vm, "shut off (destroyed)")
        assert len(dumps(socket_dir / "state" / "coredumps")) == bool(coredump)
        assert libvirtd.running, "its 9.0 dies of dumps that it did not ask for"


@pytest.mark.parametrize("coredump", ["", pytest.param("coredump-", marks=further)])
async def test_its_own_restart(libvirtd: Libvirtd, socket_dir: Path, coredump: str) -> None:
    policy = {"on_crash": "preserve", "coredump": ENOUGH_SPACE}
    async with armed(libvirtd, socket_dir, f"{coredump}restart", policy) as (vm, daemon):
        await vm.press_key()

        incident = await daemon.wait_incident("vm", ending="restarted")
        assert incident.decisions == [(f"{coredump}restart", "on-crash")]
        await vm.wait_counting()
        assert await vm.state() == "running (unpaused)"
        assert len(dumps(socket_dir / "state" / "coredumps")) == bool(coredump)
        assert libvirtd.running


@further
async def test_its_own_preserve(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with armed(libvirtd, socket_dir, "preserve", {"on_crash": "destroy"}) as (vm, daemon):
        await vm.press_key()

        await daemon.wait_incident("vm", state="preserved")
        assert await vm.status() == "guest-panicked"
        await vm.wait_state("crashed (panicked)")


@pytest.mark.parametrize("take_over", [True, False])
async def test_its_own_preserve_running(
    libvirtd: Libvirtd, socket_dir: Path, take_over: bool
) -> None:
    if await libvirtd.version() < PRESERVE_RUNNING_SINCE:
        pytest.skip(f"this libvirt has no preserve-running; {ROOT} names a tree with another")
    policy, settings = {"on_crash": "destroy"}, configured(libvirtd, take_over=take_over)
    async with (
        libvirtd.domain(socket_dir, "preserve-running") as vm,
        RunningDaemon.start(socket_dir, policy, **settings) as daemon,
    ):
        await daemon.wait_armed("vm")
        assert await vm.live("on_crash") == ("preserve" if take_over else "preserve-running")
        await vm.press_key()

        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("ignore", "on-crash")]
        await vm.wait_counting()
        assert await vm.state() == f"running ({'unpaused' if take_over else 'crashed'})"
        assert not await daemon.metric("panicd_domains_exposed", reason="libvirt")
        stops = [message for message in vm.events if message["event"] == "STOP"]
        assert len(stops) == take_over, "stopped and resumed, or never stopped"


async def test_a_guest_that_libvirt_lets_run_is_not_stopped(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    if await libvirtd.version() < PRESERVE_RUNNING_SINCE:
        pytest.skip(f"this libvirt has no preserve-running; {ROOT} names a tree with another")
    settings = configured(libvirtd, take_over=False) | {
        "domains": [{"match": "vm", "on_crash": "destroy"}]
    }
    async with (
        libvirtd.domain(socket_dir, "preserve-running") as vm,
        RunningDaemon.start(socket_dir, **settings) as daemon,
    ):
        await daemon.wait_armed("vm")
        assert await daemon.metric("panicd_domains_exposed", reason="libvirt") == 1
        await vm.press_key()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert incident.decisions == [("preserve", "libvirt")]
        assert not incident.steps
        await vm.wait_counting()


async def test_a_rule_of_panicd_s_goes_before_the_domain_s_own(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    rules = [{"match": "vm", "on_crash": "ignore"}]
    async with armed(libvirtd, socket_dir, "destroy", domains=rules) as (vm, daemon):
        await vm.press_key()

        incident = await daemon.wait_incident("vm", state="running-on")
        assert incident.decisions == [("ignore", "on-crash")]
        assert await vm.state() == "running (unpaused)", "and not crashed, while it runs"


@further
async def test_grace_goes_before_its_own(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with armed(libvirtd, socket_dir, "destroy", {"grace": patiently(3)}) as (vm, daemon):
        await vm.press_key()
        await daemon.wait_log("guest is left to itself", domain="vm")
        assert await vm.state() == "running (unpaused)", "libvirt let it go on"

        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.decisions == [("grace", "grace"), ("destroy", "grace-over")]
        await gone(vm, "shut off (destroyed)")


@further
async def test_what_the_domain_wanted_outlives_panicd(libvirtd: Libvirtd, socket_dir: Path) -> None:
    async with armed(libvirtd, socket_dir, "restart") as (vm, daemon):
        await daemon.terminate()
        await daemon.start_again()
        await daemon.wait_armed("vm", since=daemon.began)
        await vm.press_key()

        await daemon.wait_incident("vm", ending="restarted")
        await vm.wait_counting()


@further
async def test_a_panic_while_panicd_is_away_gets_the_domain_s_own(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    async with armed(libvirtd, socket_dir, "destroy") as (vm, daemon):
        await daemon.terminate()
        await vm.press_key()
        await vm.wait_status("guest-panicked")
        await daemon.start_again()

        incident = await daemon.wait_incident("vm", ending="destroyed")
        assert incident.source == "reconciliation"


async def test_libvirt_that_acts_by_itself_is_not_interfered_with(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    settings = configured(libvirtd, take_over=False)
    async with (
        libvirtd.domain(socket_dir, "restart") as vm,
        RunningDaemon.start(socket_dir, **settings) as daemon,
    ):
        await daemon.wait_armed("vm")
        told = await daemon.domain("vm")
        assert (told["libvirt"], told["reason"]) == ("restart", "libvirt")
        assert (told["on_crash"], told["effective_on_crash"]) == ("restart", "preserve")
        assert await daemon.metric("panicd_domains_exposed", reason="libvirt") == 1
        since = vm.witness.mark()
        await vm.press_key()
        await vm.wait_event("RESUME", since=since)

        incident = await daemon.wait_incident("vm", ending="foreign-reset")
        assert incident.decisions == [("preserve", "libvirt")]
        resets = [m for m in vm.witness.messages[since:] if m.get("event") == "RESET"]
        assert len(resets) == 1, "panicd did not reset it as well"


async def test_libvirt_that_hangs_keeps_nobody_waiting(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    async with armed(libvirtd, socket_dir, "restart") as (vm, daemon):
        with libvirtd.frozen():
            await vm.press_key()
            incident = await daemon.wait_incident("vm", ending="restarted")
            await daemon.wait_log("done without libvirt", what="reset")
            assert incident.decisions == [("restart", "on-crash")]
            assert ("SystemReset", "done") in incident.steps
            await vm.wait_counting()
            assert ("Cont", "done") in incident.steps
        # It learns late what happened, and may say 'crashed' from now on; but it does nothing more.
        await vm.state()
        resets = [message for message in vm.events if message["event"] == "RESET"]
        assert len(resets) == 1, "libvirt did not make up for what it was not told"


@further
async def test_a_domain_is_connected_while_libvirt_hangs(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    async with libvirtd.domain(socket_dir, "restart") as vm:
        with libvirtd.frozen():
            async with RunningDaemon.start(
                socket_dir, {"on_crash": "preserve"}, **configured(libvirtd)
            ) as daemon:
                await daemon.wait_armed("vm")
                assert (await daemon.call("status"))["libvirt_problem"]
                await vm.press_key()
                # Whatever libvirt makes of it later, panicd has decided by what it knows.
                incident = await daemon.wait_incident("vm", state="preserved")
                assert incident.decisions == [("preserve", "on-crash")]


async def test_a_qemu_that_claims_another_s_uuid_harms_itself_only(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    (socket_dir / "libvirt").mkdir()
    policy = {"on_crash": "destroy"}
    async with (
        libvirtd.domain(socket_dir, "preserve", name="victim") as victim,
        RunningDaemon.start(socket_dir, policy, **configured(libvirtd)) as daemon,
    ):
        uuid = await libvirtd.virsh("domuuid", "victim")
        await daemon.wait_armed("victim")
        async with RealQemu.start(
            socket_dir, uuid=uuid, extra=["-pidfile", f"{socket_dir}/libvirt/pid"]
        ) as liar:
            await daemon.wait_armed("vm")
            await liar.panic()
            assert await liar.wait_exit() == 0
        await daemon.wait_incident("vm", ending="destroyed")
        await victim.wait_counting()
        assert await victim.state() == "running (booted)"


@further
async def test_a_domain_that_can_t_be_reset_is_started_anew(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    policy = {"relaunch": {"libvirt": libvirtd.uri}}
    async with (
        libvirtd.domain(socket_dir, "restart", on_reboot="destroy") as vm,
        RunningDaemon.start(socket_dir, policy, **configured(libvirtd)) as daemon,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()

        incident = await daemon.wait_incident("vm", ending="relaunched")
        assert ("RunRelaunch", "done") in incident.steps
        assert await vm.state() == "running (booted)"
        await daemon.wait_domain("vm", lambda domain: domain["libvirt"] == "preserve")


@further
async def test_a_rule_s_word_in_the_domain_s_metadata_counts(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    async with libvirtd.domain(socket_dir, "preserve") as vm:
        element = '<policy on_crash="ignore"/>'
        command = ("metadata", "vm", "urn:panicd:libvirt:1", "--key", "panicd", "--set", element)
        await libvirtd.virsh(*command)
        async with RunningDaemon.start(socket_dir, **configured(libvirtd)) as daemon:
            await daemon.wait_armed("vm")
            assert (await daemon.domain("vm"))["on_crash"] == "ignore"
            await vm.press_key()
            await daemon.wait_incident("vm", state="running-on")


async def test_libvirt_that_is_not_configured_is_not_killed_by_a_dump(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    policy = {"on_crash": "coredump-preserve", "coredump": ENOUGH_SPACE}
    async with (
        libvirtd.domain(socket_dir, "preserve") as vm,
        RunningDaemon.start(socket_dir, policy, time_limit=TIME_LIMIT) as daemon,
    ):
        await daemon.wait_armed("vm")
        await vm.press_key()
        incident = await daemon.wait_incident("vm", state="preserved")
        assert ("Dump", "failed") in incident.steps
        await vm.wait_state("crashed (panicked)")


async def test_monitors_are_found_in_the_domains_xml(libvirtd: Libvirtd, socket_dir: Path) -> None:
    settings = configured(libvirtd) | {"monitors": [{"libvirt": True}]}
    async with (
        libvirtd.domain(socket_dir, "restart", name="first") as first,
        RunningDaemon.start(socket_dir, **settings) as daemon,
    ):
        await daemon.wait_armed("first")
        async with libvirtd.domain(socket_dir, "destroy", name="second") as second:
            await daemon.wait_armed("second")
            await second.press_key()
            await daemon.wait_incident("second", ending="destroyed")
        await first.press_key()
        await daemon.wait_incident("first", ending="restarted")


@pytest.mark.parametrize("take_over", [pytest.param(True, marks=further), False])
async def test_probe_says_what_libvirt_would_do(
    libvirtd: Libvirtd, socket_dir: Path, take_over: bool
) -> None:
    settings = {"uri": libvirtd.uri, "take_over": take_over}
    daemon = ObservedDaemon(socket_dir, libvirt=settings)
    async with libvirtd.domain(socket_dir, "coredump-destroy") as vm:
        command = [
            "--config",
            str(daemon.config_file),
            "probe",
            str(socket_dir / "vm.qmp"),
            "--json",
        ]
        told = await trio.run_process(
            [sys.executable, "-m", "panicd", *command], capture_stdout=True, check=False
        )
        seen = json.loads(told.stdout)
        assert (seen["libvirt"], seen["on_crash"]) == ("coredump-destroy", "coredump-destroy")
        assert seen["libvirt_acts"] is not take_over
        assert {plan["reason"] for plan in seen["policies"]} == {
            "on-crash" if take_over else "libvirt"
        }
        assert bool(seen["remedies"]) is not take_over
        assert await vm.live("on_crash") == "coredump-destroy", "nothing was changed"


@pytest.mark.linux
async def test_the_words_of_a_linux_are_read_and_it_is_dumped_afterwards(
    libvirtd: Libvirtd, socket_dir: Path, linux_kernel: Kernel
) -> None:
    policy = {"evidence": {"budget": "6s"}, "coredump": ENOUGH_SPACE}
    guest = linux_kernel, Trouble()
    async with (
        RunningDaemon.start(socket_dir, policy, **configured(libvirtd)) as daemon,
        libvirtd.domain(socket_dir, "coredump-restart", guest=guest, paused=True) as vm,
    ):
        await daemon.wait_armed("vm")
        await vm.resume()
        found = await daemon.wait_incident("vm", ending="restarted")
        assert ("Dump", "done") in found.steps
        assert libvirtd.running
        incident: Any = await daemon.call("incident", incident=found.id)
        assert incident["panic_line"] == PANIC
        assert incident["signature"]["title"] == "crash key"
        kept = await trio.Path(incident["evidence_directory"], "kernel.log").read_text()
        assert len(kept.splitlines()) > 300
        command = [sys.executable, "-m", "panicd", "--config", str(daemon.config_file)]
        whole = await trio.run_process(
            [*command, "incident", found.id, "--log"], capture_stdout=True
        )
        assert whole.stdout.decode().splitlines()[-40:] == kept.splitlines()[-40:]


async def test_the_bug_check_of_a_windows_is_read_and_it_is_dumped_afterwards(
    libvirtd: Libvirtd, socket_dir: Path
) -> None:
    coredump = {**ENOUGH_SPACE, "format": "kdump-zlib"}
    policy = {"evidence": {"budget": "10s"}, "coredump": coredump}
    rules = [{"match": "vm", "on_crash": "coredump-destroy"}]
    started = RunningDaemon.start(socket_dir, policy, domains=rules, **configured(libvirtd))
    async with libvirtd.domain(socket_dir, "preserve", guest=WindowsMemory()) as vm:
        await vm.wait_status("guest-panicked")
        async with started as daemon:
            found = await daemon.wait_incident("vm", ending="destroyed")
            await daemon.wait_kept(found)
            incident: Any = await daemon.call("incident", incident=found.id)
        assert libvirtd.running
        assert incident["panic_line"].startswith("Windows bug check 0x0000007E SYSTEM_THREAD")
        (dump,) = incident["dumps"]
        assert dump.endswith(".dmp.zst")


PANIC = "Kernel panic - not syncing: sysrq triggered crash"
