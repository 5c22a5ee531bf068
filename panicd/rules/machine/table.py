"""The machine's table: in which phase which input leads where. There is nothing beside it.

A pair that is not here has no place: it raises. What answers something that nobody waits for any
more is dropped before the table is asked.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from panicd.rules.capability import PanicSetting
from panicd.rules.machine import arrival, deciding, effects, hearing, resting, steps
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
    Lost,
    Moment,
    NoAnswer,
    Reconsider,
    Refused,
    Told,
    TurnCame,
    Undurable,
)
from panicd.rules.machine.inputs import (
    Stopping as DaemonStops,
)
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
    Quieting,
    Quitting,
    Readying,
    Relaunching,
    Resting,
    SeeingEnd,
    SettingPanic,
    Signalling,
    State,
    Stopping,
    StoppingAgain,
)
from panicd.rules.machine.turn import Turn
from panicd.rules.machine.vm import follow
from panicd.rules.settings import JournalFailure

Handler = Callable[[Turn, Any], None]
"""Takes an input; its type is the one that the table has it under."""


class IllegalInputError(Exception):
    """An input has no place in the phase that the machine is in: a bug of panicd's."""


# Rows that many phases share.


def _step(function: Callable[..., steps.End], *, takes: bool = False) -> Handler:
    """Return a handler that hears of a step, and goes on with what follows if that has ended.

    Args:
        function: the step's own.
        takes: it takes the input.
    """

    def handle(turn: Turn, came: object) -> None:
        deciding.follow_up(turn, function(turn, came) if takes else function(turn))

    return handle


def _nothing(_turn: Turn) -> steps.End:
    return None


def _ignore(_turn: Turn, _came: object) -> None:
    pass


def _acting(heard: Callable[[Turn], steps.End], **rows: Handler) -> dict[type, Handler]:
    """Return the row of a step: ``heard`` looks whether what it waits for has come."""

    def handle(turn: Turn, came: Heard) -> None:
        hearing.while_acting(turn, came)
        deciding.follow_up(turn, heard(turn))

    row: dict[type, Handler] = {
        Heard: handle,
        Lost: _step(heard),
        Gone: _step(heard),
        Asked: _refuse,
        Reconsider: _reconsider,
    }
    return row | {_INPUTS[name]: handler for name, handler in rows.items()}


