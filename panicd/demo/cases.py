"""What the demonstration shows: every policy, and unusual events."""

from __future__ import annotations

from typing import Final

from panicd.demo.daemon import DaemonProcess
from panicd.demo.proofs import (
    compressed_dump,
    elf_dump,
    never_stopped,
    process_gone,
    relaunched,
    runs,
    stays_panicked,
    unseen,
    was_reset,
    was_resumed,
)
from panicd.demo.qemu import Qemu
from panicd.demo.scene import Case

_SIGKILLED: Final = -9


async def _panic_and_hang(vm: Qemu, daemon: DaemonProcess) -> None:
    """Have the guest panic, and its QEMU hang before panicd can tell it anything."""
    await daemon.freeze()
    await vm.press_key()
    await vm.wait_event("STOP")
    await vm.freeze()
    daemon.thaw()


async def _disarm_and_panic(vm: Qemu, _daemon: DaemonProcess) -> None:
    """Set QEMU's own default again, to exit on a panic, and have the guest panic."""
    await vm.set_panic_action("shutdown")
    await vm.press_key()


CASES: Final = (
    Case(
        "preserve",
        "the guest stays stopped, for somebody to look at",
        {"on_crash": "preserve"},
        "preserved",
        (stays_panicked,),
    ),
    Case(
        "destroy",
        "QEMU is ended",
        {"on_crash": "destroy"},
        "destroyed",
        (process_gone(0),),
    ),
    Case(
        "restart",
        "the guest is reset and boots",
        {"on_crash": "restart"},
        "restarted",
        (was_reset, runs),
    ),
    Case(
        "ignore",
        "the guest goes on as if nothing had happened",
        {"on_crash": "ignore"},
        "running-on",
        (never_stopped, runs),
    ),
    Case(
        "coredump-preserve",
        "the guest's memory is dumped; the guest stays stopped",
        {"on_crash": "coredump-preserve", "coredump": {"format": "elf"}},
        "preserved",
        (elf_dump, stays_panicked),
    ),
    Case(
        "coredump-destroy",
        "the guest's memory is dumped; QEMU is ended",
        {"on_crash": "coredump-destroy"},
        "destroyed",
        (compressed_dump, process_gone(0)),
    ),
    Case(
        "coredump-restart",
        "the guest's memory is dumped; the guest is reset and boots",
        {"on_crash": "coredump-restart"},
        "restarted",
        (compressed_dump, was_reset, runs),
    ),
    Case(
        "coredump-ignore",
        "the guest's memory is dumped; the guest goes on where it was",
        {"on_crash": "coredump-ignore"},
        "running-on",
        (compressed_dump, was_resumed, runs),
    ),
    Case(
        "hung",
        "QEMU hangs and hears neither quit nor SIGTERM",
        {"on_crash": "destroy", "timeouts": {"quit": "300ms", "terminate": "300ms"}},
        "destroyed",
        (process_gone(_SIGKILLED),),
        panic=_panic_and_hang,
    ),
    Case(
        "relaunched",
        "this QEMU ends instead of resetting (-action reboot=shutdown): it is started anew",
        {"on_crash": "restart"},
        "relaunched",
        (process_gone(0), relaunched),
        qemu=("-action", "reboot=shutdown"),
        relaunch=True,
    ),
    Case(
        "found",
        "it panicked before panicd was started, and waited (-action panic=pause)",
        {"on_crash": "restart"},
        "restarted",
        (was_reset, runs),
        qemu=("-action", "panic=pause"),
        before_panicd=True,
    ),
    Case(
        "set-back",
        "somebody sets QEMU's own default again, to exit on a panic: there is nothing to act on",
        {"on_crash": "restart"},
        "qemu-exited",
        (process_gone(0),),
        panic=_disarm_and_panic,
    ),
    Case(
        "too-early",
        "it panicked before panicd was started, and by QEMU's default that ended it",
        {"on_crash": "restart"},
        "",
        (process_gone(0), unseen),
        before_panicd=True,
    ),
)
