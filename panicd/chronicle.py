"""An incident as it goes on: the one way in which entries are added to it.

``note`` takes an entry past the state table first, then counts it and logs it; ``commit``
makes everything noted durable. Whatever changes a guest commits before it does.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, assert_never

import trio

from panicd.host.journal import Journal, JournalError
from panicd.host.logs import get_logger
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
    StepResult,
    apply,
)
from panicd.rules.payload import describe
from panicd.rules.plan import AnyStep
from panicd.rules.policy import EXPLANATIONS
from panicd.rules.settings import JournalFailure
from panicd.tally import Tally

Clock = Callable[[], float]
"""Returns seconds since the epoch."""

GIVEN_UP: Final = "it was begun again and again, and it never became known how it ended"
REPEATS_EVERY: Final = 1.0  # seconds between two entries about repeated panics


@dataclass(frozen=True, slots=True)
class Keeping:
    """What every chronicle is kept with.

    Attributes:
        journal: where entries are made durable.
        tally: what counts them.
        clock: what time it is, in seconds since the epoch.
        journal_failure: what becomes of panics while the journal can't be written.
    """

    journal: Journal
    tally: Tally
    clock: Clock
    journal_failure: Callable[[], JournalFailure]


class Chronicle:
    """The record of one incident.

    Args:
        incident: as it stands.
        keeping: what it is kept with.

    Attributes:
        incident: as it stands now.
    """

    def __init__(self, incident: Incident, keeping: Keeping) -> None:
        self.incident = incident
        self._keeping = keeping
        self._pending: list[AnyEntry] = []
        self._committing = trio.Lock()  # so that nobody returns while his entries are on their way
        self._repeats = 0
        self._repeats_noted_at = 0.0
        self._log = get_logger(domain=incident.opened.domain, incident=incident.id).bind()

    @classmethod
    def open(cls, opened: Opened, keeping: Keeping) -> "Chronicle":
        """Begin the record of a new incident."""
        chronicle = cls(Incident(new_id(opened.at), opened), keeping)
        chronicle._add(None, opened)
        return chronicle

    def note(self, entry: AnyEntry) -> None:
        """Add an entry.

        Raises:
            IllegalTransitionError: it has no place in the incident as it stands.
        """
        before = self.incident
        self.incident = apply(before, entry)
        self._add(before, entry)

    async def commit(self) -> None:
        """Return when everything noted is durable.

        Where it can't be written, the configuration says whether to go on without; what was noted
        is written with what is noted next.

        Raises:
            JournalError: it could not be written, and panicd is not to act without.
        """
        if not self._pending and not self._committing.locked():
            return
        try:
            self._committing.acquire_nowait()
        except trio.WouldBlock:
            with trio.CancelScope(shield=True):  # whoever has it is cancelled too, and lets it go
                await self._committing.acquire()
        try:
            if self._pending:
                # From here to the journal's queue nothing waits: what is cancelled now is written.
                entries, self._pending = self._pending, []
                await self._keeping.journal.append(self.incident.id, *entries)
        except JournalError as error:
            self._pending = [*entries, *self._pending]
            self._log.error("the journal can't be written", problem=str(error))
            if self._keeping.journal_failure() is JournalFailure.PRESERVE:
                raise
        finally:
            self._committing.release()

    @property
    def is_written(self) -> bool:
        """Whether everything noted is durable."""
        return not self._pending

    @property
    def now(self) -> float:
        """What time it is, in seconds since the epoch."""
        return self._keeping.clock()

    def begin(self, index: int) -> None:
        """Note that a step begins."""
        self.note(StepBegun(self._keeping.clock(), index))

    def end(self, index: int, result: StepResult) -> None:
        """Note how a step ended."""
        self.note(
            StepEnded(self._keeping.clock(), index, result.outcome, result.detail, result.signature)
        )

    def give_up(self, index: int) -> AnyStep:
        """Note that a step has failed whose end never became known; return the step.

        One that is known to have failed is noted already.
        """
        assert self.incident.plan is not None
        record = self.incident.steps.get(index)
        if record is None or record.outcome is not Outcome.FAILED:
            if self.incident.step_in_progress != index:
                self.begin(index)
            self.end(index, StepResult(Outcome.FAILED, GIVEN_UP))
        return self.incident.plan.steps[index]

    def repeat(self, count: int) -> None:
        """Count more panics; they are noted once in ``REPEATS_EVERY`` seconds, none is lost."""
        self._repeats += count
        if self._keeping.clock() - self._repeats_noted_at >= REPEATS_EVERY:
            self.note_repeats()

    def note_repeats(self) -> None:
        """Note the panics that were counted since the last time."""
        if self._repeats:
            count, self._repeats = self._repeats, 0
            self._repeats_noted_at = self._keeping.clock()
            self.note(Repeated(self._repeats_noted_at, count))

    def _add(self, before: Incident | None, entry: AnyEntry) -> None:
        self._pending.append(entry)
        self._keeping.tally.count(before, entry)
        self._tell(before, entry)

    def _tell(self, before: Incident | None, entry: AnyEntry) -> None:
        log = self._log
        match entry:
            case Opened(source=source, information=information):
                payload = information and {"type": information.type, **dict(information.fields)}
                says = {"payload": describe(information).summary} if information else {}
                log.warning("guest panicked", source=source, information=payload, **says)
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
            case Asked(uid=uid, what=what, why=why):
                log.info("operator asked", uid=uid, what=what, why=why)
            case Acknowledged(uid=uid, why=why):
                log.info("incident acknowledged", uid=uid, why=why)
            case Observed(what=what):
                log.info("seen", what=what)
            case Enforced():
                log.warning("somebody resumed the panicked guest: stopped again")
            case Closed(ending=ending, detail=detail):
                log.info("incident closed", ending=ending, detail=detail)
            case _:
                assert_never(entry)

    def _tell_words(self, before: Incident | None) -> None:
        """Tell what the guest said of its panic, when that is first known."""
        line, known = self.incident.panic_line, self.incident.told
        known_before = (before.panic_line, before.told) if before else ("", None)
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


def new_id(at: float) -> str:
    """Return an id for an incident that begins now: it sorts by time and is a safe file name."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