def _asking(**rows: Handler) -> dict[type, Handler]:
    """Return the row of a question: what is heard meanwhile waits for its answer."""
    row: dict[type, Handler] = {
        Heard: hearing.defer,
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


def _queue(turn: Turn, asked: Asked) -> None:
    about = turn.incident.id if turn.incident is not None else ""
    turn.requests = (*turn.requests, replace(asked, about=about))


def _refuse(turn: Turn, asked: Asked) -> None:
    incident = turn.open
    why = f"{incident.action} is being carried out for {incident.id}"
    turn.emit(effects.Answer(asked.request, why))


def _reconsider(turn: Turn, _came: Reconsider) -> None:
    turn.stale = True


# Answers to questions.


def _state_answered(turn: Turn, answered: Answered) -> None:
    problem = resting.state_answered(turn, answered)
    if problem is not None:
        arrival.leave(turn, problem)


def _panic_set(turn: Turn, answered: Answered) -> None:
    phase, vm = turn.phase, turn.known
    assert isinstance(phase, SettingPanic)
    (answer,) = answered.answers
    if isinstance(answer, NoAnswer):
        arrival.leave(turn, answer.text)
        return
    if not isinstance(answer, Refused):
        setting = PanicSetting(phase.setting)
        turn.vm = replace(vm, capability=replace(vm.capability, panic_setting=setting))
    deciding.panic_is_set(turn)


def _seen_end(turn: Turn, _came: object) -> None:
    resting.seen_end(turn)


def _not_ended(turn: Turn, _came: object) -> None:
    resting.not_ended(turn)


def _turn_came(turn: Turn, _came: TurnCame) -> None:
    assert isinstance(turn.phase, AwaitingTurn)
    deciding.execute(turn, turn.phase.index)


def _rest_elapsed(turn: Turn, _came: Elapsed) -> None:
    resting.elapsed(turn)


def _session_over(turn: Turn, _came: Lost) -> None:
    turn.rest()


def _stop_again_durable(turn: Turn, _came: Durable) -> None:
    deciding.stop_once_more(turn)


def _stop_again_answered(turn: Turn, answered: Answered) -> None:
    problem = deciding.stop_again_answered(turn, answered)
    if problem is not None:
        arrival.leave(turn, problem)


TABLE: Final[dict[type, dict[type, Handler]]] = {
    Begun: {
        Attached: arrival.attached,
        Adopted: arrival.adopted,
    },
    Resting: {
        Heard: resting.take,
        Elapsed: _rest_elapsed,
        Lost: _ignore,  # what is due then is its end
        Gone: _ignore,
        Asked: _queue,
        Reconsider: _reconsider,
    },
    AskingState: _asking(answered=_state_answered),
    SettingPanic: _asking(answered=_panic_set),
    SeeingEnd: _asking(lost=_seen_end, elapsed=_not_ended),
    AwaitingTurn: _asking(turn=_turn_came),
    Readying: _acting(
        _nothing,
        answered=_step(steps.readying_answered, takes=True),
        durable=_step(steps.readying_durable),
    ),
    Stopping: _acting(
        steps.stopping_heard,
        elapsed=_step(steps.stopping_elapsed),
        answered=_step(steps.stopping_answered, takes=True),
        durable=_step(steps.stopping_durable),
    ),
    Collecting: _acting(_nothing, finished=_step(steps.collected, takes=True)),
    Quieting: _acting(
        steps.quieting_heard,
        elapsed=_step(steps.quieting_elapsed),
        answered=_step(steps.quieting_answered, takes=True),
    ),
    Dumping: _acting(
        _nothing,
        durable=_step(steps.dumping_durable),
        finished=_step(steps.dumped, takes=True),
    ),
    Giving: _acting(
        steps.giving_heard,
        durable=_step(steps.giving_durable),
        answered=_step(steps.giving_answered, takes=True),
        told=_step(steps.giving_told, takes=True),
        elapsed=_step(steps.giving_elapsed),
    ),
    Quitting: _acting(
        steps.quitting_heard,
        durable=_step(steps.quitting_durable),
        answered=_step(steps.quitting_answered, takes=True),
        told=_step(steps.quitting_told, takes=True),
        elapsed=_step(steps.quitting_elapsed),
    ),
    Signalling: _acting(
        steps.signalling_heard,
        durable=_step(steps.signalling_durable),
        finished=_step(steps.signalled, takes=True),
        elapsed=_step(steps.signalling_elapsed),
    ),
    Relaunching: _acting(
        _nothing,
        durable=_step(steps.relaunching_durable),
        finished=_step(steps.relaunched, takes=True),
    ),
    StoppingAgain: _acting(
        _nothing,
        durable=_stop_again_durable,
        answered=_stop_again_answered,
    ),
    Interrupted: _acting(_nothing, lost=_session_over),
    Departing: _asking(departed=arrival.departed),
    Left: {},
}
"""What each phase does about each input. ``Undurable`` and ``Stopping`` are the same in all."""


def step(state: State, came: Input, moment: Moment) -> tuple[State, tuple[effects.Effect, ...]]:
    """Return what one input leads to.

    Args:
        state: of the machine.
        came: what has happened.
        moment: what holds now.

    Returns:
        The state after it, and what is to be done, in that order.

    Raises:
        IllegalInputError: it has no place in the phase that the machine is in.
    """
    if isinstance(state.phase, Left):
        return state, ()
    if isinstance(came, Undurable) and moment.journal_failure is JournalFailure.ACT:
        came = Durable(came.serial)  # what was noted is written with what is noted next
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
            _handler(state, came)(turn, came)
    while isinstance(turn.phase, Resting) and _due(turn):
        pass
    if isinstance(turn.phase, Resting) and (
        turn.serial != state.serial or isinstance(came, Heard | Elapsed)
    ):
        resting.arm_look(turn)
    return turn.state(), tuple(turn.effects)


def _handler(state: State, came: Input) -> Handler:
    handler = TABLE[type(state.phase)].get(type(came))
    if handler is None:
        # What was waited for may come, and not be waited for any more in the phase as it stands.
        if type(came) in _ANSWERS:
            return _ignore
        raise IllegalInputError(f"{type(came).__name__} in {type(state.phase).__name__}")
    return handler


_ANSWERS: Final = frozenset({Answered, Durable, Elapsed, Finished, Told, TurnCame})


def _see(turn: Turn, came: Input) -> None:
    """Have the VM follow what has happened, before anything is made of it."""
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
    """Do what is due while nothing is under way; return whether there was anything."""
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
        return False  # the session's end comes in a moment
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
