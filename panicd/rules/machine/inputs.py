"""The machine's inputs: values, each about one thing that has happened.

An input that answers an effect carries the effect's ``serial``. The machine drops an answer that it
no longer waits for.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from panicd.rules.ending import Cause
from panicd.rules.identity import NOTHING, Claim
from panicd.rules.incident import Incident, StepResult
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.machine.vm import Vm
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation
from panicd.rules.qapi import Event
from panicd.rules.settings import JournalFailure, Policy


class Moment(NamedTuple):
    """Facts at the time of an input that the machine can't remember.

    It is a tuple because one is made for each input, before a first command too.

    Attributes:
        now: seconds since the epoch.
        ticks: seconds on the monotonic clock.
        policy: what is configured for the domain.
        name: what panicd calls the domain.
        claim: the identity that the VM claims.
        key: panicd keeps the domain's belongings under it.
        monitor: the address of its monitor.
        token: makes the id of an incident that begins now unique.
        restarts: when panicd restarted this domain, in seconds since the epoch.
        libvirt: libvirt's knowledge of a domain that it runs.
        plugged: panicd has plugged in a panic device since QEMU was asked for its devices, or
            removed it; None: neither.
        silent: QEMU is known not to answer.
        held: an operator suspended automation.
        storm: many domains panicked at once, this one included: an operator decides.
        limited: because of a storm panicd acts on few domains at a time.
        unrecorded: earlier actions are unknown, and panicd waits that out.
        dry_run: panicd decides and records everything, and does nothing.
        journal_failure: the treatment of panics while the journal can't be written.
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
        vm: as QEMU described it.
        incident: the incident that waited for the VM, or None.
        heard: events since the session began; some may be older than ``vm``.
        evidence_lost: the incident's evidence was taken, and is not on the disk.
    """

    vm: Vm
    incident: Incident | None
    heard: tuple[Heard, ...] = ()
    evidence_lost: bool = False


class Plight(StrEnum):
    """Why panicd takes up an incident without a connection."""

    ENDED = "ended"  # its QEMU has ended: nobody will connect again
    HANGS = "hangs"  # its QEMU is there, and its monitor does not answer
    RETURNED = "returned"  # its domain is back already, by another QEMU
    OVERDUE = "overdue"  # its domain did not come back in time


@dataclass(frozen=True, slots=True)
class Adopted:
    """panicd takes up an incident without a connection, while it has work."""

    incident: Incident
    plight: Plight


@dataclass(frozen=True, slots=True)
class Refused:
    """QEMU answered with an error: it did not carry out the command."""

    text: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No answer came: QEMU may or may not have carried out the command.

    Attributes:
        text: the reason.
        lost: the session has ended.
    """

    text: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to some commands, in order; each may be ``Refused`` or ``NoAnswer``."""

    serial: int
    answers: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Durable:
    """All notes up to the commit are safe: on the disk, or an intent that outlives panicd."""

    serial: int


@dataclass(frozen=True, slots=True)
class Undurable:
    """The commit's notes could not be written."""

    serial: int
    problem: str


@dataclass(frozen=True, slots=True)
class Elapsed:
    """The time of a ``Wake`` is over."""

    serial: int


@dataclass(frozen=True, slots=True)
class Finished:
    """An errand outside the machine has ended.

    Attributes:
        serial: of the effect.
        result: its result; ``unknown`` if the session ended or no answer came.
        overtaken: panicd gave it up, as others had reset or resumed the guest.
        lost: the session has ended; ``Lost`` may come a moment later.
    """

    serial: int
    result: StepResult
    overtaken: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """libvirt's answer, or its silence.

    Attributes:
        serial: of the effect.
        how: ``done``, ``refused``, ``silent`` or ``away`` (libvirt got no request).
        text: libvirt's message.
    """

    serial: int
    how: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class TurnCame:
    """The domain's turn has come: panicd may act on it."""

    serial: int


@dataclass(frozen=True, slots=True)
class Gone:
    """QEMU's process has ended."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The session has ended; the machine has all its events."""


@dataclass(frozen=True, slots=True)
class Departed:
    """panicd found out why the session ended.

    Attributes:
        gone: QEMU has ended too.
        cause: of the session's end.
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
        action: the action, for ``act``.
        about: the incident open at the request; empty: none was.
        resets: RESET events of the session before the request.
    """

    request: int
    operation: Operation
    action: OnCrash | None = None
    about: str = ""
    resets: int = 0


@dataclass(frozen=True, slots=True)
class Stopping:
    """The daemon stops: the machine begins no step that is only noted."""


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
