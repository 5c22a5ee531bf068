"""Faults of one monitor.

They say who must act and whether the command may have run::

    MonitorError
    ├── UnreachableError   no session could be made; try again later
    │   └── SilentError          QEMU sent no greeting, or did not answer
    ├── CommandError       QEMU refused; nothing was done
    └── UncertainError     no answer: it may or may not have run, ask QEMU for its state
        ├── SessionLostError     the session ended
        └── NoReplyError         the time limit was reached, the session goes on
"""

from typing import Final

from panicd.rules.qapi import MAX_TEXT

PRETTY: Final = (
    "its JSON goes over many lines, which panicd does not read: use -qmp instead of -qmp-pretty, "
    "or pretty=off"
)


class MonitorError(Exception):
    """Base of the faults of one monitor."""


class UnreachableError(MonitorError):
    """No session could be made."""


class SilentError(UnreachableError):
    """The monitor accepts connections but does not answer: another client has it, or QEMU hangs.

    Attributes:
        greeted: QEMU sent its greeting, so no other client has the monitor.
    """

    def __init__(self, message: str, *, greeted: bool) -> None:
        super().__init__(message)
        self.greeted = greeted

    @classmethod
    def after(cls, seconds: float, *, greeted: bool) -> "SilentError":
        """Return the error of a monitor that said nothing more for some seconds."""
        if greeted:
            unanswered = f"it greets, and did not answer qmp_capabilities within {seconds:g} s"
            return cls(unanswered, greeted=True)
        return cls(f"no greeting within {seconds:g} s", greeted=False)


class CommandError(MonitorError):
    """QEMU answered with an error: the command was not carried out.

    Attributes:
        error_class: ``GenericError``, ``CommandNotFound``, … (QAPI ``QapiErrorClass``).
        description: QEMU's text, for people.
    """

    def __init__(self, error_class: str, description: str) -> None:
        super().__init__(f"{error_class}: {description}")
        self.error_class = error_class
        self.description = description


class UncertainError(MonitorError):
    """No answer came: the command may or may not have been carried out."""


class SessionLostError(UncertainError):
    """The session has ended."""


class NoReplyError(UncertainError):
    """No answer came in time; the session goes on."""


def cause(error: BaseException) -> str:
    """Return the innermost cause, bounded: its text may come from the other end."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, AssertionError):  # qemu.qmp's own, without a word
        return "what it says does not belong into a session's beginning (a flood of events does so)"
    return f"{type(error).__name__}: {error}"[:MAX_TEXT].removesuffix(": ")
