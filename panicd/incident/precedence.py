"""What a panicked domain goes before: other threads' work, and other domains' later work."""

from collections.abc import Callable

from panicd.host.priority import Priority
from panicd.incident.rush import FirstCommand, Rush


class Precedence:
    """The precedence of one domain, from its incident's start until it is settled.

    Args:
        priority: of panicd's threads.
        rush: of all domains' first commands.
    """

    def __init__(self, priority: Priority, rush: Rush) -> None:
        self._priority = priority
        self._rush = rush
        self._is_first = False
        self._command: FirstCommand | None = None  # that follows evidence

    def begin(self) -> None:
        """An incident begins."""
        self.given()
        self._command = None
        if not self._is_first:
            self._is_first = True
            self._priority.begin()

    def await_command(self) -> None:
        """A first command is due after evidence."""
        self.given()
        self._command = FirstCommand(self._rush)

    def given(self) -> None:
        """A command was given, or will not be."""
        if self._command is not None:
            self._command.given()

    def put_off(self, call: Callable[[], None]) -> bool:
        """Have something called after others' first commands; return False if it need not wait."""
        return self._command is not None and self._command.put_off(call)

    def end(self) -> None:
        """The incident is settled, or the domain is lost."""
        self.given()
        if self._is_first:
            self._is_first = False
            self._priority.end()
