"""libvirt's remote protocol, as far as domains go: its numbers, structures and events. Pure.

The numbers never change, for a client of any version talks with a daemon of any other; go-libvirt
and libvirt's own old clients rely on that as panicd does.

Source: libvirt ``src/remote/remote_protocol.x`` (``REMOTE_PROC_…`` and ``struct remote_…``),
``src/remote/qemu_protocol.x``, ``include/libvirt/libvirt-domain.h``; the latter's names are those
of the enumerations here. libvirt 9.0's sources say since when each is there.
"""

import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from panicd.libvirt.errors import LibvirtRefusedError
from panicd.libvirt.wire import QEMU_PROGRAM, REMOTE_PROGRAM, Message
from panicd.libvirt.xdr import Decoder, XdrError, pack_int, pack_text
from panicd.rules.printable import escape

TEXT_MOST: Final = 4 << 20  # bytes: REMOTE_STRING_MAX
DOMAINS_MOST: Final = 16384  # REMOTE_DOMAIN_LIST_MAX
STATISTICS_MOST: Final = 262_144  # REMOTE_CONNECT_GET_ALL_DOMAIN_STATS_MAX
PEEK_MOST: Final = 4 << 20  # bytes: REMOTE_DOMAIN_MEMORY_PEEK_BUFFER_MAX
AUTH_TYPES_MOST: Final = 20  # REMOTE_AUTH_TYPE_LIST_MAX
JOB_FACTS_MOST: Final = 64  # REMOTE_DOMAIN_JOB_STATS_MAX
IO_THREADS_MOST: Final = 16384  # REMOTE_IOTHREAD_INFO_MAX
CPU_MAP_MOST: Final = 2048  # bytes: REMOTE_CPUMAP_MAX
MESSAGE_KEPT: Final = 400  # bytes of an error's text
UUID_LENGTH: Final = 16  # bytes: VIR_UUID_BUFLEN
NOT_RUNNING: Final = -1  # the id of a domain that does not run


class Procedure(IntEnum):
    """Calls (``enum remote_procedure``)."""

    CONNECT_OPEN = 1
    DOMAIN_GET_XML_DESC = 14
    DOMAIN_LOOKUP_BY_ID = 22
    DOMAIN_LOOKUP_BY_UUID = 24
    DOMAIN_RESUME = 28
    DOMAIN_SUSPEND = 34
    CONNECT_SUPPORTS_FEATURE = 60
    AUTH_LIST = 66
    AUTH_POLKIT = 70
    DOMAIN_MEMORY_PEEK = 104
    CONNECT_GET_LIB_VERSION = 157
    DOMAIN_ABORT_JOB = 164
    DOMAIN_CREATE_WITH_FLAGS = 196
    DOMAIN_SCREENSHOT = 211
    DOMAIN_GET_STATE = 212
    DOMAIN_GET_CONTROL_INFO = 229
    DOMAIN_DESTROY_FLAGS = 234
    DOMAIN_RESET = 245
    DOMAIN_SET_METADATA = 264
    DOMAIN_GET_METADATA = 265
    CONNECT_LIST_ALL_DOMAINS = 273
    DOMAIN_GET_JOB_STATS = 298
    CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY = 316
    DOMAIN_EVENT_CALLBACK_LIFECYCLE = 318
    DOMAIN_EVENT_CALLBACK_REBOOT = 319
    DOMAIN_CORE_DUMP_WITH_FORMAT = 334
    CONNECT_GET_ALL_DOMAIN_STATS = 344
    DOMAIN_GET_IOTHREAD_INFO = 351
    DOMAIN_EVENT_CALLBACK_METADATA_CHANGE = 379
    DOMAIN_SET_LIFECYCLE_ACTION = 390


class QemuProcedure(IntEnum):
    """Calls of QEMU's driver alone (``enum qemu_procedure``)."""

    DOMAIN_MONITOR_COMMAND = 1
    DOMAIN_AGENT_COMMAND = 3
    CONNECT_DOMAIN_MONITOR_EVENT_REGISTER = 4
    DOMAIN_MONITOR_EVENT = 6


class EventId(IntEnum):
    """Kinds of events that a client can ask for (``virDomainEventID``)."""

    LIFECYCLE = 0
    REBOOT = 1
    METADATA_CHANGE = 23


class State(IntEnum):
    """How a domain stands (``virDomainState``)."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class EventKind(IntEnum):
    """What happened to a domain (``virDomainEventType``)."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


class StoppedDetail(IntEnum):
    """How a domain ended (``virDomainEventStoppedDetailType``)."""

    SHUTDOWN = 0
    DESTROYED = 1
    CRASHED = 2
    MIGRATED = 3
    SAVED = 4
    FAILED = 5
    FROM_SNAPSHOT = 6


class CrashedDetail(IntEnum):
    """What crashed (``virDomainEventCrashedDetailType``); CRASHLOADED since libvirt 6.1."""

    PANICKED = 0
    CRASHLOADED = 1


class LifecycleAction(IntEnum):
    """What libvirt does by itself (``virDomainLifecycleAction``)."""

    DESTROY = 0
    RESTART = 1
    RENAME_RESTART = 2
    PRESERVE = 3
    COREDUMP_DESTROY = 4
    COREDUMP_RESTART = 5


