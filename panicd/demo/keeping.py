"""``panicd demo --keep``: VMs and a daemon that stay, for people to try the commands on.

Their guests halt, so they take no processor. One panics when its name is typed: what a kernel would
say is written to its serial port, and the panic to its panic device, both from outside.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import trio

from panicd import __version__
from panicd.demo.daemon import DaemonProcess
from panicd.demo.guests import Guest
from panicd.demo.lab import Lab
from panicd.demo.playing import play
from panicd.demo.qmp import QmpClosedError
from panicd.demo.report import Report
from panicd.demo.scene import Case, Scene

_SERIAL_PORT: Final = 0x3F8
_WORDS: Final = b"[    7.654321] Kernel panic - not syncing: panicd demo\r\n"
_INPUT: Final = 0  # the descriptor
_READ_SIZE: Final = 4096


def _case(name: str, on_crash: str, about: str) -> Case:
    rule = {"on_crash": on_crash, "evidence": {"budget": "5s"}}
    return Case(name, about, rule, "", (), guest=Guest.IDLE, has_console=True)


CASES: Final = (
    _case("web-1", "restart", "is restarted, at most 3 times a day"),
    _case("db-1", "coredump-preserve", "is dumped, and waits for you"),
    _case("test-1", "destroy", "is ended"),
)

_TRY: Final = (
    "panicd status",
    "panicd explain web-1",
    "panicd incidents",
    "panicd incident last",
    'panicd ack last --why "that was me"',
    'panicd act db-1 restart --why "seen"',
    'panicd hold web-1 --for 10m --why "trying it"',
    'panicd unhold web-1 --why "done"',
)


def keep() -> int:
    """Start the VMs and panicd, and keep them until somebody interrupts it.

    Returns:
        0 if everything started, otherwise 1.
    """
    return play(_keep, until_interrupted=True)


async def _keep(report: Report, lab: Lab, _nursery: trio.Nursery) -> int:
    async with AsyncExitStack() as stack:
        scenes = [await stack.enter_async_context(lab.start(case)) for case in CASES]
        lab.write_config(CASES)
        daemon = await stack.enter_async_context(
            DaemonProcess.start(lab.config_file, lab.control_socket, lab.log_file)
        )
        for scene in scenes:
            await scene.vm.start_guest()
            await daemon.wait_connected(scene.case.name)
        _introduce(report, lab, scenes, await daemon.wait_page())
        async for name in _typed():
            await _panic(report, scenes, name)
        await trio.sleep_forever()


def _introduce(report: Report, lab: Lab, scenes: list[Scene], page: str) -> None:
    say = report.say
    say(f"panicd {__version__}, QEMU {scenes[0].vm.version} ({lab.accelerator.upper()})")
    say("These VMs and panicd run until you press Ctrl-C:")
    for case in CASES:
        say("  ", (f"{case.name:7}", "bold"), f" on a panic it {case.about}")
    say("")
    say("Type this in another terminal:")
    say(f"  export PANICD_CONFIG={lab.config_file}")
    program = "panicd" if shutil.which("panicd") else Path(sys.argv[0]).absolute()
    for command in _TRY:
        say("  ", command.replace("panicd", str(program), 1))
    say(f"The page: {page}")
    say("")
    say("Type the name of a VM here, and Enter: its guest panics.")


async def _panic(report: Report, scenes: list[Scene], name: str) -> None:
    """Have the guest of a VM panic, and say so."""
    vm = next((scene.vm for scene in scenes if scene.case.name == name), None)
    if vm is None:
        report.say(f"There is no VM {name!r}: type {', '.join(case.name for case in CASES)}.")
        return
    try:
        for byte in _WORDS:
            await vm.hmp(f"o /b {_SERIAL_PORT:#x} {byte:#x}")
        await vm.panic()
    except QmpClosedError:
        report.say(f"{name} has ended.")
        return
    report.say(f"The guest of {name} panicked: see `panicd incident last`.")


async def _typed() -> AsyncIterator[str]:
    """Yield each line that somebody types, without blanks; nothing if nobody can."""
    pending = b""
    while True:
        try:
            await trio.lowlevel.wait_readable(_INPUT)
            received = os.read(_INPUT, _READ_SIZE)
        except OSError:  # standard input is closed, or is a file
            return
        if not received:
            return
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            if name := line.decode(errors="replace").strip():
                yield name
