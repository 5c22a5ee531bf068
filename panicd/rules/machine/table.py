"""The machine's table: which input leads where in which phase. It is complete.

A phase and an input that are not here together raise an error. The machine drops an answer that it
no longer waits for before it asks the table.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from panicd.rules.machine import (
    arrival,
    commands,
    deciding,
    effects,
    ending,
    halting,
    hearing,
    ignoring,
    resting,
    steps,
)
from panicd.rules.machine.inputs import (
    Adopted,
    Answered,
    Asked,
    Attached,
    Departed,
    Durable,
    Elapsed,
    Finished,
    Gone,
    Heard,
    Input,
    LookAgain,
    Lost,
    Moment,
    Reconsider,
    Told,
    TurnCame,
    Undurable,
)
from panicd.rules.machine.inputs import (
    Stopping as DaemonStops,
)
from panicd.rules.machine.results import End
from panicd.rules.machine.state import (
    AskingState,
    AwaitingTurn,
    Begun,
    Collecting,
    Departing,
    Dumping,
    Giving,
    Interrupted,
    Left,
    Phase,
    Quieting,
    Quitting,
    Readying,
    Relaunching,
    Resting,
    RunningAgain,
    SeeingEnd,
    SettingPanic,
    Signalling,
    State,
    Stopping,
    StoppingAgain,
)
from panicd.rules.machine.turn import Turn
from panicd.rules.machine.vm import follow
from panicd.rules.qapi import WorkEvent
from panicd.rules.settings import JournalFailure

Handler = Callable[[Turn, Any, Any], None]
"""Takes a phase and an input of its place in the table."""


class IllegalInputError(Exception):
    """An input has no place in the phase: a bug in panicd."""


# Rows that many phases share.


def _step(function: Callable[[Turn, Any, Any], End]) -> Handler:
    """Return a handler that gives a step its input, and follows up the step's end."""

    def handle(turn: Turn, phase: Phase, came: Input) -> None:
        deciding.follow_up(turn, function(turn, phase, came))

    return handle


def _acting(heard: Callable[[Turn, Any, Any], End], **rows: Handler) -> dict[type, Handler]:
    """Return the row of a step: ``heard`` checks whether the awaited event came."""

    def hear(turn: Turn, phase: Phase, came: Heard) -> End:
        hearing.while_acting(turn, came)
        return heard(turn, phase, came)

    row: dict[type, Handler] = {
        Heard: _step(hear),
        Lost: _step(heard),
        Gone: _step(heard),
        Asked: _refuse,
        Reconsider: _reconsider,
    }
    return row | {_INPUTS[name]: handler for name, handler in rows.items()}


def _asking(**rows: Handler) -> dict[type, Handler]:
    """Return the row of a question: events wait for its answer."""
    row: dict[type, Handler] = {
        Heard: _defer,
        Lost: _ignore,
        Gone: _ignore,
        Asked: _queue,
        Reconsider: _reconsider,
    }
    return row | {_INPUTS[name]: handler for name, handler in rows.items()}


_INPUTS: Final[dict[str, type]] = {
    "answered": Answered,
    "durable": Durable,
    "elapsed": Elapsed,
    "finished": Finished,
    "told": Told,
    "turn": TurnCame,
    "lost": Lost,
    "departed": Departed,
}


def _waits(_turn: Turn, _phase: Phase, _came: Input) -> End:
    """Go on waiting: only an answer ends the step."""
    return None


def _ignore(_turn: Turn, _phase: Phase, _came: Input) -> None:
    pass


def _take(turn: Turn, _phase: Phase, heard: Heard) -> None:
    resting.take(turn, heard)


def _defer(turn: Turn, _phase: Phase, heard: Heard) -> None:
    if not isinstance(heard.event, WorkEvent):  # the VM has it
        hearing.defer(turn, heard)


