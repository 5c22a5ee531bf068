"""panicd's requests to libvirt: each is a value, sent later. Pure.

libvirt goes by a domain's UUID alone. So a request that libvirt carries out late meets the domain's
next start, and callers ask for the domain's state and number right before they act.

Sources: libvirt ``src/remote/remote_protocol.x`` (``struct remote_…_args`` and ``…_ret``),
``src/remote/qemu_protocol.x``; the flags are of ``include/libvirt/libvirt-domain.h``. 'High' is
libvirtd's ``@priority`` there: libvirtd has some more workers for high requests.
"""

import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Generic, TypeVar

from panicd.libvirt.protocol import (
    CPU_MAP_MOST,
    DOMAINS_MOST,
    IO_THREADS_MOST,
    JOB_FACTS_MOST,
    PEEK_MOST,
    STATISTICS_MOST,
    DomainRef,
    DomainState,
    DumpFormat,
    LifecycleAction,
    Procedure,
    QemuProcedure,
    read_domain,
    read_optional_text,
    read_text,
    read_typed,
)
from panicd.libvirt.wire import QEMU_PROGRAM, REMOTE_PROGRAM
from panicd.libvirt.xdr import (
    Decoder,
    XdrError,
    pack_int,
    pack_optional_text,
    pack_text,
    pack_uhyper,
    pack_uint,
)

T_co = TypeVar("T_co", covariant=True)

LIST_ACTIVE: Final = 1 << 0  # VIR_CONNECT_LIST_DOMAINS_ACTIVE: crashed ones are among them
LIST_INACTIVE: Final = 1 << 1
XML_INACTIVE: Final = 1 << 1  # VIR_DOMAIN_XML_…
AFFECT_LIVE: Final = 1 << 0  # VIR_DOMAIN_AFFECT_…
DESTROY_GRACEFUL: Final = 1 << 0  # VIR_DOMAIN_DESTROY_GRACEFUL
DUMP_MEMORY_ONLY: Final = 1 << 4  # VIR_DUMP_MEMORY_ONLY
MEMORY_PHYSICAL: Final = 1 << 1  # VIR_MEMORY_PHYSICAL
LIFECYCLE_CRASH: Final = 2  # VIR_DOMAIN_LIFECYCLE_CRASH
METADATA_ELEMENT: Final = 2  # VIR_DOMAIN_METADATA_ELEMENT
STATISTICS_STATE: Final = 1 << 0  # VIR_DOMAIN_STATS_STATE
OPERATION_DUMP: Final = 8  # VIR_DOMAIN_JOB_OPERATION_DUMP
AUTH_NONE: Final = 0  # REMOTE_AUTH_…
AUTH_POLKIT: Final = 2


class Lane(Enum):
    """How libvirtd carries out a call, and so where the call waits."""

    QUERY = auto()  # high, and waits for no domain: libvirtd answers though every QEMU hangs
    URGENT = auto()  # high, and takes its time
    JOB = auto()  # waits until nothing else is done with the domain, and for QEMU


@dataclass(frozen=True, slots=True)
class Request(Generic[T_co]):
    """One call that is yet to be made.

    Attributes:
        name: the call's, for messages.
        procedure: its number.
        arguments: its arguments' bytes.
        read: decodes the answer's bytes; raises ``XdrError``.
        program: the procedure's protocol.
        domain: the UUID of the domain that it concerns; empty: no single domain.
        lane: see ``Lane``.
    """

    name: str
    procedure: int
    arguments: bytes
    read: Callable[[Decoder], T_co]
    program: int = REMOTE_PROGRAM
    domain: str = ""
    lane: Lane = Lane.QUERY


@dataclass(frozen=True, slots=True)
class Job:
    """The job that keeps a domain busy (``VIR_DOMAIN_JOB_…``).

    Attributes:
        type: ``virDomainJobType``; 0: nothing.
        operation: ``virDomainJobOperation``: 5 a migration out, 8 a dump, 9 a backup; 0: not known.
        elapsed: milliseconds.
        processed: bytes done.
        total: bytes in all.
    """

    type: int
    operation: int
    elapsed: int
    processed: int
    total: int


@dataclass(frozen=True, slots=True)
class Control:
    """How libvirt's own monitor of a domain stands (``virDomainControlInfo``).

    Attributes:
        state: 0 fine, 1 a job, 2 a command that QEMU has not answered, 3 broken.
        details: why, for state 3.
        since: milliseconds in this state.
    """

    state: int
    details: int
    since: int


def nothing(_items: Decoder) -> None:
    """Read an answer without content."""


def _of(
    procedure: Procedure,
    domain: DomainRef,
    read: Callable[[Decoder], T_co],
    *rest: bytes,
    lane: Lane = Lane.JOB,
) -> Request[T_co]:
    name = procedure.name.lower().removeprefix("domain_").replace("_", " ")
    arguments = domain.pack() + b"".join(rest)
    return Request(name, procedure, arguments, read, domain=domain.uuid, lane=lane)


# All domains.


