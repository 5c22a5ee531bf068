"""QEMU's run states and events, as types.

A guest, or a QEMU that a guest has taken over, may choose the text that arrives on a monitor. So
this module reads leniently and keeps a bounded part: a field of the wrong type counts as absent, a
panic without a payload is still a panic.

Source: QEMU's QAPI schema, ``qapi/run-state.json``, ``qapi/dump.json``, ``qapi/job.json`` and
``qapi/migration.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from types import MappingProxyType
from typing import Final, TypeGuard

MAX_TEXT: Final = 256  # characters kept of any text that came in an event
LARGEST_PART: Final = 1 << 16  # of a version; QEMU's are below 100
MAX_FIELDS: Final = 16  # fields kept of a panic's payload; Hyper-V, the largest, has five


class RunState(StrEnum):
    """QAPI ``RunState``, and ``unknown`` for a state that panicd does not know."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"
    PRECONFIG = "preconfig"
    UNKNOWN = "unknown"

    @classmethod
    def parse(cls, value: object) -> "RunState":
        """Return the run state of that name, ``UNKNOWN`` where there is none."""
        try:
            return cls(value)  # type: ignore[arg-type]  # any object may be asked for
        except ValueError:
            return cls.UNKNOWN

    @property
    def executes(self) -> bool:
        """Whether the guest's CPUs may be executing in this state.

        True for ``suspended`` (ACPI S3: a wake-up brings the guest back by itself) and for an
        unknown state.
        """
        return self in {RunState.RUNNING, RunState.SUSPENDED, RunState.COLO, RunState.UNKNOWN}