def _queue(turn: Turn, _phase: Phase, asked: Asked) -> None:
    about = turn.incident.id if turn.incident is not None else ""
    resets = turn.vm.resets if turn.vm is not None else 0
    turn.requests = (*turn.requests, replace(asked, about=about, resets=resets))


def _refuse(turn: Turn, _phase: Phase, asked: Asked) -> None:
    incident = turn.open
    why = f"{incident.action} is being carried out for {incident.id}"
    turn.emit(effects.Answer(asked.request, why))


def _reconsider(turn: Turn, _phase: Phase, _came: Reconsider) -> None:
    turn.stale = True


def _or_leave(function: Callable[[Turn, Any, Any], str | None]) -> Handler:
    """Return a handler that gives up the connection if ``function`` returns a reason."""

    def handle(turn: Turn, phase: Phase, came: Input) -> None:
        problem = function(turn, phase, came)
        if problem is not None:
            arrival.leave(turn, problem)

    return handle


def _turn_came(turn: Turn, phase: AwaitingTurn, _came: TurnCame) -> None:
    deciding.execute(turn, phase.index)


def _while_running_again(turn: Turn, phase: RunningAgain, heard: Heard) -> None:
    hearing.while_acting(turn, heard)
    ignoring.running_again_heard(turn, phase, heard)


def _session_over(turn: Turn, _phase: Phase, _came: Lost) -> None:
    turn.rest()


TABLE: Final[dict[type, dict[type, Handler]]] = {
    Begun: {
        Attached: arrival.attached,
        Adopted: arrival.adopted,
        Reconsider: _ignore,  # the policy is looked up when the VM is known
    },
    Resting: {
        Heard: _take,
        Elapsed: resting.elapsed,
        Lost: _ignore,  # the session's end is handled then
        Gone: _ignore,
        Asked: _queue,
        Reconsider: _reconsider,
        LookAgain: resting.look_again,
    },
    AskingState: _asking(answered=_or_leave(resting.state_answered)),
    SettingPanic: _asking(answered=_or_leave(deciding.panic_answered)),
    SeeingEnd: _asking(lost=resting.seen_end, elapsed=resting.not_ended),
    AwaitingTurn: _asking(turn=_turn_came),
    Readying: _acting(
        steps.readying_heard,
        answered=_step(steps.readying_answered),
        durable=_step(steps.readying_durable),
        finished=_step(steps.readying_collected),
        elapsed=_step(steps.readying_elapsed),
    ),
    Stopping: _acting(
        halting.stopping_heard,
        elapsed=_step(halting.stopping_elapsed),
        answered=_step(halting.stopping_answered),
        durable=_step(halting.stopping_durable),
    ),
    Collecting: _acting(_waits, finished=_step(halting.collected)),
    Quieting: _acting(
        halting.quieting_heard,
        elapsed=_step(halting.quieting_elapsed),
        answered=_step(halting.quieting_answered),
    ),
    Dumping: _acting(
        _waits,
        durable=_step(halting.dumping_durable),
        finished=_step(halting.dumped),
    ),
    Giving: _acting(
        commands.giving_heard,
        durable=_step(commands.giving_durable),
        answered=_step(commands.giving_answered),
        told=_step(commands.giving_told),
        elapsed=_step(commands.giving_elapsed),
    ),
    Quitting: _acting(
        ending.quitting_heard,
        durable=_step(ending.quitting_durable),
        answered=_step(ending.quitting_answered),
        told=_step(ending.quitting_told),
        elapsed=_step(ending.quitting_elapsed),
    ),
    Signalling: _acting(
        ending.signalling_heard,
        durable=_step(ending.signalling_durable),
        finished=_step(ending.signalled),
        elapsed=_step(ending.signalling_elapsed),
    ),
    Relaunching: _acting(
        _waits,
        durable=_step(ending.relaunching_durable),
        finished=_step(ending.relaunched),
    ),
    StoppingAgain: _acting(
        _waits,
        durable=deciding.stop_once_more,
        answered=_or_leave(deciding.stop_again_answered),
    ),
    RunningAgain: _acting(
        _waits,
        answered=ignoring.running_again_answered,
        told=ignoring.running_again_told,
        elapsed=ignoring.running_again_elapsed,
    )
    | {
        Heard: _while_running_again,
        Lost: ignoring.running_again_heard,
        Gone: ignoring.running_again_heard,
    },
    Interrupted: _acting(_waits, lost=_session_over),
    Departing: _asking(departed=arrival.departed),
    Left: {},
}
"""Each phase's handlers. All phases treat ``Undurable`` and ``Stopping`` alike."""


