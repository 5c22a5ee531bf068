"""A session's domain that libvirt runs: libvirt's API does QMP's commands.

It does just the commands that the machine gives. libvirt passes on QEMU's events.

libvirt goes by a domain's UUID, so a command would meet the domain's next start as well. And unlike
a monitor, libvirt gives events and answers in no common order. So right before each command panicd
asks which start of the domain there is, and how the guest stands (``look``). If the events told
otherwise, panicd does nothing and ends the session: the next session finds out. The remaining gap
is the time of one more call, and the time for which a look holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio

from panicd.host.timers import Timer, Timers
from panicd.libvirt import requests
from panicd.libvirt.client import Asked, Client
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtError,
    LibvirtLostError,
    LibvirtNoRoomError,
    LibvirtRefusedError,
)
from panicd.libvirt.look import Look, Word, questions
from panicd.libvirt.protocol import (
    CrashedDetail,
    DomainRef,
    DomainState,
    EventKind,
    Lifecycle,
    QemuEvent,
    Rebooted,
    State,
)
from panicd.libvirt.qmp_words import ABOUT_JOB, ACTS, data, failure
from panicd.libvirt.requests import Job, Request
from panicd.qemu.event_outlet import EventOutlet
from panicd.qemu.exchange import Command, Exchange
from panicd.qemu.monitor_error import CommandError, SessionLostError
from panicd.qemu.pace import Pace
from panicd.qemu.pending import Question
from panicd.rules.libvirt_state import run_state
from panicd.rules.machine.vm import Stand, Vm, stand_of
from panicd.rules.qapi import (
    Event,
    GuestCrashloadedEvent,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    StopEvent,
    parse_event,
)

TAKEN_IN_WITHIN: Final = 2.0
"""Seconds that libvirt has to take in a panic, in a thread of its own. If that thread comes after a
reset, libvirt says 'crashed' of a guest that runs."""
LOOK_EVERY: Final = 0.05  # seconds between two looks whether it has
TELL_AGAIN: Final = 0.1  # seconds, if libvirt could not be told
ENDED: Final = "the domain has ended"
LET_GO: Final = "not given, for somebody has reset the guest or let it run"


class DomainMonitor(Exchange):
    """The way to one start of a domain.

    Args:
        client: of the libvirt that runs it.
        domain: which, and which start of it.
        timers: set the time limits.

    Attributes:
        known: returns what the VM's events told; None until the session sets it.
        problem: why the session has ended.
        has_panicked: an event told that the guest has panicked.
        is_called_crashed: libvirt said 'crashed' at the session's start, of a guest seen to run.
        look: the last look; None after an event or a command that may change its answers.
        job, start, state: a look's questions.
        commands: libvirt's calls for QMP's commands, by their names.
    """

    def __init__(self, client: Client, domain: DomainRef, timers: Timers) -> None:
        self.events = EventOutlet()
        self.pace = Pace()
        self.known: Callable[[], Vm | None] = lambda: None
        self.problem = ""
        self.has_panicked = False
        self.is_called_crashed = False
        self.client = client
        self.domain = domain
        self.timers = timers
        self.job, self.start, self.state = questions(domain)
        self.commands = {name: make(domain) for name, make in ACTS.items()}
        self._due: tuple[Request[Any], ...] = ()  # to be asked, as a command is likely to follow
        self._panic_at = -TAKEN_IN_WITHIN  # of a panic that libvirt has not taken in
        self._resets = 0  # under way
        self._reset_at = -TAKEN_IN_WITHIN  # when a reset was answered
        self.look: Look | None = None
        self._courses: set[_Course] = set()
        self._waiting: list[Callable[[], None]] = []

    def ask(
        self,
        commands: Sequence[Command],
        done: Callable[[list[object]], None],
        *,
        timeout: float,
    ) -> Question:
        """Have libvirt carry out or answer each of the commands by itself."""
        self._look_ahead()
        names = [name for name, _ in commands]
        question = Question(names, timeout, done)
        course = _Course(self, question, list(names), timeout)
        self._courses.add(course)
        question.sent("", course.give_up)
        course.begin()
        return question

    def forget(self, course: "_Course") -> None:
        """Note that a question is answered, or that nobody waits for it."""
        self._courses.discard(course)

    def abort(self) -> None:
        """End the session at once."""
        self.end("the session was given up")

    def end(self, problem: str) -> None:
        """End the session: no more events come, and open questions fail."""
        if self.events.ended:
            return
        self.problem = problem
        self.events.close()
        for course in list(self._courses):
            course.lose(problem)

    # What is heard.

    def hear(self, told: QemuEvent) -> None:
        """Take an event of QEMU's."""
        seconds = int(told.at)
        stamp = {"seconds": seconds, "microseconds": int((told.at - seconds) * 1e6)}
        event = parse_event({"event": told.name, "data": data(told.details), "timestamp": stamp})
        if event is not None:
            self._heard(event)

    def hear_libvirt(self, told: Lifecycle | Rebooted) -> None:
        """Take libvirt's own event of the guest, if libvirt does not pass on QEMU's.

        libvirt's event says less: no panic's payload, nor who has reset the guest.
        """
        match told:
            case Rebooted():
                self._heard(ResetEvent(0.0, guest=False, reason=""))
            case Lifecycle(event=EventKind.CRASHED, detail=CrashedDetail.CRASHLOADED):
                self._heard(GuestCrashloadedEvent(0.0))
            case Lifecycle(event=EventKind.CRASHED):
                self._heard(GuestPanickedEvent(0.0, PanicAction.PAUSE))
                self._heard(StopEvent(0.0))
            case Lifecycle(event=EventKind.RESUMED):
                self._heard(ResumeEvent(0.0))

    def _heard(self, event: Event) -> None:
        match event:
            case GuestPanickedEvent(action=action):
                self.has_panicked = True
                if action is PanicAction.PAUSE:
                    self._panic_at = trio.current_time()
                if self.look is None or not self.look.holds:  # a guest may flood
                    self._due = self.job, self.start, self.state
            case ResetEvent() if self._resets:
                self._due = self.start, self.state
            case ResetEvent() | ResumeEvent():
                self.look = None
        self.events.put(event)  # what it leads to may be in more of a hurry than the look
        self._look_ahead()

    def taken_in(self, *, is_still: bool) -> None:
        """Note that libvirt itself knows of the panic by now.

        Args:
            is_still: no event since the panic would end it. Then a session that had to believe that
                the guest runs ends, and the next session finds the guest as it is.
        """
        self._panic_at = -TAKEN_IN_WITHIN
        if self._waiting:
            self._due = self.job, self.start, self.state
        self._look_again()
        vm = self.known()
        if is_still and vm is not None and vm.stand is Stand.RUNS:
            self.end("libvirt has taken in only now that the guest has panicked")

    def is_to_wait(self, stand: Stand, again: Callable[[], None]) -> bool:
        """Whether libvirt does not know yet what the events told; then look ``again``."""
        wanted = None if (vm := self.known()) is None else vm.stand
        taken_in = trio.current_time() - TAKEN_IN_WITHIN  # libvirt knows of all before
        panics = wanted is Stand.PANICKED and taken_in < self._panic_at
        resets = wanted is Stand.RESET and (self._resets > 0 or taken_in < self._reset_at)
        waits = stand is not wanted and (panics or resets)
        if waits:
            self.look = None
            self._waiting.append(again)
            if len(self._waiting) == 1:
                self.timers.after(LOOK_EVERY, self._look_again)
        return waits

    def _look_again(self) -> None:
        self._look_ahead()
        waiting, self._waiting = self._waiting, []
        for again in waiting:
            again()

    # What is asked right before a command.

    def _look_ahead(self) -> None:
        """Ask, if that is due, how the domain stands and what keeps it busy."""
        due, self._due = self._due, ()
        if due:
            self.look = None if self.events.ended else Look(self.client, due)

    @property
    def looked_ahead(self) -> bool:
        """Whether a look still holds."""
        return self.look is not None and self.look.holds

    def word(self, request: Request[Any]) -> Word | None:
        """Return the look's answer to a question; None if no look that holds asked it."""
        return self.look.word(request) if self.look is not None and self.looked_ahead else None

    def acts(self, name: str) -> None:
        """Note that a command is under way, which will change how the domain stands."""
        self.look = None
        self._resets += name == "system_reset"

    def has_acted(self, name: str) -> None:
        """Note that a command is answered, or that nobody waits for it any more."""
        if name == "system_reset":
            self._resets -= 1
            self._reset_at = trio.current_time()
            if self._waiting:
                self._due = self.start, self.state
            self._look_again()