def list_domains(*, active: bool = True, inactive: bool = False) -> Request[list[DomainRef]]:
    """Ask for all domains: those with a QEMU, crashed ones among them, or those without. High.

    Args:
        active: those with a QEMU.
        inactive: those without.
    """
    flags = (LIST_ACTIVE if active else 0) | (LIST_INACTIVE if inactive else 0)

    def read(items: Decoder) -> list[DomainRef]:
        domains = items.array(lambda: read_domain(items), DOMAINS_MOST)
        items.uint32()  # how many there are
        return domains

    arguments = pack_int(1) + pack_uint(flags)
    return Request("list", Procedure.CONNECT_LIST_ALL_DOMAINS, arguments, read)


def states() -> Request[list[tuple[DomainRef, DomainState]]]:
    """Ask how all domains that have a QEMU stand, in one call (``VIR_DOMAIN_STATS_STATE``)."""

    def record(items: Decoder) -> tuple[DomainRef, DomainState]:
        domain = read_domain(items)
        said = dict(items.array(lambda: read_typed(items), STATISTICS_MOST))
        state, reason = said.get("state.state"), said.get("state.reason")
        if not isinstance(state, int) or not isinstance(reason, int):
            raise XdrError("a domain's statistics without its state")
        return domain, DomainState(state, reason)

    def read(items: Decoder) -> list[tuple[DomainRef, DomainState]]:
        return items.array(lambda: record(items), DOMAINS_MOST)

    arguments = pack_uint(0) + pack_uint(STATISTICS_STATE) + pack_uint(LIST_ACTIVE)
    procedure = Procedure.CONNECT_GET_ALL_DOMAIN_STATS
    return Request("states", procedure, arguments, read, lane=Lane.JOB)


# One domain, asked about.


def look_up(uuid: str) -> Request[DomainRef]:
    """Ask for the domain that has a UUID. High."""
    arguments = uuids.UUID(uuid).bytes
    return Request("look-up", Procedure.DOMAIN_LOOKUP_BY_UUID, arguments, read_domain)


def look_up_id(number: int) -> Request[DomainRef]:
    """Ask for the running domain that has a number; refused if none has it any more. High."""
    return Request("look-up", Procedure.DOMAIN_LOOKUP_BY_ID, pack_int(number), read_domain)


def state_of(domain: DomainRef) -> Request[DomainState]:
    """Ask how a domain stands, and why. High."""

    def read(items: Decoder) -> DomainState:
        return DomainState(items.int32(), items.int32())

    return _of(Procedure.DOMAIN_GET_STATE, domain, read, pack_uint(0), lane=Lane.QUERY)


def describe(domain: DomainRef, *, inactive: bool = False) -> Request[str]:
    """Ask for a domain's XML.

    Args:
        domain: which.
        inactive: the XML for the next start, instead of the running one's.
    """
    flags = pack_uint(XML_INACTIVE if inactive else 0)
    return _of(Procedure.DOMAIN_GET_XML_DESC, domain, read_text, flags)


def metadata(domain: DomainRef, uri: str) -> Request[str]:
    """Ask for the element that a running domain's metadata has in an XML namespace.

    Refused with ``NO_DOMAIN_METADATA`` if there is no such element.
    """
    element = pack_int(METADATA_ELEMENT) + pack_optional_text(uri) + pack_uint(AFFECT_LIVE)
    return _of(Procedure.DOMAIN_GET_METADATA, domain, read_text, element)


def job(domain: DomainRef) -> Request[Job]:
    """Ask which job keeps a domain busy."""

    def read(items: Decoder) -> Job:
        kind = items.int32()
        said = dict(items.array(lambda: read_typed(items), JOB_FACTS_MOST))
        names = ("operation", "time_elapsed", "data_processed", "data_total")
        return Job(kind, *(_whole(said.get(name)) for name in names))

    return _of(Procedure.DOMAIN_GET_JOB_STATS, domain, read, pack_uint(0))


def io_threads(domain: DomainRef) -> Request[int]:
    """Have libvirt ask QEMU something: how many I/O threads it has. This changes nothing."""

    def thread(items: Decoder) -> int:
        number = items.uint32()
        items.opaque(CPU_MAP_MOST)
        return number

    def read(items: Decoder) -> int:
        threads = items.array(lambda: thread(items), IO_THREADS_MOST)
        items.uint32()  # how many there are
        return len(threads)

    return _of(Procedure.DOMAIN_GET_IOTHREAD_INFO, domain, read, pack_uint(AFFECT_LIVE))


def control(domain: DomainRef) -> Request[Control]:
    """Ask how libvirt's own monitor of a domain stands. High."""

    def read(items: Decoder) -> Control:
        return Control(items.uint32(), items.uint32(), items.uint64())

    return _of(Procedure.DOMAIN_GET_CONTROL_INFO, domain, read, pack_uint(0), lane=Lane.QUERY)


