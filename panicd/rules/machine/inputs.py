"""What comes to the machine: values, each about one thing that has happened.

Whatever answers an effect carries that effect's ``serial``. One that nobody waits for any more is
dropped.
"""

from dataclasses import dataclass
from enum import StrEnum

from panicd.rules.ending import Cause
from panicd.rules.identity import NOTHING, Claim
from panicd.rules.incident import Incident, StepResult
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.machine.vm import Vm
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation
from panicd.rules.qapi import Event
from panicd.rules.settings import JournalFailure, Policy


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds when an input comes: what the machine can't remember.

    Attributes:
        now: seconds since the epoch.
        ticks: seconds on a clock that nobody sets.
        policy: what is configured for the domain.
        name: what panicd calls the domain.
        claim: what the VM says that it is.
        key: what the domain's belongings are kept under.
        monitor: the address of its monitor.
        token: makes the id of an incident that begins now one of its own.
        restarts: when panicd restarted this domain, in seconds since the epoch.
        libvirt: what libvirt knows of the domain, where it runs it.
        plugged: panicd has plugged in a panic device since it was asked what it has, or has taken
            that away; None: neither.
        silent: QEMU is known not to answer.
        held: an operator suspended automation.
        storm: many domains panicked at once, this one included: people are to decide.
        limited: for the same reason few may be acted on at a time.
        unrecorded: what was done before is not known, and that is to be waited out.
        dry_run: everything is decided and recorded, and nothing is done.
        journal_failure: what becomes of panics while the journal can't be written.
    """

    now: float
    ticks: float
    policy: Policy
    name: str = ""
    claim: Claim = NOTHING
    key: str = ""
    monitor: str = ""
    token: str = ""
    restarts: tuple[float, ...] = ()
    libvirt: LibvirtDomain | None = None
    plugged: bool | None = None
    silent: bool = False
    held: bool = False
    storm: bool = False
    limited: bool = False
    unrecorded: bool = False
    dry_run: bool = False
    journal_failure: JournalFailure = JournalFailure.PRESERVE


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of QEMU's, ``count`` times in a row."""

    event: Event
    count: int = 1


@dataclass(frozen=True, slots=True)
class Attached:
    """A VM is connected.

    Attributes:
        vm: as it said when it was asked.
        incident: which waited for it, or None.
        heard: events since the session began; some may be older than its answer.
    """

    vm: Vm
    incident: Incident | None
    heard: tuple[Heard, ...] = ()


class Plight(StrEnum):
    """Why an incident that has no connection is taken up."""

    ENDED = "ended"  # its QEMU has ended: nobody will connect again
    HANGS = "hangs"  # its QEMU is there, and its monitor does not answer
    RETURNED = "returned"  # its domain is back already, by another QEMU
    OVERDUE = "overdue"  # its domain did not come back in time


@dataclass(frozen=True, slots=True)
class Adopted:
    """An incident without a connection is taken up, as long as there is something to do."""

    incident: Incident
    plight: Plight


@dataclass(frozen=True, slots=True)
class Refused:
    """QEMU answered a command with an error: it was not carried out."""

    text: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No answer came: the command may or may not have been carried out.

    Attributes:
        text: says so.
        lost: the session has ended.
    """

    text: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to some commands, in their order: or ``Refused``, or ``NoAnswer``."""

    serial: int
    answers: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Durable:
    """All that was noted up to that commit is on the disk."""

    serial: int


@dataclass(frozen=True, slots=True)
class Undurable:
    """It could not be written."""

    serial: int
    problem: str


@dataclass(frozen=True, slots=True)
class Elapsed:
    """The time is over."""

    serial: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Something that was done outside of the machine has ended.

    Attributes:
        serial: of the effect.
        result: how; ``unknown`` where the session ended, or nobody answered.
        overtaken: it was given up, for others had reset the guest or let it run.
        lost: the session has ended, which may be told of a moment later.
    """

    serial: int
    result: StepResult
    overtaken: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """libvirt has answered, or not.

    Attributes:
        serial: of the effect.
        how: ``done``, ``refused``, ``silent`` or ``away`` (it was told nothing).
        text: what it said.
    """

    serial: int
    how: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class TurnCame:
    """It is the domain's turn to be acted on."""

    serial: int


@dataclass(frozen=True, slots=True)
class Gone:
    """QEMU's process has ended."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The session has ended; every event of it was given before."""


@dataclass(frozen=True, slots=True)
class Departed:
    """panicd found out why the session ended.

    Attributes:
        gone: QEMU has ended with it.
        cause: why.
    """

    gone: bool
    cause: Cause


@dataclass(frozen=True, slots=True)
class Reconsider:
    """Policy, holds or libvirt's word may have changed."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Something may have happened to the guest without an event."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asks for something.

    Attributes:
        request: which request it is.
        operation: who asks for what, and why.
        action: of ``act``: what to do.
        about: the incident that was open when it was asked; empty: none was.
        resets: RESET events of the session before it was asked.
    """

    request: int
    operation: Operation
    action: OnCrash | None = None
    about: str = ""
    resets: int = 0


@dataclass(frozen=True, slots=True)
class Stopping:
    """The daemon stops: what was noted and not begun is not begun any more."""


Input = (
    Attached
    | Adopted
    | Heard
    | Answered
    | Durable
    | Undurable
    | Elapsed
    | Finished
    | Told
    | TurnCame
    | Gone
    | Lost
    | Departed
    | Reconsider
    | LookAgain
    | Asked
    | Stopping
)
