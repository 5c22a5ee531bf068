"""What the machine wants done: frozen values that a driver carries out in order.

An input with the same ``serial`` answers an effect that has one.
"""

from dataclasses import dataclass

from panicd.rules.incident import AnyEntry, Incident
from panicd.rules.machine.vm import Stand
from panicd.rules.plan import Collect as CollectStep
from panicd.rules.plan import Dump as DumpStep
from panicd.rules.plan import Plan, Quit, RunRelaunch, SystemReset

Command = tuple[str, tuple[tuple[str, object], ...]]
"""A QMP command's name, and its arguments."""


@dataclass(frozen=True, slots=True)
class Note:
    """Add an entry to the incident, which is ``after`` with it; ``Opened`` begins a new one."""

    after: Incident
    entry: AnyEntry


@dataclass(frozen=True, slots=True)
class Commit:
    """Make all notes durable. Answered by ``Durable`` or ``Undurable``."""

    serial: int


@dataclass(frozen=True, slots=True)
class Send:
    """Give QEMU commands, all at once. Answered by ``Answered``.

    Attributes:
        serial: of the answers.
        commands: in their order.
        timeout: seconds for all the answers.
        acts: the commands change the guest.
    """

    serial: int
    commands: tuple[Command, ...]
    timeout: float
    acts: bool = False


@dataclass(frozen=True, slots=True)
class Wake:
    """Give ``Elapsed`` after some seconds; replaces the last ``Wake``."""

    serial: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Collect:
    """Take evidence of the panicked guest. Answered by ``Finished``.

    Attributes:
        serial: of the answer.
        step: the plan's.
        plan: the plan.
        follows: the command that is given next, and does not wait for the evidence to be written;
            None: nothing is in a hurry.
    """

    serial: int
    step: CollectStep
    plan: Plan
    follows: SystemReset | Quit | None = None


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
    """Give ``Gone`` when QEMU's process, if known, has ended."""


@dataclass(frozen=True, slots=True)
class TellLibvirt:
    """Have libvirt do something with the domain. Answered by ``Told``.

    Attributes:
        serial: of the answer.
        verb: virsh(1)'s name of the command.
        wanted: the guest's stand that the command is meant for.
        timeout: seconds.
    """

    serial: int
    verb: str
    wanted: Stand
    timeout: float


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """Wait for this domain's turn: panicd acts on few at a time. Answered by ``TurnCame``."""

    serial: int


@dataclass(frozen=True, slots=True)
class LeaveTurn:
    """End the domain's turn, come or not."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End the session at once. Answered by ``Lost``."""


@dataclass(frozen=True, slots=True)
class FindCause:
    """Find out why the session ended. Answered by ``Departed``."""


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """Say that the policy is in force, and the VM armed for it as far as possible."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell an operator that the request was granted, or why not."""

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
    """Look after this domain no more; ``problem``: why panicd gives up the connection."""

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