def step(state: State, came: Input, moment: Moment) -> tuple[State, tuple[effects.Effect, ...]]:
    """Return what one input leads to.

    Args:
        state: of the machine.
        came: the input.
        moment: what holds now.

    Returns:
        The next state, and the effects.

    Raises:
        IllegalInputError: the input has no place in the phase.
    """
    if isinstance(state.phase, Left):
        return state, ()
    if isinstance(came, Undurable) and moment.journal_failure is JournalFailure.ACT:
        came = Durable(came.serial)  # the next commit writes these notes too
    if getattr(came, "serial", state.serial) != state.serial and not isinstance(came, Undurable):
        return state, ()
    turn = Turn(state, moment)
    match came:
        case Undurable(problem=problem):
            arrival.leave(turn, problem)
        case DaemonStops():
            arrival.leave(turn)
        case _:
            _see(turn, came)
            _handler(state, came)(turn, turn.phase, came)
    while isinstance(turn.phase, Resting) and _due(turn):
        pass
    if isinstance(turn.phase, Resting) and (turn.serial != state.serial or _ends_wait(came)):
        resting.arm_look(turn)
    return turn.state(), tuple(turn.effects)


def _handler(state: State, came: Input) -> Handler:
    handler = TABLE[type(state.phase)].get(type(came))
    if handler is None:
        # An answer may come that the phase no longer waits for.
        if type(came) in _MAY_BE_LATE:
            return _ignore
        raise IllegalInputError(f"{type(came).__name__} in {type(state.phase).__name__}")
    return handler


def _ends_wait(came: Input) -> bool:
    """True if the wait for something to happen to the guest begins anew."""
    if isinstance(came, Heard):
        return not isinstance(came.event, WorkEvent)
    return isinstance(came, Elapsed)


_MAY_BE_LATE: Final = frozenset({Answered, Durable, Elapsed, Finished, Told, TurnCame, LookAgain})


def _see(turn: Turn, came: Input) -> None:
    """Update the VM from an input, before any handler."""
    if turn.vm is None:
        return
    match came:
        case Heard(event=event):
            turn.vm = follow(turn.vm, event)
        case Lost():
            turn.vm = replace(turn.vm, ended=True)
        case Gone():
            turn.vm = replace(turn.vm, gone=True)


def _due(turn: Turn) -> bool:
    """Do due work while nothing is under way; return whether there was any."""
    vm = turn.known
    if turn.put_off is not None:
        panic, turn.put_off = turn.put_off, None
        resting.take(turn, panic)
    elif turn.deferred:
        first, *rest = turn.deferred
        turn.deferred = tuple(rest)
        resting.take(turn, first)
    elif vm.ended:
        if turn.departed:
            arrival.leave(turn)
        else:
            arrival.depart(turn)
    elif vm.gone:
        return False  # ``Lost`` comes in a moment
    elif turn.unseen:
        turn.unseen = False
        resting.see_panic(turn)
    elif turn.stale:
        turn.stale = False
        arrival.take_up_policy(turn)
        if turn.moment.dry_run:
            deciding.policy_is_in_force(turn)
        else:
            deciding.set_panic(turn, plan=False)
    elif turn.requests:
        asked, *waiting = turn.requests
        turn.requests = tuple(waiting)
        resting.grant(turn, asked)
    else:
        return False
    return True
