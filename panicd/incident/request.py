"""Something that an operator asks of one domain."""

from dataclasses import dataclass, field

import trio

from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation


@dataclass(eq=False, slots=True)
class Request:
    """Something that an operator asks of a domain.

    Attributes:
        operation: who asks for what, and why.
        action: of ``act``: what to do.
        done: set when it was carried out, or refused.
        refused: why, where it was.
    """

    operation: Operation
    action: OnCrash | None = None
    done: trio.Event = field(default_factory=trio.Event)
    refused: str = ""

    def refuse(self, why: str) -> None:
        """Say why it is not carried out."""
        self.refused = why
        self.done.set()
