"""How long to wait before the next try to connect."""

import random
from typing import Final

FIRST_RETRY: Final = 0.02  # seconds: a socket is bound a moment before somebody listens on it
LAST_RETRY: Final = 5.0  # seconds


class Backoff:
    """How long to wait before the next try: doubling, with a maximum and jitter."""

    def __init__(self) -> None:
        self.failures = 0

    def next(self) -> float:
        """Return the seconds to wait after one more failure."""
        wait = min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(self.failures, 16))
        self.failures += 1
        return wait * random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries, guards nothing

    def reset(self) -> None:
        """Begin anew."""
        self.failures = 0
