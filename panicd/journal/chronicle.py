"""An open incident: the one way in which entries are added to it.

``note`` first takes an entry past the state table, then counts and logs it. ``commit`` makes
everything noted durable. Whatever changes a guest commits first, or has an intent (``keep``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import assert_never

import trio
from structlog.typing import FilteringBoundLogger

from panicd.host.logs import get_logger
from panicd.journal.counters import Counters
from panicd.journal.intents import Intents
from panicd.journal.journal import Journal, JournalError
from panicd.journal.ready import Ready
from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Decided,
    Enforced,
    Incident,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    StepBegun,
    StepEnded,
    apply,
)
from panicd.rules.policy import EXPLANATIONS
from panicd.rules.settings import JournalFailure

Clock = Callable[[], float]
"""Returns seconds since the epoch."""

Told = Callable[[JournalError | None], None]
"""Is called with the reason why something could not be written, or with None when it is durable."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What all chronicles share.

    Attributes:
        journal: where entries are made durable.
        counters: counts them.
        clock: returns the time, in seconds since the epoch.
        journal_failure: what to do about panics while the journal can't be written.
        intents: where first entries outlive panicd until they are on the disk; None: nowhere.
        unwritten: the incidents with entries that are not on the disk yet.
    """

    journal: Journal
    counters: Counters
    clock: Clock
    journal_failure: Callable[[], JournalFailure]
    intents: Intents | None = None
    unwritten: set["Chronicle"] = field(default_factory=set)


class Chronicle:
    """The record of one incident.

    Args:
        incident_id: the incident's.
        incident: as it stands; or the entries that open it, of which it is made when it is needed.
        keeping: what it is kept with.

    Attributes:
        id: the incident's.
    """

    def __init__(self, incident_id: str, incident: Incident | Ready, keeping: Keeping) -> None:
        self.id = incident_id
        self._incident = incident
        self._keeping = keeping
        self._pending: list[AnyEntry] = []
        self._on_their_way: Sequence[AnyEntry] = ()
        self._ready: Ready | None = None  # they come before what is pending
        self._ahead = 0  # those of them that are still to be noted
        self._is_intent = False  # they outlive panicd, and are not on the disk
        self._waiting: list[Told] = []  # for what is pending

    @classmethod
    def open(cls, incident: Incident, keeping: Keeping) -> "Chronicle":
        """Begin the record of a new incident."""
        chronicle = cls(incident.id, incident, keeping)
        chronicle._add(None, incident.opened)
        return chronicle

    @classmethod
    def left(cls, incident_id: str, entries: Sequence[AnyEntry], keeping: Keeping) -> "Chronicle":
        """Go on with an incident of a killed panicd's, whose entries are only an intent."""
        opened, *others = entries
        assert isinstance(opened, Opened)
        chronicle = cls(incident_id, Incident(incident_id, opened), keeping)
        chronicle._is_intent = True
        chronicle._add(None, opened)
        for entry in others:
            chronicle.note(entry)
        return chronicle

    @classmethod
    def begin(cls, incident_id: str, entries: Ready, keeping: Keeping) -> "Chronicle":
        """Begin the record of a new incident whose first entries are ready, but not noted.

        They are committed as they are. ``take`` then notes them, one after the other.

        Args:
            incident_id: the incident's.
            entries: of which the first opens it.
            keeping: what all chronicles share.
        """
        chronicle = cls(incident_id, entries, keeping)
        chronicle._ready, chronicle._ahead = entries, len(entries)
        keeping.unwritten.add(chronicle)
        return chronicle

    @property
    def incident(self) -> Incident:
        """The incident as it stands now. Any thread may ask, so nothing is changed here."""
        known = self._incident
        if isinstance(known, Ready):
            return Incident(self.id, replace(known.opened, at=known.at))
        return known

    def keep(self) -> bool:
        """Have the entries that were ready outlive panicd at once; the commit may then wait.

        Returns:
            False: that can't be done, or the disk may be full; so the commit must come first.
        """
        ready, intents = self._ready, self._keeping.intents
        if ready is None or intents is None or not self._keeping.journal.is_sound:
            return False
        self._is_intent = intents.take(self.id, ready.texts)
        return self._is_intent

    def note(self, entry: AnyEntry) -> None:
        """Add an entry.

        Raises:
            IllegalTransitionError: it has no place in the incident as it stands.
        """
        self.take(apply(self.incident, entry), entry)

    def take(self, after: Incident, entry: AnyEntry) -> None:
        """Add an entry to the incident as it was; ``after`` is the incident with it."""
        before = None if isinstance(entry, Opened) else self.incident
        self._incident = after
        self._add(before, entry)

    def commit_soon(self, done: "Told") -> None:
        """Have everything noted made durable.

        If it can't be written, it is written together with what is noted next.

        Args:
            done: called with None when it is durable; or with why it could not be written.
        """
        if self.is_written:
            done(None)
            return
        self._waiting.append(done)
        if not self._on_their_way:  # what is on its way goes first, so that the order stays
            self._write()

    async def commit(self) -> None:
        """Return when everything noted is durable.

        Raises:
            JournalError: it could not be written, and panicd must not act without it.
        """
        if self.is_written:
            return
        finished = trio.Event()
        problems: list[JournalError] = []

        def done(problem: JournalError | None) -> None:
            problems.extend([problem] if problem is not None else [])
            finished.set()

        self.commit_soon(done)
        await finished.wait()
        if problems and self._keeping.journal_failure() is JournalFailure.PRESERVE:
            raise problems[0]

    @property
    def is_written(self) -> bool:
        """Whether everything noted is durable."""
        return not (self._pending or self._on_their_way or self._ready)

    @property
    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return self._keeping.clock()

    def _write(self) -> None:
        entries: Sequence[AnyEntry]
        if self._ready is not None:
            entries, self._ready = self._ready, None
        else:
            entries, self._pending = self._pending, []
        waiting, self._waiting = self._waiting, []
        self._on_their_way = entries

        def written(error: BaseException | None) -> None:
            self._on_their_way = ()
            if isinstance(error, JournalError):
                self._pending = [*entries, *self._pending]
                self._log.error("the journal can't be written", problem=str(error))
                waiting.extend(self._waiting)
                self._waiting = []
            elif error is not None:
                raise error
            else:
                self._forget_intent()
                if self._pending:
                    self._write()
                else:
                    self._keeping.unwritten.discard(self)
                    waiting.extend(self._waiting)
                    self._waiting = []
            for done in waiting:
                done(error)

        try:
            self._keeping.journal.append_soon(self.id, entries, written)
        except JournalError as error:
            written(error)

    def _forget_intent(self) -> None:
        if self._is_intent:
            assert self._keeping.intents is not None
            self._is_intent = False
            self._keeping.intents.written(self.id)

    def _add(self, before: Incident | None, entry: AnyEntry) -> None:
        if self._ahead:
            self._ahead -= 1
        else:
            self._pending.append(entry)
            self._keeping.unwritten.add(self)
        self._keeping.counters.count(before, entry)
        self._tell(before, entry)

    @cached_property
    def _log(self) -> FilteringBoundLogger:
        return get_logger(domain=self.incident.opened.domain, incident=self.id).bind()

    def _tell(self, before: Incident | None, entry: AnyEntry) -> None:
        log = self._log
        match entry:
            case Opened(source=source, information=information):
                payload = information and {"type": information.type, **dict(information.fields)}
                log.warning("guest panicked", source=source, information=payload)
                self._tell_words(before)
            case Repeated(count=count):
                log.warning("guest panicked again", count=count, repeats=self.incident.repeats)
            case Decided(plan=plan):
                decision = plan.decision
                log.info(
                    "decided",
                    on_crash=decision.on_crash,
                    **({"unrequested": decision.unrequested} if decision.unrequested else {}),
                    **({"relaunch": True} if decision.relaunch else {}),
                    action=decision.effective,
                    reason=decision.reason,
                    why=EXPLANATIONS[decision.reason],
                    steps=[type(step).__name__ for step in plan.steps],
                )
            case StepBegun(index=index):
                log.debug("step begins", step=self._step_name(index))
            case StepEnded(index=index, outcome=outcome, detail=detail):
                good = outcome in {Outcome.DONE, Outcome.SKIPPED}
                tell = log.info if good else log.warning
                tell("step ended", step=self._step_name(index), outcome=outcome, detail=detail)
                self._tell_words(before)
            case Settled(state=state):
                log.info("incident stays open", state=state)
            case Asked(uid=uid, what=what, why=why, user=user):
                log.info("operator asked", uid=uid, user=user, what=what, why=why)
            case Acknowledged(uid=uid, why=why, user=user):
                log.info("incident acknowledged", uid=uid, user=user, why=why)
            case Observed(what=what):
                log.info("seen", what=what)
            case Enforced():
                log.warning("somebody resumed the panicked guest: stopped again")
            case Closed(ending=ending, detail=detail):
                log.info("incident closed", ending=ending, detail=detail)
            case _:
                assert_never(entry)

    def _tell_words(self, before: Incident | None) -> None:
        """Log what the guest said of its panic, when that is first known."""
        line, known = self.incident.panic_line, self.incident.signature
        known_before = (before.panic_line, before.signature) if before else ("", None)
        if (line, known) != known_before:
            named = (
                {"signature": known.hash, "title": known.title, "frames": list(known.frames)}
                if known
                else {}
            )
            self._log.warning("panic line", panic_line=line, **named)

    def _step_name(self, index: int) -> str:
        assert self.incident.plan is not None
        return type(self.incident.plan.steps[index]).__name__
