"""Who a domain is: what the host vouches for, and what its QEMU claims (docs/threat-model.md).

A claim, a name or a UUID, chooses what is done to the domain that makes it. What belongs to a
domain (its restart budget, its waiting incident, its evidence, its place in a storm, which other
connection is the same VM) goes by what the host vouches for:

- of a monitor that is dialled: the socket's path, and the user who listens there;
- of one that dials in: the user who connected. Among one user's own, the claim tells them apart.

Source: unix(7), SO_PEERCRED: the credentials at the time of listen(2) or connect(2).
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""What QEMU says of a VM that was given none."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIALLED: Final = "dialled"
_DIALS_IN: Final = "dials-in"
_KEY: Final = re.compile(rf"(?:{_DIALLED}|{_DIALS_IN}):(\d+):")


def parse_uuid(text: str) -> str:
    """Return a UUID in lower case; nothing where the text is none, or stands for none."""
    uuid = text.lower()
    return uuid if _UUID.fullmatch(uuid) and uuid != NO_UUID else ""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a QEMU says that it is; empty texts where it says nothing.

    Attributes:
        name: any text.
        uuid: a UUID in lower case (``parse_uuid``).
    """

    name: str = ""
    uuid: str = ""


NOTHING: Final = Claim()
"""What a QEMU claims that was not asked yet."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """What the host vouches for of one connection.

    Attributes:
        uid: the user at the other end, as of when it listened or connected.
        address: what panicd calls the connection; of a dialled one, the socket's path.
        dials_in: the other end has connected to a socket of panicd's.
        pid: the number of the process that listened or connected then; 0: not in sight. It may be
            another's by now.
        process: which process is proven to hold the other end; empty where that is not known.
    """

    uid: int
    address: str
    dials_in: bool = False
    pid: int = 0
    process: str = ""

    def key(self, claim: Claim) -> str:
        """Return what everything that belongs to the domain is kept under.

        It outlives the process: a VM that is started again has its budget still. ``owner_of``
        reads the user back.
        """
        if not self.dials_in:
            return f"{_DIALLED}:{self.uid}:{self.address}"
        claimed = claim.uuid or (f"name {claim.name}" if claim.name else "")
        return f"{_DIALS_IN}:{self.uid}:{claimed or self.process or self.address}"


@lru_cache(maxsize=16_384)
def owner_of(key: str) -> int | None:
    """Return the user whose domain has this key; None of a key that 0.1.0 wrote."""
    found = _KEY.match(key)
    return int(found[1]) if found else None


def is_same_vm(one: Vouched, its: Claim, other: Vouched, others: Claim) -> bool:
    """Tell whether two connections lead to one VM.

    The process decides where both are known. Else the user must be the same and so must the claim,
    and they either came from the same process number, or both dialled in: then one is the other's
    successor. So nobody is taken for another user's VM.
    """
    if one.process and other.process:
        return one.process == other.process
    claimed = bool(its.uuid) and its.uuid == others.uuid
    alike = one.pid == other.pid or (one.dials_in and other.dials_in)
    return one.uid == other.uid and claimed and alike


def same_place(one: str, other: str) -> bool:
    """Tell whether two monitors' addresses are one place: a path, or a socket dialled in to.

    This is all that 0.1.0 wrote down of what the host vouches for.
    """
    return one == other or (_listening(one) is not None and _listening(one) == _listening(other))


def _listening(address: str) -> str | None:
    """Return the socket that was dialled in to: such a connection is called ``PATH#NUMBER``."""
    path, mark, number = address.rpartition("#")
    return path if mark and number.isdecimal() else None
