"""The machine's state: what is known of the VM, its incident, and what is under way."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from panicd.rules.capability import PanicSetting
from panicd.rules.incident import Incident
from panicd.rules.machine.inputs import Asked, Heard
from panicd.rules.machine.vm import Vm
from panicd.rules.qapi import PanicInformation


class Then(StrEnum):
    """What an answer was asked for."""

    OPEN = "open"  # a panic that QEMU was to end with, and did not
    LOOK = "look"  # whether something happened that no event tells of
    HOLD_ENDED = "hold-ended"
    WATCH_ENDED = "watch-ended"
    NO_GRACE = "no-grace"  # the guest could not be let run in its grace
    OBEY = "obey"  # an operator
    RESET = "reset"  # whether the guest that others have reset runs
    TELL_STOP = "tell-stop"  # what a STOP has stopped
    WATCHED_STOP = "watched-stop"  # the same of a guest that handles its panic itself


@dataclass(frozen=True, slots=True)
class Begun:
    """Nothing is known yet."""


@dataclass(frozen=True, slots=True)
class Resting:
    """Nothing is under way; an incident may be open, and stays as it is."""


@dataclass(frozen=True, slots=True)
class AskingState:
    """QEMU was asked for its run state.

    Attributes:
        then: what for.
        information: of the panic that is to be opened.
        why: of a watch that has ended.
    """

    then: Then
    information: PanicInformation | None = None
    count: int = 1
    why: str = ""


@dataclass(frozen=True, slots=True)
class SettingPanic:
    """QEMU was told what a panic is to do; ``plan``: the plan is gone on with after that."""

    setting: PanicSetting
    plan: bool


@dataclass(frozen=True, slots=True)
class SeeingEnd:
    """QEMU said that it ends with the panic."""

    information: PanicInformation | None
    count: int


@dataclass(frozen=True, slots=True)
class AwaitingTurn:
    """Few domains may be acted on at a time; the plan goes on from this step when it may."""

    index: int


@dataclass(frozen=True, slots=True)
class Readying:
    """All that goes before the command that ends the panic, at once: it is given when all is well.

    Attributes:
        stop: the step that waits for the guest's stop; None: it has stopped.
        quiet: the step that asks what QEMU is busy with.
        act: the step of the command; it is on record as begun.
        quiet_known: QEMU has answered, or is silent.
        silent: it does not say what it is busy with.
        durable: all that is on the disk.
    """

    stop: int | None
    quiet: int
    act: int
    quiet_known: bool = False
    silent: bool = False
    durable: bool = False


class Stage(StrEnum):
    """How far a step has come."""

    WAITING = "waiting"  # for an event
    RECORDING = "recording"  # it is made durable that the command is about to be given
    ASKING = "asking"  # how it stands
    GIVEN = "given"  # the command
    ANSWERED = "answered"
    CONFIRMING = "confirming"


@dataclass(frozen=True, slots=True)
class Stopping:
    """The guest is to have stopped."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Collecting:
    """Evidence is taken."""

    index: int


@dataclass(frozen=True, slots=True)
class Quieting:
    """What QEMU is busy with is waited for.

    Attributes:
        index: of the step.
        stage: asking, or waiting before it is asked again.
        began: when, in ticks.
        busy: with what it was.
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
    """A command is given that has an event of its own: ``system_reset``, ``cont``.

    Attributes:
        index: of the step.
        stage: recording, given, answered, confirming.
        by_libvirt: it goes through libvirt.
        before: RESET or RESUME events before it.
        doubt: why it is not known whether it was carried out.
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
        by_libvirt: by libvirt.
        cut: the session ended before QEMU said a word.
    """

    index: int
    stage: Stage
    by_libvirt: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Signalling:
    """QEMU's process is ended by a signal."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Relaunching:
    """The domain is started anew."""

    index: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class StoppingAgain:
    """Somebody resumed the panicked guest, and it is stopped again (``enforce``).

    Attributes:
        stage: recording, given (``stop``), asking.
        resets: RESET events before.
        plan: it happened during a plan, which is gone on with.
    """

    stage: Stage
    resets: int
    plan: bool


@dataclass(frozen=True, slots=True)
class RunningAgain:
    """A panic has stopped a guest whose panics are ignored, and it is let run again.

    The decision on record stands for that.
    """

    stage: Stage


@dataclass(frozen=True, slots=True)
class Interrupted:
    """It is not known how a step ended: the session is given up, and the VM asked on the next."""


@dataclass(frozen=True, slots=True)
class Departing:
    """The session has ended, and it is found out why."""


@dataclass(frozen=True, slots=True)
class Left:
    """The domain is looked after no more; an open incident waits."""


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
"""A plan is carried out: what happens meanwhile is not somebody else's doing."""


class State(NamedTuple):
    """Everything that the machine remembers: a tuple, for one is made at each step.

    Attributes:
        vm: the VM; None before it is known.
        incident: the open incident, if there is one.
        phase: what is under way.
        serial: what the answers to that carry.
        alone: there is no session, and there will be none.
        departed: it was found out why the session ended.
        stale: the policy in force is to be looked up anew.
        unseen: whether the guest is panicked is still to be seen.
        unbroken: all that happened to the guest since its panic was seen.
        repeats: panics that are not yet noted.
        repeats_noted_at: when some were, in seconds since the epoch.
        put_off: a panic of a guest that was let run during a plan: its turn comes after that.
        deferred: events that came while something was asked for.
        requests: of operators, in their order.
        granting: the request that is carried out.
        base: RESET and RESUME events that the plan knows of.
        let_go: resets and resumes before the plan was begun with.
        resets_before: RESET events before it.
        has_turn: it takes one of few places, or waits for one.
        crashloaded_in: the incident in which a kdump was told of.
        shutting_in: the incident in which the guest told that it shuts itself down.
        flood: panics of an ignored guest within the present window.
        flood_began: when that began, in ticks.
        ignored_at: when it was last noted that an ignored guest runs again; since the epoch.
        watched: until when a guest is left to itself, since the epoch as the clock stood when that
            began, and in ticks.
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
