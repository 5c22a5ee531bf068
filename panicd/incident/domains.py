"""All domains of the host, their names, and how each stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import PurePath
from typing import Final

import trio

from panicd.dumps.queue import DumpTurn
from panicd.host.logs import get_logger
from panicd.journal.chronicle import Chronicle
from panicd.qemu.session import Session
from panicd.rules.identity import NOTHING, Claim, Vouched, is_same_vm
from panicd.rules.incident import Opened
from panicd.rules.operation import Holds, Operation
from panicd.rules.settings import Policy

CONNECTING: Final = "connecting"


@dataclass(slots=True)
class Domain:
    """One domain, or one monitor that may become one.

    Attributes:
        address: of its monitor; the socket's path if panicd dials.
        name: panicd's unique name for it.
        dials_in: its QEMU connects to a socket of panicd's.
        claim: the identity that it claims: policy and holds go by it. Without a claimed name, the
            socket's counts.
        vouched: the identity that the host vouches for; None before the first connection.
        key: panicd keeps its belongings under it; empty before the first connection.
        session: the connection; None while there is none.
        policy: its configuration; None before the first connection.
        plugged: panicd has plugged in a panic device in this session, or removed it; None:
            neither.
        chronicle: its open incident.
        dump: of its memory, waiting or under way.
        problem: why there is no connection; empty if there is one.
        since: start or end of the connection, in seconds since the epoch.
        attempts: failed attempts to connect, in a row.
        told: reasons for the missing connection logged since the last connection.
        mute: panicd could not connect because QEMU does not answer.
        spare_of: the name of the same domain on another, connected monitor; empty: this monitor
            is no second one.
    """

    address: str
    name: str
    since: float
    dials_in: bool = False
    claim: Claim = NOTHING
    vouched: Vouched | None = None
    key: str = ""
    session: Session | None = None
    policy: Policy | None = None
    plugged: bool | None = None
    chronicle: Chronicle | None = None
    dump: DumpTurn | None = None
    problem: str = CONNECTING
    attempts: int = 0
    told: int = 0
    mute: bool = False
    spare_of: str = ""

    @property
    def uuid(self) -> str:
        """The claimed UUID; empty: none, or not known."""
        return self.claim.uuid

    @property
    def owner(self) -> int | None:
        """The owner that the host vouches for; None: not known yet."""
        return None if self.vouched is None else self.vouched.uid

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which an operator may call or hold it."""
        return (self.key, self.claim.uuid, self.claim.name, self.name, self.address)

    def hold(self, holds: Holds, now: float) -> Operation | None:
        """Return its hold, if any."""
        return holds.on(self.names, now)

    @property
    def is_silent(self) -> bool:
        """True if its QEMU is known not to answer, connected or not."""
        session = self.session  # it may end meanwhile, as other threads ask too
        return self.mute if session is None else session.silent_since is not None


