"""A domain's identity: the host vouches for a part, QEMU claims the rest (docs/threat-model.md).

A claim, a name or a UUID, selects the policy of the domain that makes it. A domain's belongings
(its restart budget, its waiting incident, its evidence, its place in a storm, which other
connection is the same VM) go by what the host vouches for:

- if panicd dials the monitor: the socket's path, and the user who listens there;
- if the VM dials in: the user who connected. The claim tells one user's own VMs apart.

Source: unix(7), SO_PEERCRED: the credentials at the time of listen(2) or connect(2).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""QEMU's answer for a VM without a UUID."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIALLED: Final = "dialled"
_DIALS_IN: Final = "dials-in"
_KEY: Final = re.compile(rf"(?:{_DIALLED}|{_DIALS_IN}):(\d+):")


def parse_uuid(text: str) -> str:
    """Return a UUID in lower case; empty if the text is no UUID, or stands for none."""
    uuid = text.lower()
    return uuid if _UUID.fullmatch(uuid) and uuid != NO_UUID else ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The identity that a QEMU claims; a text is empty if QEMU says nothing.

    Attributes:
        name: any text.
        uuid: a UUID in lower case (``parse_uuid``).
    """

    name: str = ""
    uuid: str = ""


NOTHING: Final = Claim()
"""The claim of a QEMU that panicd has not asked yet."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """What the host vouches for of one connection.

    Attributes:
        uid: the user at the other end, as of when it listened or connected.
        address: panicd's name for the connection; if panicd dialled, the socket's path.
        dials_in: the other end has connected to a socket of panicd's.
        pid: the number of the process that listened or connected then; 0: not in sight. Another
            process may have the number by now.
        process: the process that provably holds the other end; empty where unknown.
    """

    uid: int
    address: str
    dials_in: bool = False
    pid: int = 0
    process: str = ""

    def key(self, claim: Claim) -> str:
        """Return the key under which panicd keeps all that belongs to the domain.

        The key outlives the process: a VM that is started again keeps its budget. ``owner_of``
        reads the user back.
        """
        if not self.dials_in:
            return f"{_DIALLED}:{self.uid}:{self.address}"
        claimed = claim.uuid or (f"name {claim.name}" if claim.name else "")
        return f"{_DIALS_IN}:{self.uid}:{claimed or self.process or self.address}"


@lru_cache(maxsize=16_384)
def owner_of(key: str) -> int | None:
    """Return the user whose domain has this key; None for a key that 0.1.0 wrote."""
    found = _KEY.match(key)
    return int(found[1]) if found else None


def is_same_vm(one: Vouched, its: Claim, other: Vouched, others: Claim) -> bool:
    """Tell whether two connections lead to one VM.

    If both processes are known, they decide. Otherwise the user and the claim must be the same, and
    either the process numbers are the same, or both dialled in: then one is the other's successor.
    So panicd never takes a connection for another user's VM.
    """
    if one.process and other.process:
        return one.process == other.process
    claimed = bool(its.uuid) and its.uuid == others.uuid
    alike = one.pid == other.pid or (one.dials_in and other.dials_in)
    return one.uid == other.uid and claimed and alike


def same_place(one: str, other: str) -> bool:
    """Tell whether two monitors' addresses are one place: a path, or panicd's listening socket.

    0.1.0 wrote down nothing else that the host vouches for.
    """
    return one == other or (_listening(one) is not None and _listening(one) == _listening(other))


def _listening(address: str) -> str | None:
    """Return the socket to which a VM dialled in: ``PATH`` of the address ``PATH#NUMBER``."""
    path, mark, number = address.rpartition("#")
    return path if mark and number.isdecimal() else None
