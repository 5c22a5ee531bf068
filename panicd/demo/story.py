"""``panicd demo``: real QEMUs whose guests panic, what panicd does, and the proof that it did.

A real daemon runs beside one QEMU for each case, and a second monitor on each QEMU watches both.
Everything is in a temporary directory, which goes with the processes when the story ends, however
it ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final
from urllib.request import urlopen

import trio

from panicd import __version__
from panicd.demo.cases import CASES
from panicd.demo.daemon import DaemonProcess
from panicd.demo.dump_file import DamagedDumpError
from panicd.demo.lab import Lab
from panicd.demo.playing import DONE, FAILED, play
from panicd.demo.process import make_way
from panicd.demo.qmp import QmpClosedError, QmpCommandError
from panicd.demo.report import Report
from panicd.demo.scene import Scene, UnprovenError
from panicd.service.control_client import DaemonUnreachableError, RefusedError

# For what never comes: slow is not broken. A case takes 1 s on a quiet machine, and ten times as
# long or more on one that is busy.
_STORY_SECONDS: Final = 900.0
_CASE_SECONDS: Final = 120.0
_FETCH_SECONDS: Final = 5.0
_SHOWN_METRICS: Final = (
    "panicd_panics_total",
    "panicd_actions_total",
    "panicd_reaction_seconds_sum",
    "panicd_reaction_seconds_count",
    "panicd_coredumps_total",
    "panicd_coredump_bytes_total",
    'panicd_domain_panicked{domain="preserve"}',
    'panicd_domain_restarts_total{domain="restart"}',
)


def tell() -> int:
    """Tell the story on standard output.

    Returns:
        0 if everything was seen to work, otherwise 1.
    """
    return play(_tell)


async def _tell(report: Report, lab: Lab, nursery: trio.Nursery) -> int:
    try:
        with trio.fail_after(_STORY_SECONDS):
            return await _Story(report, lab).tell(nursery)
    except trio.TooSlowError:
        report.fault(f"not done within {_STORY_SECONDS:g} seconds")
        return FAILED


class _Story:
    """One telling.

    Args:
        report: Where to.
        lab: Where it takes place.
    """

    def __init__(self, report: Report, lab: Lab) -> None:
        self._report = report
        self._lab = lab
        self._began = time.monotonic()

    async def tell(self, nursery: trio.Nursery) -> int:
        """Tell it.

        Args:
            nursery: For what goes on beside it.

        Raises:
            QemuStartError: A QEMU did not start.
            SocketPathError: The temporary directory's path is too long for sockets.
            DaemonEndedError: panicd ended.
        """
        lab, report = self._lab, self._report
        async with AsyncExitStack() as stack:
            scenes = [await stack.enter_async_context(lab.start(case)) for case in CASES]
            for scene in scenes:
                nursery.start_soon(scene.watch)
            self._introduce(scenes)
            await self._before_panicd(scenes)
            lab.write_config(CASES)
            daemon = await stack.enter_async_context(
                DaemonProcess.start(lab.config_file, lab.control_socket, lab.log_file)
            )
            for scene in scenes:
                if scene.vm.returncode is None:
                    await daemon.wait_connected(scene.case.name)
            for scene in scenes:
                await self._play(scene, daemon)
                report.scene(scene)
                if scene.vm.returncode is None:
                    make_way(scene.vm.pid)  # its guest counts on, as fast as it can
            await self._operator(daemon)
            return self._summary(scenes, daemon)

    def _introduce(self, scenes: Sequence[Scene]) -> None:
        lab, qemu = self._lab, scenes[0].vm.version
        say = self._report.say
        say(f"panicd {__version__}, QEMU {qemu} ({lab.accelerator.upper()})")
        say(
            f"{len(scenes)} VMs in {lab.directory}, each with a tiny guest that panics from inside."
        )
        say("  config  the VM's rule in panicd's configuration")
        say("  QEMU    what it was seen to do, from a second monitor, and how long after the panic")
        say("  panicd  what its journal says: how it learnt of the panic, its decision, its steps")
        say("  proof   what is there to be seen afterwards, looked at without panicd")

    async def _before_panicd(self, scenes: Sequence[Scene]) -> None:
        for scene in scenes:
            if scene.case.before_panicd:
                await scene.boot()
                await scene.vm.press_key()
                await scene.wait_left_alone()

    async def _play(self, scene: Scene, daemon: DaemonProcess) -> None:
        """Have one guest panic, and see what becomes of it."""
        try:
            with trio.fail_after(_CASE_SECONDS):
                if not scene.case.before_panicd:
                    await scene.boot()
                    await scene.case.panic(scene.vm, daemon)
                await scene.wait_end(daemon)
                for proof in scene.case.proofs:
                    scene.proofs.append(await proof(scene))
                await scene.ask_incident(daemon)
        except trio.TooSlowError:
            scene.fault = f"not done within {_CASE_SECONDS:g} seconds"
        except _FAULTS as error:
            scene.fault = str(error)

    async def _operator(self, daemon: DaemonProcess) -> None:
        """Show what an operator sees of it."""
        for arguments in (("status",), ("incidents",), ("explain", "coredump-restart")):
            self._report.typed(f"panicd {' '.join(arguments)}", await self._type(daemon, arguments))
        url = f"{await daemon.wait_page()}metrics"
        metrics = await trio.to_thread.run_sync(_fetch, url, abandon_on_cancel=True)
        shown = [line for line in metrics.splitlines() if line.startswith(_SHOWN_METRICS)]
        self._report.typed(f"curl {url}", "\n".join([*shown, "…", ""]))

    async def _type(self, daemon: DaemonProcess, arguments: Sequence[str]) -> str:
        report = self._report
        color = report.console.is_terminal
        return await daemon.type(*arguments, width=report.width, color=color)

    def _summary(self, scenes: Sequence[Scene], daemon: DaemonProcess) -> int:
        report = self._report
        proven = sum(scene.proven for scene in scenes)
        seconds = time.monotonic() - self._began
        report.say("")
        report.say(f"{proven} of {len(scenes)} policies seen working, in {seconds:.0f} s.")
        if proven == len(scenes):
            return DONE
        for scene in scenes:
            if not scene.proven:
                report.fault(f"{scene.case.name}: {scene.fault}")
        report.typed("tail panicd.log", "".join(f"{line}\n" for line in daemon.last_words))
        return FAILED


_FAULTS: Final = (
    *(UnprovenError, DamagedDumpError, QmpClosedError, QmpCommandError),
    *(DaemonUnreachableError, RefusedError),
    OSError,  # a file, a process or a socket that should be there, and is not
)


def _fetch(url: str) -> str:
    with urlopen(url, timeout=_FETCH_SECONDS) as answer:  # noqa: S310 - panicd's own, on loopback
        text: str = answer.read().decode()
    return text
