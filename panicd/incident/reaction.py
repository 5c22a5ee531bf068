"""A panic that goes as foreseen, from the event to the first command.

The machine's effects are known (``rules.machine.ahead``), and the journal's entries are ready. So
the driver records them as an intent, which outlives panicd, or commits them. It asks, takes
evidence and gives the command as soon as each may be. The machine gets the inputs after that, and
returns the effects that were carried out.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

import trio

from panicd.incident.services import Services
from panicd.journal.chronicle import Chronicle
from panicd.journal.journal import JournalError
from panicd.journal.ready import Template
from panicd.rules.capability import Capability
from panicd.rules.incident import Opened, Outcome, Source
from panicd.rules.machine.ahead import (
    Act,
    Foreseen,
    counted,
    foresee,
    is_of_evidence,
    is_quiet,
    is_stop,
)
from panicd.rules.machine.effects import Collect, Effect
from panicd.rules.machine.inputs import (
    Answered,
    Durable,
    Elapsed,
    Finished,
    Heard,
    Input,
    Moment,
    Undurable,
)
from panicd.rules.machine.turn import new_id, opened_by
from panicd.rules.qapi import ResetEvent, ShutdownEvent
from panicd.rules.settings import Policy

KINDS: Final = 256
"""How many pairs of policy and capability are remembered, each with its foreseen effects."""


def follows_command(came: Input) -> bool:
    """True for an input that a first command leads to, and that is in no hurry."""
    return isinstance(came, Answered) or (
        isinstance(came, Heard) and isinstance(came.event, ResetEvent | ShutdownEvent)
    )


@lru_cache(KINDS)
def _foreseen(policy: Policy, capability: Capability) -> tuple[Foreseen, Template] | None:
    """Return what a panic leads to, with entries that name no domain."""
    foreseen = foresee(policy, capability)
    if foreseen is None:
        return None
    return foreseen, Template(Opened(0.0, "", "", "", "", Source.EVENT), foreseen.entries)


class Foresight:
    """What the next panic of a domain leads to."""

    def __init__(self) -> None:
        self._template: Template | None = None
        self._made_for: tuple[object, ...] = ()
        self._policy: Policy | None = None
        self._capability: Capability | None = None
        self._known: tuple[Foreseen, Template] | None = None  # of these two, whose hash takes long

    def of(
        self, moment: Moment, capability: Capability, process: str
    ) -> tuple[Foreseen, Template] | None:
        """Return the foreseen effects and entries; None: nothing is foreseen.

        Args:
            moment: names the domain and its policy.
            capability: of its QEMU.
            process: identifies its QEMU.
        """
        if moment.policy is not self._policy or capability is not self._capability:
            self._policy, self._capability = moment.policy, capability
            self._known = _foreseen(moment.policy, capability)
        known = self._known
        if known is None:
            return None
        foreseen, for_nobody = known
        of = (for_nobody, moment.name, moment.claim, moment.key, moment.monitor, process)
        if self._template is None or of != self._made_for:
            opened = opened_by(moment, process, Source.EVENT, None)
            self._template, self._made_for = for_nobody.of(replace(opened, at=0.0)), of
        return foreseen, self._template


class Reaction:
    """One panic that goes as foreseen so far.

    Args:
        services: shared by all domains.
        foreseen: the panic's effects.
        panic: the event.
        moment: the facts at the panic.
        serial: the machine's, at the panic.

    Attributes:
        chronicle: the incident's record.
        is_given: the first command was given.
    """

    def __init__(
        self,
        services: Services,
        foreseen: tuple[Foreseen, Template],
        panic: Heard,
        moment: Moment,
        serial: int,
    ) -> None:
        self._services = services
        from_here, template = foreseen
        self._foreseen = counted(from_here, serial)
        self._moment = moment
        self._came: list[tuple[Input, float, float]] = [(panic, moment.now, moment.ticks)]
        self._done: deque[Effect] = deque()
        needed = (Heard, Answered, Durable, *((Finished,) if self._foreseen.collects else ()))
        self._missing: set[type[Input]] = set(needed)
        self._is_over = False
        self.is_given = False
        incident_id = new_id(moment.now, moment.token)
        self.chronicle = Chronicle.begin(incident_id, template.at(moment.now), services.keeping)
        self._is_to_be_written = False  # its entries are only an intent

    def begin(
        self,
        carry_out: Callable[[Effect], None],
        go_on: Callable[[], None],
        feed: Callable[[Input], None],
    ) -> None:
        """Record the entries as an intent, or commit them, and ask QEMU what it is busy with.

        Args:
            carry_out: carries out the machine's effects.
            go_on: ends the reaction, after the other domains' first commands.
            feed: gives the machine an input.
        """
        self._carry_out, self._go_on, self._feed = carry_out, go_on, feed
        self._services.rush.begin()
        commit, asks = self._foreseen.commit, self._foreseen.asks
        self._done += commit, asks
        may_intend = self._services.keeping.intents is not None
        if may_intend:  # an intent takes less time than QEMU's answer
            carry_out(asks)
        if self.chronicle.keep():
            self._is_to_be_written = True
            self.takes(Durable(commit.serial))
            self._services.rush.commit(self._write)
            return
        carry_out(commit)
        if not may_intend:
            carry_out(asks)  # while the journal's thread wakes up
        self._services.keeping.journal.stand_aside()

    def _write(self) -> None:
        """Commit what is an intent, when no first command is due, or within a second."""
        is_to_be_written, self._is_to_be_written = self._is_to_be_written, False
        if is_to_be_written:
            self.chronicle.commit_soon(self._written)

    def _written(self, problem: JournalError | None) -> None:
        if problem is not None:
            self._feed(Undurable(0, str(problem)))

    def takes(self, came: Input) -> bool:
        """Take an input if it is a foreseen one; return whether it was taken."""
        if self._is_over or self.is_given:
            return False
        if isinstance(came, Heard) and is_of_evidence(came):
            return True
        if type(came) not in self._missing or not self._is_foreseen(came):
            return False
        self._missing.remove(type(came))
        self._came.append((came, self._services.keeping.clock(), trio.current_time()))
        if isinstance(came, Heard):
            self._do(self._foreseen.collects)
        if self._missing <= {Heard}:  # the answer says that the guest has stopped
            self.is_given = True
            self._services.rush.end()
            self._do(self._foreseen.acts)
            if not self._is_over:
                self._services.rush.afterwards(self._go_on)
        return True

    def may_wait(self, came: Input) -> bool:
        """True if an input after the first command may wait for other domains' first commands.

        So may a time limit, for it is the evidence's, which is there: the machine will drop it.
        """
        may_wait = follows_command(came) or isinstance(came, Elapsed)
        return self.is_given and may_wait and self._services.rush.goes_on

    def catch_up(self) -> Iterator[tuple[Input, Moment]]:
        """End the reaction, and yield its inputs for the machine, in order."""
        self._is_over = True
        if not self.is_given:
            self._services.rush.end()
        self._write()
        for came, now, ticks in self._came:
            yield came, self._moment._replace(now=now, ticks=ticks)

    def has_done(self, effect: Effect) -> bool:
        """True if the reaction has already carried out this effect of the machine."""
        if not self._done:
            return False
        foreseen = self._done.popleft()
        assert effect == foreseen, f"{foreseen} was foreseen, and it came to {effect}"
        return True

    def _is_foreseen(self, came: Input) -> bool:
        match came:
            case Heard():
                return is_stop(came)
            case Answered():
                # libvirt may say so before STOP comes, and evidence is taken then.
                return is_quiet(came) and not (self._foreseen.collects and Heard in self._missing)
            case Durable(serial=serial):
                return serial == self._foreseen.commit.serial
            case Finished(result=result):
                return result.outcome is Outcome.DONE
            case _:
                return False

    def _do(self, foreseen: Iterable[Collect | Act]) -> None:
        for each in foreseen:
            if self._is_over:  # an effect ended the reaction: the machine does the others
                return
            self._done.append(each)
            self._carry_out(each)
