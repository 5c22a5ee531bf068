"""All domains of the host: which there are, what they are called, and how each stands."""

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

import trio

from panicd.chronicle import Chronicle
from panicd.dump_queue import DumpTurn
from panicd.host.journal_totals import domain_key
from panicd.host.logs import get_logger
from panicd.qemu.session import Session
from panicd.rules.incident import Opened
from panicd.rules.settings import Policy

CONNECTING: Final = "connecting"


@dataclass(slots=True)
class Domain:
    """One domain, or one monitor that may become one.

    Attributes:
        address: of its monitor.
        name: what panicd calls it; no two have the same.
        uuid: empty where it has none, or it is not known.
        session: the connection; None while there is none.
        policy: what is configured for it; None before it was ever connected.
        chronicle: its open incident.
        dump: of its memory, waited for or under way.
        problem: why there is no connection, empty where there is one.
        since: when it came to be connected, or not; seconds since the epoch.
        attempts: to connect, that failed in a row.
        told: reasons why there is no connection that were logged, since there was one.
        mute: it could not be connected because its QEMU does not answer.
        spare_of: the name of the domain that panicd is connected to by another monitor; empty: this
            is no second one.
    """

    address: str
    name: str
    since: float
    uuid: str = ""
    session: Session | None = None
    policy: Policy | None = None
    chronicle: Chronicle | None = None
    dump: DumpTurn | None = None
    problem: str = CONNECTING
    attempts: int = 0
    told: int = 0
    mute: bool = False
    spare_of: str = ""

    @property
    def key(self) -> str:
        """What it is known by across its QEMUs: its UUID, its name where it has none."""
        return self.uuid or self.name

    @property
    def is_silent(self) -> bool:
        """Whether its QEMU is known not to answer, connected or not."""
        return self.mute if self.session is None else self.session.silent_since is not None


@dataclass(slots=True)
class Fleet:
    """The domains, by their monitor's address.

    Attributes:
        domains: all of them.
        left: woken up whenever a domain's session has ended and its incident was let go, and when
            a monitor is forgotten.
    """

    domains: dict[str, Domain] = field(default_factory=dict)
    left: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    # So that one more domain does not cost a look at all the others.
    _named: dict[str, list[Domain]] = field(default_factory=dict)
    _connected: dict[str, list[Domain]] = field(default_factory=dict)  # by process, and by UUID

    def add(self, address: str, name: str, now: float) -> Domain:
        """Take in a monitor that is about to be connected, under a name of its own."""
        domain = Domain(address, self._free_name(address, name, ""), now)
        self.domains[address] = domain
        self._named.setdefault(domain.name, []).append(domain)
        return domain

    def remove(self, address: str) -> None:
        """Forget a monitor and its domain."""
        domain = self.domains.pop(address)
        _drop(self._named, domain.name, domain)
        self.left.unpark_all()

    def attach(self, domain: Domain, session: Session) -> None:
        """Note a domain's connection."""
        domain.session = session
        for key in _keys(session):
            self._connected.setdefault(key, []).append(domain)

    def detach(self, domain: Domain) -> None:
        """Note that a domain's connection has ended, and wake who waits for that."""
        if domain.session is not None:
            for key in _keys(domain.session):
                _drop(self._connected, key, domain)
        domain.session = None
        self.left.unpark_all()

    def twin(self, domain: Domain, session: Session) -> Domain | None:
        """Return the domain that is the same VM, connected by another monitor or before.

        The process tells, or the UUID where a process is not known.
        """
        candidates = [other for key in _keys(session) for other in self._connected.get(key, ())]
        for other in candidates:
            if other is domain or other.session is None:
                continue
            if other.session.process and session.process:
                same = other.session.process == session.process
            else:
                same = bool(session.uuid) and other.session.uuid == session.uuid
            if same:
                return other
        return None

    def has_returned(self, opened: Opened) -> bool:
        """Tell whether the domain of an incident is connected through another QEMU by now."""
        for domain in self.domains.values():
            session = domain.session
            if domain.key != domain_key(opened) or session is None or session.ended:
                continue
            if not session.process or session.process != opened.process:
                return True
        return False

    def identify(self, domain: Domain, name: str, uuid: str) -> None:
        """Note what a connected domain says that it is."""
        domain.uuid = uuid
        if name:
            _drop(self._named, domain.name, domain)
            domain.name = self._free_name(domain.address, name, uuid)
            self._named.setdefault(domain.name, []).append(domain)
            if domain.name != name:
                get_logger().warning(
                    "two domains have one name",
                    name=name,
                    called=domain.name,
                    monitor=domain.address,
                )

    def by_name(self, name: str) -> Domain | None:
        """Return the domain of that name, or of that UUID."""
        named = (domain for domain in self.domains.values() if domain.name == name)
        known = (domain for domain in self.domains.values() if domain.uuid == name.lower())
        return next(named, None) or next(known, None)

    def _free_name(self, address: str, name: str, uuid: str) -> str:
        distinct = f"{name}@{uuid or PurePath(address).name}"
        candidates = (name, distinct)
        free = (it for it in candidates if not self._is_taken(it, address, uuid))
        return next(free, f"{name}@{address}")

    def _is_taken(self, name: str, address: str, uuid: str) -> bool:
        return any(
            # A VM that was connected before, and now is by another monitor, is no other.
            other.address != address and not (uuid and other.uuid == uuid and not other.session)
            for other in self._named.get(name, ())
        )


def _keys(session: Session) -> set[str]:
    """Return what a session's VM is known by; a process's identity has slashes, a UUID has none."""
    return {session.process, session.uuid} - {""}


def _drop(index: dict[str, list[Domain]], key: str, domain: Domain) -> None:
    index[key] = [other for other in index[key] if other is not domain]
    if not index[key]:
        del index[key]
