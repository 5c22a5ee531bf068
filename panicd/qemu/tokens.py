"""Makes words that nobody can guess, many at once.

Asking the kernel for a word releases the interpreter lock, and another thread may take it. That
costs more than all other work before a command.
"""

import base64
import os
from collections.abc import Callable
from typing import Final

LENGTH: Final = 8  # characters of a word
RANDOM: Final = 3072  # bytes at once: some hundred words, without a rest


def hexadecimal(random: bytes) -> str:
    """Return 8 characters for each 4 bytes."""
    return random.hex()


def short(random: bytes) -> str:
    """Return 8 characters for each 6 bytes: letters, digits, "-" and "_" (RFC 4648, 5)."""
    return base64.urlsafe_b64encode(random).decode()


class Tokens:
    """A stock of words of ``LENGTH`` characters; for one thread.

    Args:
        spell: makes text of random bytes, ``hexadecimal`` or ``short``.
    """

    def __init__(self, spell: Callable[[bytes], str]) -> None:
        self._spell = spell
        self._stock: list[str] = []

    def next(self) -> str:
        """Return a word that was never returned before, as far as chance allows."""
        if not self._stock:
            text = self._spell(os.urandom(RANDOM))
            self._stock = [text[i : i + LENGTH] for i in range(0, len(text), LENGTH)]
        return self._stock.pop()