def peek(domain: DomainRef, physical: int, length: int) -> Request[bytes]:
    """Ask for a part of a guest's memory. Ask for RAM only: libvirt reads devices' memory as well.

    Args:
        domain: which.
        physical: the guest's own address.
        length: bytes, ``PEEK_MOST`` at most.
    """

    def read(items: Decoder) -> bytes:
        data = items.opaque(PEEK_MOST)
        if len(data) != length:
            raise XdrError(f"{len(data)} bytes of memory in place of {length}")
        return data

    where = pack_uhyper(physical) + pack_uint(length) + pack_uint(MEMORY_PHYSICAL)
    return _of(Procedure.DOMAIN_MEMORY_PEEK, domain, read, where)


def screenshot(domain: DomainRef) -> Request[str]:
    """Ask for a picture of the first screen: the answer has its MIME type, a stream its bytes."""

    def read(items: Decoder) -> str:
        return items.optional(lambda: read_text(items)) or ""

    which = pack_uint(0) + pack_uint(0)
    return _of(Procedure.DOMAIN_SCREENSHOT, domain, read, which)


# One domain, acted on.


def reset(domain: DomainRef) -> Request[None]:
    """Reset a domain; a crashed one is then 'paused (crashed)', and has to be resumed."""
    return _of(Procedure.DOMAIN_RESET, domain, nothing, pack_uint(0))


def resume(domain: DomainRef) -> Request[None]:
    """Let a domain run."""
    return _of(Procedure.DOMAIN_RESUME, domain, nothing)


def suspend(domain: DomainRef) -> Request[None]:
    """Stop a domain's processors."""
    return _of(Procedure.DOMAIN_SUSPEND, domain, nothing)


def destroy(domain: DomainRef, *, graceful: bool = False) -> Request[None]:
    """End a domain's QEMU: by SIGTERM, and unless ``graceful`` by SIGKILL after that. High."""
    flags = pack_uint(DESTROY_GRACEFUL if graceful else 0)
    return _of(Procedure.DOMAIN_DESTROY_FLAGS, domain, nothing, flags, lane=Lane.URGENT)


def start(domain: DomainRef) -> Request[DomainRef]:
    """Start a domain that does not run; the answer has its new number."""
    return _of(Procedure.DOMAIN_CREATE_WITH_FLAGS, domain, read_domain, pack_uint(0))


def set_on_crash(domain: DomainRef, action: LifecycleAction) -> Request[None]:
    """Set what libvirt itself does when a running domain's guest panics (libvirt 3.9).

    Args:
        domain: which.
        action: what libvirt does.
    """
    what = pack_uint(LIFECYCLE_CRASH) + pack_uint(action) + pack_uint(AFFECT_LIVE)
    return _of(Procedure.DOMAIN_SET_LIFECYCLE_ACTION, domain, nothing, what)


def set_metadata(domain: DomainRef, uri: str, key: str, element: str | None) -> Request[None]:
    """Set the element that a running domain's metadata has in an XML namespace.

    Args:
        domain: which.
        uri: the namespace's.
        key: the namespace's prefix in the XML.
        element: the XML; None removes the element.
    """
    what = pack_int(METADATA_ELEMENT) + pack_optional_text(element) + pack_optional_text(key)
    which = pack_optional_text(uri) + pack_uint(AFFECT_LIVE)
    return _of(Procedure.DOMAIN_SET_METADATA, domain, nothing, what, which)


def core_dump(domain: DomainRef, path: str, kind: DumpFormat) -> Request[None]:
    """Have libvirtd write a domain's memory to a path; it answers when the dump is done.

    libvirt afterwards resumes a domain that it takes for running.

    Args:
        domain: which.
        path: of a file, or of a pipe in ``/proc``.
        kind: see ``DumpFormat``.
    """
    how = pack_text(path) + pack_uint(kind) + pack_uint(DUMP_MEMORY_ONLY)
    return _of(Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT, domain, nothing, how)


def abort_job(domain: DomainRef) -> Request[None]:
    """Have libvirt give up a domain's job."""
    return _of(Procedure.DOMAIN_ABORT_JOB, domain, nothing)


def monitor_command(domain: DomainRef, command: str) -> Request[str]:
    """Have a domain's QEMU carry out a command. libvirt then marks the domain as tainted.

    Args:
        domain: which.
        command: QMP's JSON.
    """
    arguments = domain.pack() + pack_text(command) + pack_uint(0)
    procedure = QemuProcedure.DOMAIN_MONITOR_COMMAND
    return Request(
        "monitor command", procedure, arguments, read_text, QEMU_PROGRAM, domain.uuid, Lane.JOB
    )


def ask_agent(domain: DomainRef, command: str, seconds: int) -> Request[str]:
    """Have the agent in a guest carry out a command.

    Args:
        domain: which.
        command: the agent's JSON.
        seconds: how long libvirt waits for the agent.
    """
    arguments = domain.pack() + pack_text(command) + pack_int(seconds) + pack_uint(0)
    procedure = QemuProcedure.DOMAIN_AGENT_COMMAND
    return Request(
        "ask agent", procedure, arguments, read_optional_text, QEMU_PROGRAM, domain.uuid, Lane.JOB
    )


def _whole(value: float | str | None) -> int:
    return value if isinstance(value, int) else 0


def boolean(items: Decoder) -> bool:
    """Read an answer that is yes or no."""
    return items.int32() != 0
