"""Tokens against forgery: proof that this daemon made a form, for this user, for this subject.

A browser sends the password along with a form of any other site. So each form carries a token that
no other site can know. It is made with a key that never leaves this process, for one user and one
subject. It is good for a while, and once.
"""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from typing import Final

GOOD_FOR: Final = 3600.0
"""Seconds. Somebody may be called away while they fill in a form."""

SPENT_LIMIT: Final = 10_000
"""How many spent tokens are remembered; beyond that no token is taken."""


class Tokens:
    """Makes tokens, and takes each once; for use in any thread.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = secrets.token_bytes()
        self._spent: dict[str, float] = {}
        self._lock = threading.Lock()

    def make(self, user: str, subject: str) -> str:
        """Return a token for a user's form about a subject."""
        made = f"{self._clock() + GOOD_FOR:.0f}.{secrets.token_hex(16)}"
        return f"{made}.{self._proof(made, user, subject)}"

    def take(self, token: str, user: str, subject: str) -> bool:
        """Tell whether a token is good; it is not good again."""
        made, _, proof = token.rpartition(".")
        if not hmac.compare_digest(
            proof.encode(errors="surrogatepass"), self._proof(made, user, subject).encode()
        ):
            return False
        now, good_until = self._clock(), float(made.partition(".")[0])
        with self._lock:
            if len(self._spent) >= SPENT_LIMIT:
                self._spent = {one: until for one, until in self._spent.items() if until > now}
            if good_until <= now or made in self._spent or len(self._spent) >= SPENT_LIMIT:
                return False
            self._spent[made] = good_until
        return True

    def _proof(self, made: str, user: str, subject: str) -> str:
        parts = (part.encode(errors="surrogatepass") for part in (made, user, subject))
        said = b"".join(len(part).to_bytes(4) + part for part in parts)
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()
