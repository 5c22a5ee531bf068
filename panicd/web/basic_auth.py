"""HTTP's basic authentication (RFC 7617) against bcrypt hashes.

A check takes a good part of a second of a CPU, on purpose. Wrong passwords must not hold up anybody
else. So panicd remembers who was let in once, and lets them in again without a check. It makes one
check at a time, in a thread, and clients take turns. Few checks may wait. A refusal delays the next
check, so that all refusals together take no more than `SHARE` of one CPU.

A refusal takes as long for a name that does not exist as for any other.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from functools import partial
from typing import Final

import bcrypt
import trio

from panicd.web.turns import TooManyError, Turns

WAITING_LIMIT: Final = 8
"""How many checks may wait for their turn; more are asked to come again. With a hash of the highest
cost, and at `SHARE`, that many take about as long as one exchange may (HTTP's 30 s)."""

WAITING_OF_ONE: Final = 2
"""How many of them may be of one client."""

SHARE: Final = 0.25
"""How much of one CPU refusals may take at most."""

REMEMBERED: Final = 128
"""How many good names and passwords are remembered, the latest: some scrapers and people."""

PASSWORD_USED: Final = 72
"""How many bytes of a password bcrypt looks at."""

IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that identify a client: whoever has one address has all of its /64."""

SALT: Final = b"." * 22
"""The salt of hashes that are compared with nothing, in bcrypt's own base64."""


class Verdict(Enum):
    """How a check ends."""

    ADMITTED = auto()
    REFUSED = auto()
    BUSY = auto()  # not checked, because too many wait


class BasicAuth:
    """Checks who clients say they are; for use in one event loop."""

    def __init__(self) -> None:
        self._turns = Turns(WAITING_LIMIT, WAITING_OF_ONE)
        self._thread = trio.CapacityLimiter(1)  # a check that was given up still has it
        self._next_at = 0.0  # on trio's clock
        self._key = secrets.token_bytes()
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def check(self, users: Mapping[str, bytes], authorization: str, peer: str) -> Verdict:
        """Check the value of an Authorization header.

        Args:
            users: bcrypt hashes by user name, at least one.
            authorization: the header's value; empty where there was none.
            peer: the client's address.
        """
        credentials = _credentials(authorization)
        if credentials is None:
            return Verdict.REFUSED
        name, password = credentials
        hashed = users.get(name, b"")
        proof = hmac.digest(self._key, hashed + name.encode() + b"\0" + password, hashlib.sha256)
        if proof in self._good:
            self._good.move_to_end(proof)
            return Verdict.ADMITTED
        try:
            async with self._turns.take(client_of(peer)):
                async with self._thread:
                    pass  # a check that was given up has ended, and counts
                await trio.sleep_until(self._next_at)
                token = trio.lowlevel.current_trio_token()
                highest = _highest(users)
                matches = await trio.to_thread.run_sync(
                    partial(self._verify, token, hashed, password[:PASSWORD_USED], highest),
                    abandon_on_cancel=True,
                    limiter=self._thread,
                )
        except TooManyError:
            return Verdict.BUSY
        if not matches:
            return Verdict.REFUSED
        self._good[proof] = None
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        return Verdict.ADMITTED

    def _verify(
        self, token: trio.lowlevel.TrioToken, hashed: bytes, password: bytes, highest: int
    ) -> bool:
        """Compare a password with a hash, and put the next check off; in a thread."""
        matches, seconds = verify(hashed, password, highest)
        if not matches:
            token.run_sync_soon(self._put_off, seconds * (1 / SHARE - 1))
        return matches

    def _put_off(self, seconds: float) -> None:
        self._next_at = trio.current_time() + seconds


def user_of(authorization: str) -> str:
    """Return the name in the value of an Authorization header; empty if there is none."""
    credentials = _credentials(authorization)
    return credentials[0] if credentials is not None else ""


def client_of(peer: str) -> str:
    """Return the part of a client's address that identifies it."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)


def verify(hashed: bytes, password: bytes, highest: int) -> tuple[bool, float]:
    """Compare a password with a hash; blocking.

    Args:
        hashed: by bcrypt; empty: there is no such user.
        password: at most `PASSWORD_USED` bytes of it.
        highest: the highest cost of all users' hashes. A refusal takes two to the power of that
            rounds of bcrypt, whatever the hash's own cost.

    Returns:
        Whether it matches, and the CPU seconds that this took.
    """
    began = time.thread_time()
    matches = bool(hashed) and bcrypt.checkpw(password, hashed)
    if not matches:
        for cost in _costs_left(hashed, highest):
            bcrypt.hashpw(password, b"$2b$%02d$%s" % (cost, SALT))
    return matches, time.thread_time() - began


def _costs_left(hashed: bytes, highest: int) -> Iterator[int]:
    """Yield the costs that are still to be computed: 2**c + 2**c + 2**(c+1) … is 2**highest."""
    yield from range(cost_of(hashed), highest) if hashed else (highest,)


def cost_of(hashed: bytes) -> int:
    """Return the cost of a bcrypt hash, such as 10 of ``$2b$10$…``."""
    return int(hashed.split(b"$")[2])


def _highest(users: Mapping[str, bytes]) -> int:
    return max(map(cost_of, users.values()))


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
