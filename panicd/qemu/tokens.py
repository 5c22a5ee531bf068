"""Makes words that nobody can guess, many at once.

Asking the kernel for a word releases the interpreter lock, and another thread may take it. That
costs more than all other work before a command.
"""

import os
from typing import Final

BYTES: Final = 8  # of a word: 64 bits
AT_ONCE: Final = 512  # words


class Tokens:
    """A stock of words; for one thread."""

    def __init__(self) -> None:
        self._stock: list[str] = []

    def next(self) -> str:
        """Return a word of ``2 * BYTES`` hexadecimal digits that was never returned before."""
        if not self._stock:
            text = os.urandom(BYTES * AT_ONCE).hex()
            self._stock = [text[i : i + 2 * BYTES] for i in range(0, len(text), 2 * BYTES)]
        return self._stock.pop()
