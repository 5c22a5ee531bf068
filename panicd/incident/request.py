"""An operator's request about one domain."""

from dataclasses import dataclass, field

import trio

from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation


@dataclass(eq=False, slots=True)
class Request:
    """An operator's request about a domain.

    Attributes:
        operation: who asks for what, and why.
        action: the action, for ``act``.
        done: set when the request was carried out, or refused.
        refused: the reason, if refused.
    """

    operation: Operation
    action: OnCrash | None = None
    done: trio.Event = field(default_factory=trio.Event)
    refused: str = ""

    def refuse(self, why: str) -> None:
        """Finish the request: ``why`` is the reason for a refusal, empty: it was done."""
        self.refused = why
        self.done.set()
