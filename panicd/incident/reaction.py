"""A panic that goes as foreseen, from the event to the first command.

The machine's effects are known (``rules.machine.ahead``), and the journal's entries are ready. So
the driver commits, asks and gives the command as soon as each may be. The machine gets the inputs
after that, and returns the effects that were carried out.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

import trio

from panicd.incident.services import Services
from panicd.journal.chronicle import Chronicle
from panicd.journal.journal import JournalError
from panicd.journal.ready import Template
from panicd.rules.capability import Capability
from panicd.rules.incident import Opened, Source
from panicd.rules.machine.ahead import Foreseen, counted_on, foresee, is_quiet, is_stop
from panicd.rules.machine.effects import Effect, Send
from panicd.rules.machine.inputs import Answered, Durable, Heard, Input, Moment, Undurable
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

    def of(
        self, moment: Moment, capability: Capability, process: str
    ) -> tuple[Foreseen, Template] | None:
        """Return the foreseen effects and entries; None: nothing is foreseen.

        Args:
            moment: names the domain and its policy.
            capability: of its QEMU.
            process: identifies its QEMU.
        """
        known = _foreseen(moment.policy, capability)
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
        self._foreseen, template = foreseen
        self._moment = moment
        self._serial = serial
        self._came: list[tuple[Input, float, float]] = [(panic, moment.now, moment.ticks)]
        self._done: deque[Effect] = deque()
        self._stopped = self._quiet = self._durable = False
        self._is_over = False
        self.is_given = False
        incident_id = new_id(moment.now, moment.token)
        self.chronicle = Chronicle.begin(incident_id, template.at(moment.now), services.keeping)

    def begin(
        self,
        send: Callable[[Send, Callable[[Answered], None]], None],
        carry_out: Callable[[Effect], None],
        feed: Callable[[Input], None],
        go_on: Callable[[], None],
        guard: Callable[..., object],
    ) -> None:
        """Commit, and ask QEMU what it is busy with.

        Args:
            send: gives QEMU commands, and passes on their answers.
            carry_out: carries out the first command and its companions.
            feed: gets the first unforeseen input, and all later ones.
            go_on: ends the reaction, after the other domains' first commands.
            guard: calls something, and keeps its bugs from the caller.
        """
        self._carry_out, self._feed, self._go_on, self._guard = carry_out, feed, go_on, guard
        self._services.rush.begin()
        commit = counted_on(self._foreseen.commit, self._serial)
        asks = counted_on(self._foreseen.asks, self._serial)
        assert isinstance(asks, Send)
        self._done += commit, asks
        send(asks, self._answered)
        # This thread leaves the interpreter to the journal's: so that is woken last.
        self.chronicle.commit_soon(self._written)

    def takes(self, heard: Heard) -> bool:
        """Take an event if it is the foreseen one; return whether it was taken."""
        if self._stopped or self.is_given or not is_stop(heard):
            return False
        self._stopped = True
        self._goes_on(heard)
        return True

    def may_wait(self, came: Input) -> bool:
        """True if an input after the first command may wait for other domains' first commands."""
        return self.is_given and follows_command(came) and self._services.rush.goes_on

    def catch_up(self) -> Iterator[tuple[Input, Moment]]:
        """End the reaction, and yield its inputs for the machine, in order."""
        self._is_over = True
        if not self.is_given:
            self._services.rush.end()
        for came, now, ticks in self._came:
            yield came, replace(self._moment, now=now, ticks=ticks)

    def has_done(self, effect: Effect) -> bool:
        """True if the reaction has already carried out this effect of the machine."""
        if not self._done:
            return False
        foreseen = self._done.popleft()
        assert effect == foreseen, f"{foreseen} was foreseen, and it came to {effect}"
        return True

    def _written(self, problem: JournalError | None) -> None:
        serial = self._serial + self._foreseen.commit.serial
        if problem is not None or self._is_over:
            durable = Durable(serial) if problem is None else Undurable(serial, str(problem))
            self._feed(durable)
        else:
            self._durable = True
            self._guard(self._goes_on, Durable(serial))

    def _answered(self, answered: Answered) -> None:
        if self._is_over or not is_quiet(answered):  # libvirt may say so before STOP comes
            self._feed(answered)
        else:
            self._quiet = True
            self._guard(self._goes_on, answered)

    def _goes_on(self, came: Input) -> None:
        self._came.append((came, self._services.keeping.clock(), trio.current_time()))
        if self._durable and self._quiet:
            self.is_given = True
            self._services.rush.end()
            for act in self._foreseen.acts:
                if self._is_over:  # an act ended the reaction: the machine does the others
                    return
                effect = counted_on(act, self._serial)
                self._done.append(effect)
                self._carry_out(effect)
            self._services.rush.afterwards(self._go_on)
