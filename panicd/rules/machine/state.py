"""The machine's state: the VM, its incident, and the phase."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from panicd.rules.capability import PanicSetting
from panicd.rules.incident import Incident
from panicd.rules.machine.inputs import Asked, Heard
from panicd.rules.machine.vm import Vm
from panicd.rules.qapi import PanicInformation


class Then(StrEnum):
    """Why panicd asked for the run state."""

    OPEN = "open"  # QEMU was to end with a panic, and did not
    LOOK = "look"  # whether something happened without an event
    HOLD_ENDED = "hold-ended"
    WATCH_ENDED = "watch-ended"
    NO_GRACE = "no-grace"  # panicd could not let the guest run in its grace
    OBEY = "obey"  # an operator's request
    RESET = "reset"  # whether a guest that others reset runs
    TELL_STOP = "tell-stop"  # why the guest stopped
    WATCHED_STOP = "watched-stop"  # the same, if the guest handles its panic itself


@dataclass(frozen=True, slots=True)
class Begun:
    """Nothing is known yet."""


@dataclass(frozen=True, slots=True)
class Resting:
    """Nothing is under way. An incident may be open and stays as it is."""


@dataclass(frozen=True, slots=True)
class AskingState:
    """QEMU was asked for its run state.

    Attributes:
        then: the purpose.
        information: of the panic to open.
        why: a watch has ended.
    """

    then: Then
    information: PanicInformation | None = None
    count: int = 1
    why: str = ""


@dataclass(frozen=True, slots=True)
class SettingPanic:
    """QEMU was told its panic action; ``plan``: the plan goes on after the answer."""

    setting: PanicSetting
    plan: bool


@dataclass(frozen=True, slots=True)
class SeeingEnd:
    """QEMU said that it ends with the panic."""

    information: PanicInformation | None
    count: int


@dataclass(frozen=True, slots=True)
class AwaitingTurn:
    """The plan waits at this step for the domain's turn."""

    index: int


@dataclass(frozen=True, slots=True)
class Readying:
    """All that precedes the command that ends the panic, at once; it follows when all is well.

    Attributes:
        stop: the step that waits for the guest's stop; None: it is over.
        collect: the step that takes evidence; None: it is over, or there is none.
        quiet: the step that asks QEMU for its work.
        act: the command's step, noted as begun.
        collects: evidence is being taken.
        quiet_known: QEMU has answered, or is silent.
        silent: QEMU does not say what it is busy with.
        durable: all notes are safe (``inputs.Durable``).
    """

    stop: int | None
    collect: int | None
    quiet: int
    act: int
    collects: bool = False
    quiet_known: bool = False
    silent: bool = False
    durable: bool = False


class Stage(StrEnum):
    """How far a step has come."""

    WAITING = "waiting"  # for an event
    RECORDING = "recording"  # until the command's note is durable
    ASKING = "asking"  # for the run state
    GIVEN = "given"  # the command was given
    ANSWERED = "answered"
    CONFIRMING = "confirming"


@dataclass(frozen=True, slots=True)
class Stopping:
    """The machine waits for the guest's stop."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Collecting:
    """Evidence is taken."""

    index: int


@dataclass(frozen=True, slots=True)
class Quieting:
    """The machine waits until QEMU is no longer busy.

    Attributes:
        index: of the step.
        stage: asking, or waiting before the next question.
        began: start, in ticks.
        busy: QEMU's last known work.
    """

    index: int
    stage: Stage
    began: float
    busy: str = ""


@dataclass(frozen=True, slots=True)
class Dumping:
    """Memory is dumped."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Giving:
    """A command with an event of its own: ``system_reset``, ``cont``.

    Attributes:
        index: of the step.
        stage: recording, given, answered, confirming.
        by_libvirt: the command goes through libvirt.
        before: RESET or RESUME events before the command.
        doubt: why it is unknown whether the command was carried out.
    """

    index: int
    stage: Stage
    by_libvirt: bool
    before: int = 0
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Quitting:
    """QEMU is told to end.

    Attributes:
        index: of the step.
        stage: recording, given.
        by_libvirt: through libvirt.
        cut: the session ended without SHUTDOWN.
    """

    index: int
    stage: Stage
    by_libvirt: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Signalling:
    """A signal ends QEMU's process."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Relaunching:
    """The domain is started anew."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class StoppingAgain:
    """Somebody resumed the panicked guest; panicd stops it again (``enforce``).

    Attributes:
        stage: recording, given (``stop``), asking.
        resets: RESET events before.
        plan: a plan was under way, and goes on.
    """

    stage: Stage
    resets: int
    plan: bool