@dataclass(slots=True)
class Fleet:
    """The domains, by their monitor's address.

    Attributes:
        domains: all of them.
        left: woken when a domain's session has ended and its driver has left, and when a monitor
            is forgotten.
    """

    domains: dict[str, Domain] = field(default_factory=dict)
    left: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    # Indexes, so that a new domain needs no look at all others.
    _named: dict[str, list[Domain]] = field(default_factory=dict)
    _claiming: dict[str, list[Domain]] = field(default_factory=dict)
    _connected: dict[str, list[Domain]] = field(default_factory=dict)  # by process, and by UUID
    _owners: dict[int | None, int] = field(default_factory=dict)

    def add(self, address: str, name: str, now: float, *, dials_in: bool = False) -> Domain:
        """Add a monitor before its connection, under a unique name."""
        domain = Domain(address, self._free_name(address, name, ""), now, dials_in, Claim(name))
        self.domains[address] = domain
        self._own(domain)
        self._named.setdefault(domain.name, []).append(domain)
        self._claiming.setdefault(name, []).append(domain)
        return domain

    def remove(self, address: str) -> None:
        """Forget a monitor and its domain."""
        domain = self.domains.pop(address)
        self._disown(domain)
        _drop(self._named, domain.name, domain)
        _drop(self._claiming, domain.claim.name, domain)
        if others := self._claiming.get(domain.name):  # they had to take another name
            self._call(others[0], domain.name)
        self.left.unpark_all()

    def count_by_owner(self) -> Mapping[int | None, int]:
        """Return how many domains each user has; never connected ones count as nobody's.

        Safe in any thread.
        """
        return self._owners.copy()

    def _own(self, domain: Domain) -> None:
        self._owners[domain.owner] = self._owners.get(domain.owner, 0) + 1

    def _disown(self, domain: Domain) -> None:
        self._owners[domain.owner] -= 1
        if not self._owners[domain.owner]:
            del self._owners[domain.owner]

    def attach(self, domain: Domain, session: Session) -> None:
        """Note a domain's connection."""
        domain.session, domain.plugged = session, None
        for key in _keys(session):
            self._connected.setdefault(key, []).append(domain)

    def detach(self, domain: Domain) -> None:
        """Note the end of a domain's connection, and wake the tasks that wait for it."""
        if domain.session is not None:
            for key in _keys(domain.session):
                _drop(self._connected, key, domain)
        domain.session = None
        self.left.unpark_all()

    def twin(self, domain: Domain, session: Session) -> Domain | None:
        """Return the same VM's other domain, connected by another monitor or earlier."""
        candidates = [other for key in _keys(session) for other in self._connected.get(key, ())]
        if not candidates:
            return None
        vouched = session.vouched(domain.address, dials_in=domain.dials_in)
        for other in candidates:
            if other is domain or other.session is None or other.vouched is None:
                continue
            if is_same_vm(other.vouched, other.session.claim, vouched, session.claim):
                return other
        return None

    def has_returned(self, opened: Opened) -> bool:
        """Return True if another QEMU of the incident's domain is connected by now."""
        for domain in self.domains.values():
            session = domain.session
            if domain.key != opened.domain_key or session is None or session.ended:
                continue
            if not session.process or session.process != opened.process:
                return True
        return False

    def identify(self, domain: Domain, session: Session) -> None:
        """Note a connected domain's claim, and what the host vouches for."""
        self._disown(domain)
        domain.vouched = session.vouched(domain.address, dials_in=domain.dials_in)
        self._own(domain)
        domain.key = domain.vouched.key(session.claim)
        _drop(self._claiming, domain.claim.name, domain)
        claim = session.claim
        domain.claim = claim if claim.name else replace(claim, name=domain.claim.name)
        self._claiming.setdefault(domain.claim.name, []).append(domain)
        if not claim.name:
            return
        for other in list(self._named.get(domain.claim.name, ())):
            if _was_left_for(other, domain):
                self._call(other, self._free_name(other.address, domain.claim.name, "", other=True))
        self._call(domain, self._free_name(domain.address, domain.claim.name, domain.uuid))
        if domain.name != domain.claim.name:
            get_logger().warning(
                "two domains have one name",
                name=domain.claim.name,
                called=domain.name,
                monitor=domain.address,
            )

    def called(self, name: str) -> list[Domain]:
        """Return the domains with this name, UUID or monitor address.

        Several domains may claim one name, and it may be the path of another's monitor.
        """
        if name in self.domains:
            return [self.domains[name]]
        return [d for d in self.domains.values() if name in d.names or name.lower() == d.uuid]

    def _call(self, domain: Domain, name: str) -> None:
        _drop(self._named, domain.name, domain)
        domain.name = name
        self._named.setdefault(name, []).append(domain)

    def _free_name(self, address: str, name: str, uuid: str, *, other: bool = False) -> str:
        """Return a name that no other domain has.

        Args:
            address: of its monitor.
            name: the claimed one.
            uuid: the claimed one.
            other: return another name than ``name``.
        """
        if not other and not self._is_taken(name, address):
            return name
        distinct = f"{name}@{uuid or PurePath(address).name}"
        placed = f"{name}@{address}"
        candidates = chain((distinct, placed), (f"{placed}~{n}" for n in count(2)))
        return next(it for it in candidates if not self._is_taken(it, address))

    def _is_taken(self, name: str, address: str) -> bool:
        named = self._named.get(name)
        return named is not None and any(other.address != address for other in named)


def _was_left_for(other: Domain, domain: Domain) -> bool:
    """Return True if ``other`` is a leftover of the same user's VM on another monitor."""
    same = bool(domain.uuid) and other.uuid == domain.uuid and other.owner == domain.owner
    return same and other is not domain and other.session is None


def _keys(session: Session) -> set[str]:
    """Return a twin's search keys; a process's identity has slashes, a UUID has none."""
    return {session.process, session.claim.uuid} - {""}


def _drop(index: dict[str, list[Domain]], key: str, domain: Domain) -> None:
    index[key] = [other for other in index[key] if other is not domain]
    if not index[key]:
        del index[key]
