"""What a VM is told and asked, whichever way it is reached: the interface that a session has.

One is a QMP monitor of panicd's own (``monitor``), the other is libvirt's API. Commands and events
are QAPI's either way.
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
        events: what is heard unasked.
        pace: how much of a processor its reading may take.
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
        """Send several commands at once, and have their answers told; see ``execute_all``.

        Args:
            commands: in their order.
            done: called once with the answers, perhaps before this returns.
            timeout: seconds after which the caller is going to give the question up.

        Returns:
            The question, to be given up if it takes too long.
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
            For each command its answer, or the ``MonitorError`` that it met.
        """
        return await answers_to(partial(self.ask, commands, timeout=timeout), timeout)


async def answers_to(
    ask: Callable[[Callable[[list[object]], None]], Question], timeout: float
) -> list[object]:
    """Return the answers to a question.

    Args:
        ask: asks it, and has its answers told.
        timeout: seconds after which it is given up.
    """
    complete = trio.Event()
    answers: list[object] = []

    def done(given: list[object]) -> None:
        answers.extend(given)
        complete.set()

    question = ask(done)
    try:
        with trio.move_on_after(timeout):
            await complete.wait()
    finally:
        question.give_up()
    return answers