@dataclass(frozen=True, slots=True)
class RunningAgain:
    """A panic stopped a guest with ignored panics; panicd lets it run again.

    The decision on record covers this panic.
    """

    stage: Stage


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A step's end is unknown. The session ends; panicd asks the VM in the next."""


@dataclass(frozen=True, slots=True)
class Departing:
    """The session has ended; panicd finds out why."""


@dataclass(frozen=True, slots=True)
class Left:
    """panicd no longer looks after the domain; an open incident waits."""


Phase = (
    Begun
    | Resting
    | AskingState
    | SettingPanic
    | SeeingEnd
    | AwaitingTurn
    | Readying
    | Stopping
    | Collecting
    | Quieting
    | Dumping
    | Giving
    | Quitting
    | Signalling
    | Relaunching
    | StoppingAgain
    | RunningAgain
    | Interrupted
    | Departing
    | Left
)

ACTING = (
    Readying,
    Stopping,
    Collecting,
    Quieting,
    Dumping,
    Giving,
    Quitting,
    Signalling,
    Relaunching,
    StoppingAgain,
    RunningAgain,
    Interrupted,
)
"""Phases of a plan: events in them are not others' doing."""


class State(NamedTuple):
    """All that the machine remembers: a tuple, as each step makes a new one.

    Attributes:
        vm: the VM; None before it is known.
        incident: the open incident, if there is one.
        phase: what is under way.
        serial: the serial of the phase's answers.
        alone: there is no session, and there will be none.
        departed: the cause of the session's end is known.
        stale: the policy must be looked up anew.
        unseen: panicd must still check whether the guest is panicked.
        unbroken: panicd saw all that happened to the guest since its panic.
        repeats: panics not yet noted.
        repeats_noted_at: the last note of repeats, in seconds since the epoch.
        put_off: a panic, after the guest was let run in a plan; handled after the plan.
        deferred: events that came while an answer was due.
        requests: of operators, in order.
        granting: the request under way.
        base: RESET and RESUME events that the plan knows of.
        let_go: resets and resumes before the plan.
        resets_before: RESET events before the plan.
        has_turn: the domain has a turn, or waits for one.
        crashloaded_in: the incident in which a kdump was reported.
        shutting_in: the incident in which the guest said that it shuts down.
        flood: panics of an ignored guest within the present window.
        flood_began: start of the window, in ticks.
        ignored_at: last note that an ignored guest runs again; since the epoch.
        watched: end of the guest's own time: since the epoch, by the clock at its start, and in
            ticks.
    """

    vm: Vm | None = None
    incident: Incident | None = None
    phase: Phase = Begun()
    serial: int = 0
    alone: bool = False
    departed: bool = False
    stale: bool = False
    unseen: bool = False
    unbroken: bool = True
    repeats: int = 0
    repeats_noted_at: float = 0.0
    put_off: Heard | None = None
    deferred: tuple[Heard, ...] = ()
    requests: tuple[Asked, ...] = ()
    granting: Asked | None = None
    base: tuple[int, int] = (0, 0)
    let_go: int = 0
    resets_before: int = 0
    has_turn: bool = False
    crashloaded_in: str = ""
    shutting_in: str = ""
    flood: int = 0
    flood_began: float = 0.0
    ignored_at: float = 0.0
    watched: tuple[float, float] = (0.0, 0.0)
