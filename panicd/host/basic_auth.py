"""HTTP's basic authentication (RFC 7617) against bcrypt hashes.

A check costs a good part of a second of a CPU on purpose. So checks are made one at a time, in a
thread; few may wait; and who was let in once is recognised from then on without another.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

import bcrypt
import trio

WAITING_LIMIT: Final = 16
"""Checks that may wait for their turn; beyond it who asks is asked to come again."""

REMEMBERED: Final = 128
"""Names and passwords that were good, the latest: some scrapers and people."""

PASSWORD_USED: Final = 72
"""Bytes of a password that bcrypt looks at."""


class Verdict(Enum):
    """What a check leads to."""

    ADMITTED = auto()
    REFUSED = auto()
    BUSY = auto()  # not checked: too many are


class BasicAuth:
    """Checks what clients say who they are; for use in one event loop."""

    def __init__(self) -> None:
        self._turn = trio.CapacityLimiter(1)
        self._key = secrets.token_bytes()
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def check(self, users: Mapping[str, bytes], authorization: str) -> Verdict:
        """Check the value of an Authorization header.

        Args:
            users: bcrypt hashes by user name, at least one.
            authorization: the header's value; empty where there was none.
        """
        credentials = _credentials(authorization)
        if credentials is None:
            return Verdict.REFUSED
        name, password = credentials
        known = users.get(name)
        # A name that there is none of takes as long as a wrong password.
        hashed = known or next(iter(users.values()))
        proof = hmac.digest(self._key, hashed + name.encode() + b"\0" + password, hashlib.sha256)
        if proof in self._good:
            self._good.move_to_end(proof)
            return Verdict.ADMITTED
        if self._turn.statistics().tasks_waiting >= WAITING_LIMIT:
            return Verdict.BUSY
        matches = await trio.to_thread.run_sync(
            bcrypt.checkpw,
            password[:PASSWORD_USED],
            hashed,
            abandon_on_cancel=True,
            limiter=self._turn,
        )
        if not matches or known is None:
            return Verdict.REFUSED
        self._good[proof] = None
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        return Verdict.ADMITTED


def _credentials(authorization: str) -> tuple[str, bytes] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, separator, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        if separator and b"\0" not in password:  # bcrypt's own end of a password
            return name.decode(), password
    except (binascii.Error, ValueError):
        pass
    return None
