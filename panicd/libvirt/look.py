"""How one start of a domain stands; panicd asks libvirt right before each command.

panicd asks as soon as it hears an event that a command follows. So the answers come while it puts
that command on record. They hold for a moment only; later panicd asks anew.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import trio

from panicd.libvirt import requests
from panicd.libvirt.client import Client
from panicd.libvirt.protocol import DomainRef
from panicd.libvirt.requests import Request

HOLDS: Final = 0.02
"""Seconds for which a look counts as right before a command. Nobody ends a domain and starts it
anew in that time: its QEMU alone takes longer to start."""
ANSWERS_WITHIN: Final = 1.0  # seconds; then whoever needs an answer asks anew


class Word:
    """An answer that may be yet to come, for all that ask for it."""

    __slots__ = ("_answer", "_is_known", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[Callable[[Any], None]] = []
        self._is_known = False
        self._answer: object = None

    def tell(self, answer: object) -> None:
        """Take the answer, or a ``LibvirtError``."""
        self._answer, self._is_known = answer, True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(answer)

    def then(self, done: Callable[[Any], None]) -> None:
        """Call ``done`` with the answer: at once, or when the answer comes."""
        if self._is_known:
            done(self._answer)
        else:
            self._waiting.append(done)


def questions(domain: DomainRef) -> tuple[Request[Any], ...]:
    """Return what keeps a domain busy, which start it is, and how it stands, as questions.

    Args:
        domain: which; the questions go to the start that has its UUID by then.
    """
    start = replace(requests.look_up(domain.uuid), domain=domain.uuid)
    return requests.job(domain), start, requests.state_of(domain)


class Look:
    """Questions about a domain in one go.

    Args:
        client: of the libvirt.
        asked: the questions; see ``questions``.
    """

    __slots__ = ("_asked_at", "_words")

    def __init__(self, client: Client, asked: Iterable[Request[Any]]) -> None:
        self._asked_at = trio.current_time()
        words = [(request, Word()) for request in asked]
        self._words = {request.procedure: word for request, word in words}
        telling = [(request, word.tell) for request, word in words]
        client.ask_together(telling, timeout=ANSWERS_WITHIN)

    @property
    def holds(self) -> bool:
        """Whether the look still counts."""
        return trio.current_time() < self._asked_at + HOLDS

    def word(self, request: Request[Any]) -> Word | None:
        """Return the answer to one of the look's questions."""
        return self._words.get(request.procedure)