class DumpFormat(IntEnum):
    """The format of a dump (``virDomainCoreDumpFormat``)."""

    RAW = 0  # ELF
    KDUMP_ZLIB = 1
    KDUMP_LZO = 2
    KDUMP_SNAPPY = 3


PANICKED: Final = 1  # the reason of State.CRASHED (virDomainCrashedReason)


@dataclass(frozen=True, slots=True)
class DomainRef:
    """A domain, as libvirt names it.

    Attributes:
        name: its name.
        uuid: its UUID in lower case. libvirt itself goes by this alone.
        id: its number, new at each start; ``NOT_RUNNING``: it does not run.
    """

    name: str
    uuid: str
    id: int

    def pack(self) -> bytes:
        """Return ``remote_nonnull_domain``."""
        return pack_text(self.name) + uuids.UUID(self.uuid).bytes + pack_int(self.id)


@dataclass(frozen=True, slots=True)
class DomainState:
    """How a domain stands, and why: ``State`` and its reason."""

    state: int
    reason: int

    @property
    def panicked(self) -> bool:
        """Whether the guest has panicked, and libvirt has left it as it is."""
        return self.state == State.CRASHED and self.reason == PANICKED


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What happened to a domain: ``EventKind`` and its detail."""

    domain: DomainRef
    event: int
    detail: int


@dataclass(frozen=True, slots=True)
class Rebooted:
    """Somebody has reset the guest; libvirt does not say who."""

    domain: DomainRef


@dataclass(frozen=True, slots=True)
class MetadataChanged:
    """Somebody has changed a domain's metadata, of the XML namespace ``uri``."""

    domain: DomainRef
    type: int
    uri: str


@dataclass(frozen=True, slots=True)
class QemuEvent:
    """An event of a domain's QEMU.

    Attributes:
        domain: whose QEMU.
        name: the event's in QAPI.
        at: when, by QEMU's own word; seconds since the epoch.
        details: the event's data, as JSON; empty if it has none.
    """

    domain: DomainRef
    name: str
    at: float
    details: str


Event = Lifecycle | Rebooted | MetadataChanged | QemuEvent


def read_domain(items: Decoder) -> DomainRef:
    """Read ``remote_nonnull_domain``."""
    name, uuid = items.text(TEXT_MOST), items.fixed(UUID_LENGTH).hex()
    dashed = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
    return DomainRef(name, dashed, items.int32())


def read_text(items: Decoder) -> str:
    """Read a string."""
    return items.text(TEXT_MOST)


def read_optional_text(items: Decoder) -> str:
    """Read a string that may be missing; then return an empty one."""
    return items.optional(lambda: items.text(TEXT_MOST)) or ""


def read_error(payload: bytes) -> LibvirtRefusedError:
    """Read why libvirt refused a call (``struct remote_error``).

    Raises:
        XdrError: the payload is no such error.
    """
    items = Decoder(payload)
    code, _origin = items.int32(), items.int32()
    return LibvirtRefusedError(
        code, escape(read_optional_text(items), MESSAGE_KEPT) or "it says no"
    )


def read_event(message: Message) -> Event | None:
    """Read an event; None if the message is no event that panicd listens to.

    Raises:
        XdrError: the event makes no sense.
    """
    items = Decoder(message.payload)
    event: Event
    match message.program, message.procedure:
        case (program, Procedure.DOMAIN_EVENT_CALLBACK_LIFECYCLE) if program == REMOTE_PROGRAM:
            _callback = items.int32()
            event = Lifecycle(read_domain(items), items.int32(), items.int32())
        case (program, Procedure.DOMAIN_EVENT_CALLBACK_REBOOT) if program == REMOTE_PROGRAM:
            _callback = items.int32()
            event = Rebooted(read_domain(items))
        case (program, Procedure.DOMAIN_EVENT_CALLBACK_METADATA_CHANGE) if (
            program == REMOTE_PROGRAM
        ):
            _callback = items.int32()
            event = MetadataChanged(read_domain(items), items.int32(), read_optional_text(items))
        case (program, QemuProcedure.DOMAIN_MONITOR_EVENT) if program == QEMU_PROGRAM:
            _callback = items.int32()
            domain, name = read_domain(items), read_text(items)
            at = items.int64() + items.uint32() / 1e6
            event = QemuEvent(domain, name, at, read_optional_text(items))
        case _:
            return None
    items.end()
    return event


_NUMBERS: Final[dict[int, Callable[[Decoder], int | float]]] = {
    1: Decoder.int32,
    2: Decoder.uint32,
    3: Decoder.int64,
    4: Decoder.uint64,
    5: Decoder.double,
    6: Decoder.int32,  # a boolean
}
_STRING: Final = 7


def read_typed(items: Decoder) -> tuple[str, int | float | str]:
    """Read a name and a value (``remote_typed_param``; its types: ``virTypedParameterType``)."""
    name, kind = items.text(TEXT_MOST), items.int32()
    if kind == _STRING:
        return name, items.text(TEXT_MOST)
    if kind not in _NUMBERS:
        raise XdrError(f"a value of type {kind}")
    return name, _NUMBERS[kind](items)
