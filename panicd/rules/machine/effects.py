"""What the machine has done to the world: frozen values that a driver carries out, in their order.

An effect with a ``serial`` is answered by an input with the same one.
"""

from dataclasses import dataclass

from panicd.rules.incident import AnyEntry, Incident
from panicd.rules.machine.vm import Stand
from panicd.rules.plan import Collect as CollectStep
from panicd.rules.plan import Dump as DumpStep
from panicd.rules.plan import RunRelaunch

Command = tuple[str, tuple[tuple[str, object], ...]]
"""A QMP command's name, and its arguments."""


@dataclass(frozen=True, slots=True)
class Note:
    """Add an entry to the incident, which is ``after`` with it; ``Opened`` begins a new one."""

    after: Incident
    entry: AnyEntry


@dataclass(frozen=True, slots=True)
class Commit:
    """Make durable what was noted. Answered by ``Durable`` or ``Undurable``."""

    serial: int


@dataclass(frozen=True, slots=True)
class Send:
    """Give QEMU commands, all at once. Answered by ``Answered``.

    Attributes:
        serial: of the answers.
        commands: in their order.
        timeout: seconds for all the answers.
        acts: they change the guest.
    """

    serial: int
    commands: tuple[Command, ...]
    timeout: float
    acts: bool = False


@dataclass(frozen=True, slots=True)
class Wake:
    """Say so (``Elapsed``) after so many seconds; it takes the place of the last one."""

    serial: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Collect:
    """Keep what the panicked guest still shows. Answered by ``Finished``."""

    serial: int
    step: CollectStep


@dataclass(frozen=True, slots=True)
class MakeDump:
    """Write the guest's memory to a file. Answered by ``Finished``."""

    serial: int
    step: DumpStep


@dataclass(frozen=True, slots=True)
class Relaunch:
    """Start the domain anew. Answered by ``Finished``."""

    serial: int
    step: RunRelaunch


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Send QEMU's process a signal (signal(7)). Answered by ``Finished`` when it is sent."""

    serial: int
    name: str


@dataclass(frozen=True, slots=True)
class WatchProcess:
    """Say so (``Gone``) when QEMU's process has ended, where it is known."""


@dataclass(frozen=True, slots=True)
class TellLibvirt:
    """Have libvirt do something with the domain. Answered by ``Told``.

    Attributes:
        serial: of the answer.
        verb: what virsh(1) calls it.
        wanted: how the guest stands, for which it is meant.
        timeout: seconds.
    """

    serial: int
    verb: str
    wanted: Stand
    timeout: float


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """Wait for this domain's turn, as few are acted on at a time. Answered by ``TurnCame``."""

    serial: int


@dataclass(frozen=True, slots=True)
class LeaveTurn:
    """Its turn is over, whether it had come or not."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End the session at once. Answered by ``Lost``."""


@dataclass(frozen=True, slots=True)
class FindCause:
    """Find out why the session ended. Answered by ``Departed``."""


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """The policy in force was taken up, and the VM is armed for it as far as it can be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell an operator that what he asked for was done, or why not."""

    request: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Say:
    """Write a line to the log: its level, its text, its facts."""

    level: str
    text: str
    facts: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    """Look after this domain no more; a problem is why its connection is given up."""

    problem: str = ""


Effect = (
    Note
    | Commit
    | Send
    | Wake
    | Collect
    | MakeDump
    | Relaunch
    | SendSignal
    | WatchProcess
    | TellLibvirt
    | TakeTurn
    | LeaveTurn
    | Abort
    | FindCause
    | PolicyInForce
    | Answer
    | Say
    | Leave
)
