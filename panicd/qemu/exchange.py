"""The interface through which a session sends commands to a VM and hears its events.

It has two implementations: a QMP monitor of panicd's own (``monitor``), and libvirt's API. Both use
QAPI's commands and events.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio

from panicd.qemu.event_outlet import EventOutlet
from panicd.qemu.monitor_error import MonitorError
from panicd.qemu.pace import Pace
from panicd.qemu.pending import Question

Command = tuple[str, Mapping[str, object]]
"""A QMP command's name, and its arguments."""


class Exchange(ABC):
    """A way to one VM.

    Attributes:
        events: the VM's events.
        pace: limits the processor time for reading from this VM.
    """

    events: EventOutlet
    pace: Pace

    @abstractmethod
    def ask(
        self,
        commands: Sequence[Command],
        done: Callable[[list[object]], None],
        *,
        timeout: float,
    ) -> Question:
        """Send several commands at once, and pass their answers to ``done``; see ``execute_all``.

        Args:
            commands: in their order.
            done: called once with the answers, perhaps before this method returns.
            timeout: seconds after which the caller will give up the question.

        Returns:
            The question. The caller gives it up if it takes too long.
        """

    @abstractmethod
    def abort(self) -> None:
        """End the session at once."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float
    ) -> object:
        """Have QEMU carry out a command and return its answer.

        Args:
            command: its QMP name.
            arguments: its arguments.
            timeout: seconds to wait for the answer.

        Raises:
            CommandError: QEMU refused.
            UncertainError: no answer came; if the wait is cancelled, the command may also have run.
        """
        (answer,) = await self.execute_all([(command, arguments or {})], timeout=timeout)
        if isinstance(answer, MonitorError):
            raise answer
        return answer

    async def execute_all(self, commands: Sequence[Command], *, timeout: float) -> list[object]:
        """Send several commands at once and return their answers, in order.

        QEMU carries out in-band commands in the order in which they come (QMP specification).

        Returns:
            For each command its answer, or its ``MonitorError``.
        """
        return await self.asked(commands, timeout=timeout).answers() if commands else []

    def asked(self, commands: Sequence[Command], *, timeout: float) -> "Asked":
        """Send several commands at once; their answers are waited for later."""
        return Asked(partial(self.ask, commands, timeout=timeout), timeout)


class Asked:
    """Commands that were sent; their answers are waited for later.

    Args:
        ask: sends them, and passes their answers on.
        timeout: seconds from now after which they are given up.

    Attributes:
        complete: set once all answers came, or none will come.
    """

    def __init__(
        self, ask: Callable[[Callable[[list[object]], None]], Question], timeout: float
    ) -> None:
        self.complete = trio.Event()
        self._answers: list[object] = []
        self._limit = trio.current_time() + timeout
        self._question = ask(self._done)

    async def answers(self) -> list[object]:
        """Return for each command its answer, or its ``MonitorError``."""
        try:
            if not self.complete.is_set():
                with trio.move_on_at(self._limit):
                    await self.complete.wait()
        finally:
            self._question.give_up()
        return self._answers

    def _done(self, given: list[object]) -> None:
        self._answers = given
        self.complete.set()


async def answers_to(
    ask: Callable[[Callable[[list[object]], None]], Question], timeout: float
) -> list[object]:
    """Return the answers to a question.

    Args:
        ask: sends the question, and passes its answers on.
        timeout: seconds after which the question is given up.
    """
    return await Asked(ask, timeout).answers()
