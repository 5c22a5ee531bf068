"""One VM of the demonstration, from its start to the proof of what panicd did."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from panicd.demo.daemon import DaemonProcess, LogLine
from panicd.demo.guests import Guest
from panicd.demo.qemu import Qemu
from panicd.demo.qmp import Message

Answer = dict[str, Any]
"""An incident as ``panicd incidents --json`` has it."""


class UnprovenError(Exception):
    """Something is not as it should be."""


Proof = Callable[["Scene"], Awaitable[str]]
"""Looks at a VM without panicd's help and says what it sees.

Raises:
    UnprovenError: That is not what should be seen.
"""

Panic = Callable[[Qemu, DaemonProcess], Awaitable[None]]
"""Has the guest panic."""


async def press_key(vm: Qemu, _daemon: DaemonProcess) -> None:
    """Have the guest panic from inside."""
    await vm.press_key()


@dataclass(frozen=True)
class Case:
    """One policy, or one unusual event.

    Attributes:
        name: The domain's.
        about: What happens, in a few words.
        rule: The domain's rule in panicd's configuration, without ``match``.
        becomes: The incident's ending, or the state in which it stays open; empty: there is none.
        proofs: That it happened.
        panic: Has the guest panic.
        qemu: Further arguments of QEMU.
        relaunch: Its rule has a ``relaunch`` command, which starts the same VM anew.
        before_panicd: It panics before panicd is started, by a key press.
        guest: What the guest does.
        has_console: A file keeps what is written to its serial port.
    """

    name: str
    about: str
    rule: Mapping[str, object]
    becomes: str
    proofs: tuple[Proof, ...]
    panic: Panic = press_key
    qemu: tuple[str, ...] = ()
    relaunch: bool = False
    before_panicd: bool = False
    guest: Guest = Guest.PANIC_ON_KEY
    has_console: bool = False


@dataclass
class Scene:
    """A case and its VM.

    Attributes:
        case: The case.
        vm: The VM.
        directory: The demonstration's.
        began: Where what follows the guest's boot begins among the witness's messages.
        gone_at: When QEMU ended, in seconds since the epoch.
        incident: The incident as panicd tells it, in the end.
        proofs: What was seen of it.
        fault: What was not as it should be.
    """

    case: Case
    vm: Qemu
    directory: Path
    began: int = 0
    gone_at: float | None = None
    incident: Answer | None = None
    proofs: list[str] = field(default_factory=list)
    fault: str = ""
    _gone: trio.Event = field(default_factory=trio.Event)

    @property
    def proven(self) -> bool:
        """Whether all is as it should be."""
        return not self.fault and len(self.proofs) == len(self.case.proofs)

    @property
    def relaunched_pid_file(self) -> Path:
        """Where a QEMU that panicd's relaunch command started leaves its process id."""
        return relaunched_pid_file(self.directory, self.case.name)

    @property
    def events(self) -> list[Message]:
        """QEMU's events since the panic, in order."""
        return [m for m in self.vm.witness.messages[self.began :] if "event" in m]

    @property
    def panicked_at(self) -> float:
        """When the guest panicked, in seconds since the epoch, as QEMU stamped it."""
        return stamp(self.events[0])

    async def watch(self) -> None:
        """Note QEMU's end."""
        await self.vm.wait_exit()
        self.gone_at = time.time()
        self._gone.set()

    async def wait_gone(self) -> None:
        """Wait for QEMU's end."""
        await self._gone.wait()

    async def boot(self) -> None:
        """Let the guest run; what follows is its panic."""
        await self.vm.start_guest()
        await self.vm.wait_counting()
        self.began = self.vm.witness.mark()

    async def wait_left_alone(self) -> None:
        """Wait until QEMU has done to its panicked guest what it does by itself."""
        if self.events[0]["data"]["action"] == "pause":
            await self.vm.wait_event("STOP", since=self.began)
        else:
            await self.wait_gone()

    async def wait_end(self, daemon: DaemonProcess) -> None:
        """Wait until panicd is done with the panic, and find it proven.

        Raises:
            UnprovenError: It took another turn.
            DaemonEndedError: The daemon did not live to see it.
        """
        if not self.case.becomes:
            return
        line = await daemon.wait_logged(self._is_end)
        became = line.get("ending") or line["state"]
        if became != self.case.becomes:
            raise UnprovenError(f"the incident is {became}, and not {self.case.becomes}")

    async def ask_incident(self, daemon: DaemonProcess) -> None:
        """Have panicd tell what it did; its journal may come to the end a moment after its log.

        Raises:
            UnprovenError: It has more incidents than there were panics.
        """
        while True:
            incidents = await daemon.ask("incidents", domain=self.case.name)
            if len(incidents) > bool(self.case.becomes):
                raise UnprovenError(f"panicd has {len(incidents)} incidents of it")
            if not self.case.becomes:
                return
            for incident in incidents:
                if self.case.becomes in {incident["ending"], incident["state"]}:
                    self.incident = incident
                    return

    def _is_end(self, line: LogLine) -> bool:
        ends = {"incident closed", "incident stays open"}
        return line["event"] in ends and line["domain"] == self.case.name


def relaunched_pid_file(directory: Path, name: str) -> Path:
    """Where a QEMU that panicd's relaunch command started leaves its process id."""
    return directory / f"{name}.pid"


def stamp(event: Message) -> float:
    """When QEMU sent an event, in seconds since the epoch."""
    timestamp = event["timestamp"]
    return float(timestamp["seconds"]) + float(timestamp["microseconds"]) / 1e6