class PanicAction(StrEnum):
    """QAPI ``GuestPanicAction``: what QEMU itself did on the panic."""

    PAUSE = "pause"
    POWEROFF = "poweroff"
    RUN = "run"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PanicInformation:
    """A panic's payload (QAPI ``GuestPanicInformation``), as the guest gave it.

    Attributes:
        type: ``hyper-v``, ``s390``, ``tdx``, or whatever a newer QEMU says.
        fields: the payload's own members, at most ``MAX_FIELDS``, texts cut at ``MAX_TEXT``.
    """

    type: str
    fields: tuple[tuple[str, int | str], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Any event. ``at`` is QEMU's own time stamp, in seconds since the epoch (0.0: none)."""

    at: float


@dataclass(frozen=True, slots=True)
class GuestPanickedEvent(Event):
    """GUEST_PANICKED: the guest's kernel has panicked. Says nothing about being stopped."""

    action: PanicAction
    information: PanicInformation | None = None


@dataclass(frozen=True, slots=True)
class GuestCrashloadedEvent(Event):
    """GUEST_CRASHLOADED: the guest panicked and handles it itself, with kdump."""

    information: PanicInformation | None = None


@dataclass(frozen=True, slots=True)
class GuestPvshutdownEvent(Event):
    """GUEST_PVSHUTDOWN: the guest shuts itself down, by the panic device (QEMU 9.1 and later)."""


@dataclass(frozen=True, slots=True)
class StopEvent(Event):
    """STOP: the guest's CPUs have stopped."""


@dataclass(frozen=True, slots=True)
class ResumeEvent(Event):
    """RESUME: the guest's CPUs run again."""


@dataclass(frozen=True, slots=True)
class ResetEvent(Event):
    """RESET: the machine was reset; ``reason`` is a QAPI ``ShutdownCause`` (4.0 and later)."""

    guest: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ShutdownEvent(Event):
    """SHUTDOWN: QEMU ends, or stops where it was told not to; ``reason`` as in RESET."""

    guest: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DumpCompletedEvent(Event):
    """DUMP_COMPLETED: a memory dump has ended, well or not (QEMU 2.6 and later)."""

    completed: bool
    written: int
    error: str


@dataclass(frozen=True, slots=True)
class WorkEvent(Event):
    """An event about QEMU's own work; the guest is as it was."""


@dataclass(frozen=True, slots=True)
class JobStatusEvent(WorkEvent):
    """JOB_STATUS_CHANGE: a job has begun, goes on, or is over (QEMU 3.0 and later).

    Attributes:
        id: of the job; empty: it has none, or one of more than ``MAX_TEXT`` characters.
        status: QAPI ``JobStatus``; ``null``: it is over.
    """

    id: str
    status: str


@dataclass(frozen=True, slots=True)
class MigrationEvent(WorkEvent):
    """MIGRATION: a migration's status (QAPI ``MigrationStatus``) has changed.

    QEMU 2.4 and later send it, if the migration capability ``events`` is set.
    """

    status: str


@dataclass(frozen=True, slots=True)
class SuspendEvent(WorkEvent):
    """SUSPEND: the guest sleeps (ACPI S3), and may wake up by itself."""


def parse_event(message: Mapping[str, object]) -> Event | None:
    """Return a monitor's event as a value, or None if panicd does not use it.

    Args:
        message: the decoded JSON object, with ``event`` and perhaps ``data`` and ``timestamp``.
    """
    data = _mapping(message.get("data"))
    at = _time(message.get("timestamp"))
    match message.get("event"):
        case "GUEST_PANICKED":
            return GuestPanickedEvent(at, _panic_action(data.get("action")), _information(data))
        case "GUEST_CRASHLOADED":
            return GuestCrashloadedEvent(at, _information(data))
        case "GUEST_PVSHUTDOWN":
            return GuestPvshutdownEvent(at)
        case "STOP":
            return StopEvent(at)
        case "RESUME":
            return ResumeEvent(at)
        case "RESET":
            return ResetEvent(at, data.get("guest") is True, _text(data.get("reason")))
        case "SHUTDOWN":
            return ShutdownEvent(at, data.get("guest") is True, _text(data.get("reason")))
        case "DUMP_COMPLETED":
            result = _mapping(data.get("result"))
            return DumpCompletedEvent(
                at,
                completed=result.get("status") == "completed",
                written=_natural(result.get("completed")),
                error=_text(data.get("error")),
            )
        case "JOB_STATUS_CHANGE":
            return JobStatusEvent(at, _whole(data.get("id")), _text(data.get("status")))
        case "MIGRATION":
            return MigrationEvent(at, _text(data.get("status")))
        case "SUSPEND":
            return SuspendEvent(at)
        case _:
            return None


def printed(answer: object) -> str:
    """Return the text of an answer to ``human-monitor-command``; empty if it is no text."""
    return answer if isinstance(answer, str) else ""


def parse_version(triple: object) -> tuple[int, int, int]:
    """Return a version (QAPI ``VersionTriple``).

    Raises:
        ValueError: it is none.
    """
    numbers = _mapping(triple)
    major, minor, micro = (numbers.get(part) for part in ("major", "minor", "micro"))
    if not (_is_part(major) and _is_part(minor) and _is_part(micro)):
        raise ValueError("the greeting has no version")
    return major, minor, micro


def _is_part(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < LARGEST_PART


_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else _NOTHING


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _whole(value: object) -> str:
    """Return a text that must not be cut, as it tells things apart; empty if it is too long."""
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def _natural(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _time(value: object) -> float:
    stamp = _mapping(value)
    seconds, microseconds = _natural(stamp.get("seconds")), _natural(stamp.get("microseconds"))
    return seconds + microseconds / 1e6 if seconds < 2**40 and microseconds < 10**6 else 0.0


def _panic_action(value: object) -> PanicAction:
    try:
        return PanicAction(value)  # type: ignore[arg-type]  # any object may be asked for
    except ValueError:
        return PanicAction.UNKNOWN


def _information(data: Mapping[str, object]) -> PanicInformation | None:
    info = _mapping(data.get("info"))
    if not info:
        return None
    fields = tuple(
        (_text(key), value if isinstance(value, int) else _text(value))
        for key, value in islice(info.items(), MAX_FIELDS)
        if key != "type" and isinstance(value, int | str) and _fits(value)
    )
    return PanicInformation(_text(info.get("type")), fields)


def _fits(value: int | str) -> bool:
    """Whether a number fits 64 bits, as every number of the schema does; texts always do."""
    return isinstance(value, str) or -(2**63) <= value < 2**64