class _Course:
    """The calls to libvirt for one question."""

    __slots__ = (
        "_acts",
        "_asked",
        "_deadline",
        "_is_over",
        "_let_go",
        "_monitor",
        "_names",
        "_question",
        "_timeout",
        "_timers",
    )

    def __init__(
        self, monitor: DomainMonitor, question: Question, names: list[str], timeout: float
    ) -> None:
        self._monitor = monitor
        self._question = question
        self._names = names
        self._timeout, self._deadline = timeout, trio.current_time() + timeout
        self._asked: list[Asked] = []
        self._timers: list[Timer] = []
        self._is_over = False
        self._acts = ""  # the command that is under way
        self._let_go = vm.times_let_go if (vm := monitor.known()) else 0  # by then

    def begin(self) -> None:
        """Make the calls that the commands take."""
        if self._monitor.events.ended:
            self.lose("not sent, the session has ended")
            return
        about_job = []
        for index, name in enumerate(self._names):
            if name == "query-status":
                self._ask_state(index)
            elif name == "query-iothreads":
                self._ask_qemu(index)
            elif name in ABOUT_JOB:
                about_job.append(index)
            elif name in ACTS:
                self._command(index)
            else:
                self._put(index, CommandError("CommandNotFound", f"not by libvirt: {name}"))
        if about_job:
            self._ask_job(about_job)

    def give_up(self, _question: object) -> None:
        """Wait no longer."""
        self._is_over = True
        self._has_acted()
        self._monitor.forget(self)
        for asked in self._asked:
            asked.give_up()
        for timer in self._timers:
            timer.cancel()

    def lose(self, problem: str) -> None:
        """Answer that the session has ended."""
        for index, name in enumerate(self._names):
            self._put(index, SessionLostError(f"{name}: {problem}"))

    def _put(self, index: int, answer: object) -> None:
        if not self._is_over and self._names[index]:
            self._names[index] = ""
            self._question.put(index, answer)

    def _ask(
        self,
        request: Request[Any],
        done: Callable[[Any], None],
        first: Callable[[], None] | None = None,
    ) -> None:
        """Ask libvirt; ask again for a while if it can't be told, or a query's answer is lost.

        libvirt has done nothing by then. A query that a look has just asked is not asked again.

        Args:
            request: the call.
            done: gets the answer.
            first: the check to make right before the call, and so anew each time.
        """

        def looked(answer: object) -> None:
            if isinstance(answer, LibvirtError):
                ask()
            else:
                answered(answer)

        def ask() -> None:
            if not self._is_over:
                ask, may_wait = self._monitor.client.ask, first is None
                asked = ask(request, answered, timeout=self._timeout, may_wait=may_wait)
                self._asked.append(asked)

        def answered(answer: object) -> None:
            if self._is_over:
                return
            nothing_done = LibvirtAwayError if first else (LibvirtAwayError, LibvirtLostError)
            if isinstance(answer, nothing_done) and trio.current_time() < self._deadline:
                again = first or partial(self._ask, request, done)
                pause = 0.0 if isinstance(answer, LibvirtNoRoomError) else TELL_AGAIN  # in line now
                self._timers.append(self._monitor.timers.after(pause, again))
            elif isinstance(answer, LibvirtRefusedError) and answer.no_domain:
                self._monitor.end(ENDED)
            else:
                done(answer)

        word = self._monitor.word(request)
        if word is not None:
            word.then(looked)
        else:
            ask()

    def _ask_state(self, index: int) -> None:
        ahead = self._monitor.looked_ahead

        def answered(answer: DomainState | LibvirtError) -> None:
            if isinstance(answer, LibvirtError):
                self._put(index, failure(self._names[index], answer))
            elif answer.state == State.SHUTOFF:
                self._monitor.end(ENDED)
            else:
                self._take_state(index, run_state(answer.state, answer.reason), ahead=ahead)

        self._ask(self._monitor.state, answered)

    def _take_state(self, index: int, state: RunState, *, ahead: bool) -> None:
        monitor, vm = self._monitor, self._monitor.known()
        if vm is not None and monitor.is_called_crashed and not monitor.has_panicked:
            state = vm.run_state  # by its events
        stand = stand_of(state)
        if monitor.is_to_wait(stand, partial(self._ask_state, index)):
            return
        if ahead and vm is not None and stand is not vm.stand:
            monitor.look = None  # an event since the look may be why
            self._ask_state(index)
        elif vm is not None and stand is Stand.RUNS and vm.stand is Stand.PANICKED:
            # Somebody has let it run, and no event told so: that is no reason to stop it.
            monitor.end("libvirt says 'runs' of a guest that has panicked")
        else:
            self._put(index, {"status": state.value})

    def _ask_qemu(self, index: int) -> None:
        """Have libvirt ask QEMU something, to see whether QEMU answers."""

        def answered(answer: int | LibvirtError) -> None:
            name = self._names[index]
            self._put(index, failure(name, answer) if isinstance(answer, LibvirtError) else [])

        self._ask(requests.io_threads(self._monitor.domain), answered)

    def _ask_job(self, indices: list[int]) -> None:
        def answered(answer: Job | LibvirtError) -> None:
            for index in indices:
                name, told = self._names[index], ABOUT_JOB[self._names[index]]
                self._put(index, told(answer) if isinstance(answer, Job) else failure(name, answer))

        self._ask(self._monitor.job, answered)

    def _has_acted(self) -> None:
        name, self._acts = self._acts, ""
        if name:
            self._monitor.has_acted(name)

    # Commands: first which start of the domain there is and how its guest stands, then the command.
    # The first questions wait in the command's line, and leave their room to the command.

    def _command(self, index: int) -> None:
        found: list[DomainRef | DomainState] = []
        ahead = self._monitor.looked_ahead

        def answered(answer: DomainRef | DomainState | LibvirtError) -> None:
            if isinstance(answer, LibvirtError):
                self._put(index, failure(self._names[index], answer))
                return
            found.append(answer)
            if len(found) == 2:
                self._take_look(index, found, ahead=ahead)

        lane = self._monitor.commands[self._names[index]].lane
        for first in (self._monitor.start, self._monitor.state):
            self._ask(replace(first, lane=lane), answered)

    def _take_look(self, index: int, found: list[DomainRef | DomainState], *, ahead: bool) -> None:
        """Give the command if the domain stands as the events told; else end the session."""
        monitor, name = self._monitor, self._names[index]
        vm = monitor.known()
        assert vm is not None, "the machine has attached it"
        (start,) = (each for each in found if isinstance(each, DomainRef))
        (state,) = (each for each in found if isinstance(each, DomainState))
        stand = stand_of(run_state(state.state, state.reason))
        if start.id != monitor.domain.id:
            monitor.end(f"libvirt has started the domain anew before {name}")
        elif state.state == State.SHUTOFF:
            monitor.end(ENDED)
        elif vm.times_let_go > self._let_go:
            self._put(index, CommandError("GenericError", f"{name}: {LET_GO}"))
        elif monitor.is_to_wait(stand, partial(self._command, index)):
            pass
        elif stand is vm.stand or name == "stop":
            self._give(index)
        elif ahead:  # an event since the look may be why
            monitor.look = None
            self._command(index)
        else:
            why = f"libvirt says '{stand}', and events said '{vm.stand}', before {name}"
            monitor.end(why)

    def _give(self, index: int) -> None:
        monitor, name = self._monitor, self._names[index]

        def done(answer: LibvirtError | None) -> None:
            if isinstance(answer, LibvirtLostError):
                return  # an event will tell what came of it, or that the session has ended
            self._has_acted()
            self._put(index, {} if answer is None else failure(name, answer))

        self._has_acted()  # if this is another try
        self._acts = name
        monitor.acts(name)
        self._ask(monitor.commands[name], done, first=partial(self._command, index))
