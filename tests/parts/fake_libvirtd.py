"""A libvirtd that runs nothing: it speaks libvirt's RPC, and has every fault that a test asks for.

What it answers is what libvirt 9.0 was seen to answer: the contract tests run on both.
"""

from __future__ import annotations

import math
import os
import struct
import uuid as uuids
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import trio

from panicd.libvirt.errors import ErrorCode
from panicd.libvirt.protocol import (
    DomainRef,
    EventId,
    EventKind,
    LifecycleAction,
    Procedure,
    QemuProcedure,
    State,
    read_domain,
)
from panicd.libvirt.wire import (
    KEEPALIVE_PROGRAM,
    PING,
    PONG,
    QEMU_PROGRAM,
    REMOTE_PROGRAM,
    Incoming,
    Kind,
    Message,
    Status,
)
from panicd.libvirt.xdr import (
    Decoder,
    pack_int,
    pack_opaque,
    pack_optional_text,
    pack_text,
    pack_uint,
)
from tests.parts.dump_files import Dump

PICTURE: Final = b"\x89PNG\r\n\x1a\n" + bytes(300_000)
PIECE: Final = 262_120  # bytes of a stream that libvirtd sends at once
VERSION: Final = 9_000_000
MONITOR: Final = (
    "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<q:arg value='-chardev'/><q:arg value='socket,id=panicd,path={path},server=on,wait=off'/>"
    "<q:arg value='-mon'/><q:arg value='chardev=panicd,mode=control'/></q:commandline>"
)
ON_CRASH: Final = {action: action.name.lower().replace("_", "-") for action in LifecycleAction}


_BY_QEMU: Final = {
    Procedure.DOMAIN_RESET,
    Procedure.DOMAIN_RESUME,
    Procedure.DOMAIN_SUSPEND,
    Procedure.DOMAIN_GET_IOTHREAD_INFO,
    Procedure.DOMAIN_SCREENSHOT,
    Procedure.DOMAIN_MEMORY_PEEK,
}


class RefusedError(Exception):
    """What the fake says no with."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class FakeDomain:
    """A domain that the fake has. ``id`` is -1 where it does not run; ``inside``: further XML."""

    name: str
    id: int
    uuid: str = field(default_factory=lambda: str(uuids.uuid4()))
    state: tuple[int, int] = (State.RUNNING, 1)
    on_crash: str = "restart"
    metadata: dict[str, str] = field(default_factory=dict)
    inside: str = "<devices><panic model='isa'/></devices>"
    memory: bytes = b"\x7f" * 65536

    @property
    def ref(self) -> DomainRef:
        """How it is named in messages."""
        return DomainRef(self.name, self.uuid, self.id)

    @property
    def xml(self) -> str:
        """What describes it, in short."""
        metadata = "".join(
            element.replace("<policy ", f"<p:policy xmlns:p='{uri}' ", 1)
            for uri, element in self.metadata.items()
        )
        return (
            f"<domain type='qemu' id='{self.id}'><name>{self.name}</name><uuid>{self.uuid}</uuid>"
            f"<metadata>{metadata}</metadata><on_crash>{self.on_crash}</on_crash>"
            f"{self.inside}</domain>"
        )


@dataclass
class Faults:
    """What is wrong with it.

    Attributes:
        hangs: procedures that it never answers.
        qemu_hangs: domains of which it answers nothing that takes their QEMU.
        lies: what stands in place of an answer, by procedure.
        refuses: why it says no, by procedure.
        raw: makes of a message's bytes what is written.
        dies_after: a procedure that it carries out, and ends with.
        streams_first: a stream begins before the answer of the call that has started it.
        piece: bytes that are written at once; 0: all.
        auth: how one has to prove who one is (``REMOTE_AUTH_…``).
        polkit: whether polkit lets one in.
        qemu_events: whether QEMU's events may be had.
    """

    hangs: set[int] = field(default_factory=set)
    qemu_hangs: set[str] = field(default_factory=set)
    lies: dict[int, bytes] = field(default_factory=dict)
    refuses: dict[int, str] = field(default_factory=dict)
    raw: Callable[[bytes], bytes] = lambda message: message
    dies_after: int | None = None
    streams_first: bool = False
    piece: int = 0
    auth: int = 0
    polkit: bool = True
    qemu_events: bool = True


class _Client:
    """One connection to the fake."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.outgoing, self.leaving = trio.open_memory_channel[bytes](math.inf)
        self.listens: set[int] = set()
        self.listens_to_qemu = False
        self.under_way = 0


class FakeLibvirtd:
    """A libvirtd, made by ``start``.

    Attributes:
        uri: where it is reached.
        domains: what it has.
        faults: what is wrong with it.
        told: how often it was told what, by procedure.
        job: what it is busy with of every domain: ``virDomainJobType``, ``virDomainJobOperation``.
        most_under_way: calls of one connection that were not answered at the same time.
    """

    def __init__(self, socket: Path, domains: list[FakeDomain]) -> None:
        self.uri = f"qemu:///system?socket={socket}"
        self.domains = domains
        self.faults = Faults()
        self.told: Counter[int] = Counter()
        self.most_under_way = 0
        self.opened: list[str] = []
        self.job = (0, 0)
        self._ids = count(1 + max(each.id for each in domains))
        self._clients: list[_Client] = []
        self._hung: list[tuple[_Client, Message]] = []
        self._awake = trio.Event()
        self._awake.set()
        self._answers: dict[int, Callable[[Decoder], bytes]] = {
            Procedure.AUTH_LIST: lambda _items: pack_uint(1) + pack_int(self.faults.auth),
            Procedure.AUTH_POLKIT: self._polkit,
            Procedure.CONNECT_SUPPORTS_FEATURE: lambda _items: pack_int(1),
            Procedure.CONNECT_GET_LIB_VERSION: lambda _items: struct.pack(">Q", VERSION),
            Procedure.CONNECT_LIST_ALL_DOMAINS: self._list,
            Procedure.CONNECT_GET_ALL_DOMAIN_STATS: self._states,
            Procedure.DOMAIN_LOOKUP_BY_ID: self._look_up_id,
            Procedure.DOMAIN_LOOKUP_BY_UUID: self._look_up,
            Procedure.DOMAIN_GET_STATE: lambda items: struct.pack(">2i", *self._of(items).state),
            Procedure.DOMAIN_GET_XML_DESC: lambda items: pack_text(self._of(items).xml),
            Procedure.DOMAIN_GET_CONTROL_INFO: lambda _items: struct.pack(">IIQ", 0, 0, 0),
            Procedure.DOMAIN_GET_JOB_STATS: self._job,
            Procedure.DOMAIN_GET_IOTHREAD_INFO: lambda _items: pack_uint(0) + pack_uint(0),
            Procedure.DOMAIN_RESET: self._reset,
            Procedure.DOMAIN_RESUME: self._resume,
            Procedure.DOMAIN_SUSPEND: self._suspend,
            Procedure.DOMAIN_DESTROY_FLAGS: self._destroy,
            Procedure.DOMAIN_CREATE_WITH_FLAGS: self._start_domain,
            Procedure.DOMAIN_SET_LIFECYCLE_ACTION: self._set_on_crash,
            Procedure.DOMAIN_GET_METADATA: self._metadata,
            Procedure.DOMAIN_SET_METADATA: self._set_metadata,
            Procedure.DOMAIN_MEMORY_PEEK: self._peek,
            Procedure.DOMAIN_SCREENSHOT: self._screenshot,
            Procedure.DOMAIN_ABORT_JOB: self._no_job,
        }

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, *domains: FakeDomain) -> AsyncIterator[FakeLibvirtd]:
        """Run one until this ends.

        Args:
            directory: for its socket; a short path.
            domains: what it has; one that runs where none are given.
        """
        path = directory / "libvirt-sock"
        async with trio.open_nursery() as nursery:
            listener = trio.socket.socket(trio.socket.AF_UNIX)
            await listener.bind(os.fspath(path))
            listener.listen(64)
            fake = cls(path, list(domains) or [FakeDomain("vm", 1)])
            serve = partial(trio.serve_listeners, fake._serve, [trio.SocketListener(listener)])
            await nursery.start(serve)
            try:
                yield fake
            finally:
                nursery.cancel_scope.cancel()
                path.unlink()

    # What a test does with it.

    def domain(self, name: str = "vm") -> FakeDomain:
        """Return a domain."""
        return next(each for each in self.domains if each.name == name)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it neither read nor write while this lasts, as by SIGSTOP."""
        self._awake = trio.Event()
        try:
            yield
        finally:
            self._awake.set()

    async def go_on(self) -> None:
        """Have all QEMUs go on that hang: what was asked of them is answered."""
        self.faults.hangs = set()
        hung, self._hung = self._hung, []
        for client, message in hung:
            client.under_way -= 1
            await self._take(client, message)

    async def end(self) -> None:
        """End all connections, as where it is killed."""
        clients, self._clients = self._clients, []
        for client in clients:
            await client.stream.aclose()

    def panic(self, name: str = "vm") -> None:
        """Have a guest panic, which libvirt preserves."""
        domain = self.domain(name)
        domain.state = State.CRASHED, 1
        self.say_panic(domain)
        self.say_lifecycle(domain, EventKind.CRASHED)

    def say_panic(self, domain: FakeDomain, *, stops: bool = True) -> None:
        """Tell what its QEMU says when a guest panics, before libvirt has taken that in."""
        self._say_qemu(domain, "GUEST_PANICKED", '{"action":"pause"}')
        if stops:
            self._say_qemu(domain, "STOP")

    def say_resume(self, domain: FakeDomain) -> None:
        """Tell what its QEMU says when a guest was reset and let run by somebody."""
        self._say_qemu(domain, "RESET", '{"guest":false,"reason":"host-qmp-system-reset"}')
        self._say_qemu(domain, "RESUME")

    def say_lifecycle(self, domain: FakeDomain, event: EventKind, detail: int = 0) -> None:
        """Tell who listens what has become of a domain."""
        self._say(domain, event, detail)

    def monitored(self, path: Path) -> FakeDomain:
        """Have the domain's XML name a monitor for panicd."""
        self.domain().inside += MONITOR.format(path=path)
        return self.domain()

    def say_metadata_changed(self, domain: FakeDomain, uri: str) -> None:
        """Tell who listens that somebody has changed a domain's metadata."""
        procedure = Procedure.DOMAIN_EVENT_CALLBACK_METADATA_CHANGE
        payload = pack_int(1) + domain.ref.pack() + pack_int(2) + pack_optional_text(uri)
        self.say(Message(REMOTE_PROGRAM, procedure, Kind.EVENT, 0, Status.OK, payload).pack())

    def say(self, message: bytes) -> None:
        """Send bytes to everybody."""
        for client in self._clients:
            client.outgoing.send_nowait(message)

    # Its work.

    async def _serve(self, stream: trio.SocketStream) -> None:
        client = _Client(stream)
        self._clients.append(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, client)
            await self._read(client)
            nursery.cancel_scope.cancel()
        if client in self._clients:
            self._clients.remove(client)

    async def _read(self, client: _Client) -> None:
        incoming = Incoming()
        while True:
            await self._awake.wait()
            try:
                data = await client.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            await self._awake.wait()
            for message in incoming.take(data):
                await self._take(client, message)
            if not data:
                return

    async def _take(self, client: _Client, message: Message) -> None:
        if message.program == KEEPALIVE_PROGRAM:
            assert message.procedure in {PING, PONG}
            if message.procedure == PING:
                pong = Message(KEEPALIVE_PROGRAM, PONG, Kind.EVENT, 0, Status.OK)
                client.outgoing.send_nowait(pong.pack())
            return
        procedure = message.procedure
        if message.kind == Kind.STREAM:  # its end is confirmed, or that it is not wanted
            self._reply(client, message, Kind.STREAM, Status.OK)
            return
        self.told[procedure] += 1
        client.under_way += 1
        self.most_under_way = max(self.most_under_way, client.under_way)
        if procedure in self.faults.hangs or self._qemu_hangs(message):
            self._hung.append((client, message))
            return
        try:
            payload = self._answer(client, message)
        except RefusedError as refused:
            client.under_way -= 1
            self._reply(client, message, Kind.REPLY, Status.ERROR, pack_error(refused))
            return
        if procedure == self.faults.dies_after:
            await self.end()
            return
        client.under_way -= 1
        payload = self.faults.lies.get(procedure, payload)
        streams_first = self.faults.streams_first and procedure == Procedure.DOMAIN_SCREENSHOT
        if not streams_first:
            self._reply(client, message, Kind.REPLY, Status.OK, payload)
        if procedure == Procedure.DOMAIN_SCREENSHOT:
            for at in range(0, len(PICTURE), PIECE):
                piece = PICTURE[at : at + PIECE]
                self._reply(client, message, Kind.STREAM, Status.CONTINUE, piece)
            self._reply(client, message, Kind.STREAM, Status.CONTINUE)
        if streams_first:
            self._reply(client, message, Kind.REPLY, Status.OK, payload)
        if procedure == Procedure.DOMAIN_RESET:
            self._say(self._of(Decoder(message.payload)), None)

    def _qemu_hangs(self, message: Message) -> bool:
        """Whether it is about a domain whose QEMU hangs, and takes that one."""
        by_qemu = message.program == REMOTE_PROGRAM and message.procedure in _BY_QEMU
        if not (self.faults.qemu_hangs and by_qemu):
            return False
        return self._of(Decoder(message.payload)).name in self.faults.qemu_hangs

    def _answer(self, client: _Client, message: Message) -> bytes:
        items = Decoder(message.payload)
        if message.program == QEMU_PROGRAM:
            if message.procedure != QemuProcedure.CONNECT_DOMAIN_MONITOR_EVENT_REGISTER:
                raise RefusedError(ErrorCode.NO_SUPPORT, "the fake has no such procedure")
            if not self.faults.qemu_events:
                raise RefusedError(ErrorCode.ACCESS_DENIED, "access denied")
            client.listens_to_qemu = True
            return pack_int(9)
        if why := self.faults.refuses.get(message.procedure):
            raise RefusedError(ErrorCode.OPERATION_FAILED, why)
        if message.procedure == Procedure.CONNECT_OPEN:
            self.opened.append(items.optional(lambda: items.text(100)) or "")
            return b""
        if message.procedure == Procedure.CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY:
            client.listens.add(items.int32())
            return pack_int(len(client.listens))
        if message.procedure == Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT:
            self._dump(items)
            return b""
        return self._answers[message.procedure](items)

    def _reply(
        self, client: _Client, to: Message, kind: Kind, status: Status, payload: bytes = b""
    ) -> None:
        said = Message(to.program, to.procedure, kind, to.serial, status, payload)
        client.outgoing.send_nowait(self.faults.raw(said.pack()))

    async def _write(self, client: _Client) -> None:
        async for data in client.leaving:
            piece = self.faults.piece or len(data)
            for at in range(0, len(data), piece):
                await self._awake.wait()
                try:
                    await client.stream.send_all(data[at : at + piece])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return

    def _say(self, domain: FakeDomain, event: EventKind | None, detail: int = 0) -> None:
        """Tell who listens what has become of a domain; None: it was rebooted."""
        kind = EventId.REBOOT if event is None else EventId.LIFECYCLE
        what = b"" if event is None else pack_int(event) + pack_int(detail)
        procedure = (
            Procedure.DOMAIN_EVENT_CALLBACK_REBOOT
            if event is None
            else Procedure.DOMAIN_EVENT_CALLBACK_LIFECYCLE
        )
        payload = pack_int(1) + domain.ref.pack() + what
        message = Message(REMOTE_PROGRAM, procedure, Kind.EVENT, 0, Status.OK, payload)
        for client in self._clients:
            if kind in client.listens:
                client.outgoing.send_nowait(message.pack())

    def _say_qemu(self, domain: FakeDomain, name: str, details: str | None = None) -> None:
        payload = pack_int(9) + domain.ref.pack() + pack_text(name)
        payload += struct.pack(">qI", 1_700_000_000, 250_000) + pack_optional_text(details)
        procedure = QemuProcedure.DOMAIN_MONITOR_EVENT
        message = Message(QEMU_PROGRAM, procedure, Kind.EVENT, 0, Status.OK, payload)
        for client in self._clients:
            if client.listens_to_qemu:
                client.outgoing.send_nowait(message.pack())

    # Procedures.

    def _of(self, items: Decoder) -> FakeDomain:
        asked = read_domain(items)
        for domain in self.domains:
            if domain.uuid == asked.uuid:
                return domain
        text = f"Domain not found: no domain with matching uuid '{asked.uuid}' ({asked.name})"
        raise RefusedError(ErrorCode.NO_DOMAIN, text)

    def _running(self, items: Decoder) -> FakeDomain:
        domain = self._of(items)
        if domain.id < 0:
            text = "Requested operation is not valid: domain is not running"
            raise RefusedError(ErrorCode.OPERATION_INVALID, text)
        return domain

    def _polkit(self, _items: Decoder) -> bytes:
        if not self.faults.polkit:
            raise RefusedError(ErrorCode.AUTH_FAILED, "authentication failed: access denied")
        return pack_int(1)

    def _list(self, items: Decoder) -> bytes:
        items.int32()
        flags = items.uint32()
        wanted = [each.ref for each in self.domains if flags & (1 if each.id >= 0 else 2)]
        return pack_uint(len(wanted)) + b"".join(ref.pack() for ref in wanted) + pack_uint(0)

    def _states(self, _items: Decoder) -> bytes:
        records = []
        for domain in self.domains:
            if domain.id >= 0:
                state, reason = domain.state
                facts = {"state.state": state, "state.reason": reason}
                typed = b"".join(
                    pack_text(name) + pack_int(1) + pack_int(value) for name, value in facts.items()
                )
                records.append(domain.ref.pack() + pack_uint(2) + typed)
        return pack_uint(len(records)) + b"".join(records)

    def _look_up_id(self, items: Decoder) -> bytes:
        number = items.int32()
        for domain in self.domains:
            if domain.id == number:
                return domain.ref.pack()
        raise RefusedError(ErrorCode.NO_DOMAIN, f"no domain with matching id {number}")

    def _look_up(self, items: Decoder) -> bytes:
        return self._of(Decoder(pack_text("") + items.fixed(16) + pack_int(-1))).ref.pack()

    def _reset(self, items: Decoder) -> bytes:
        domain = self._running(items)
        if domain.state[0] == State.CRASHED:
            domain.state = State.PAUSED, 10
        self._say_qemu(domain, "RESET", '{"guest":false,"reason":"host-qmp-system-reset"}')
        return b""

    def _resume(self, items: Decoder) -> bytes:
        domain = self._running(items)
        if domain.state[0] == State.RUNNING:
            text = "Requested operation is not valid: domain is already running"
            raise RefusedError(ErrorCode.OPERATION_INVALID, text)
        domain.state = State.RUNNING, 5
        self._say_qemu(domain, "RESUME")
        self._say(domain, EventKind.RESUMED, 0)
        return b""

    def _suspend(self, items: Decoder) -> bytes:
        domain = self._running(items)
        domain.state = State.PAUSED, 1
        self._say_qemu(domain, "STOP")
        self._say(domain, EventKind.SUSPENDED, 0)
        return b""

    def _destroy(self, items: Decoder) -> bytes:
        domain = self._running(items)
        domain.id, domain.state = -1, (State.SHUTOFF, 2)
        self._say(domain, EventKind.STOPPED, 1)
        return b""

    def _start_domain(self, items: Decoder) -> bytes:
        domain = self._of(items)
        if domain.id >= 0:
            text = "Requested operation is not valid: domain is already running"
            raise RefusedError(ErrorCode.OPERATION_INVALID, text)
        domain.id = next(self._ids)
        domain.state = State.RUNNING, 1
        self._say(domain, EventKind.STARTED, 0)
        return domain.ref.pack()

    def _set_on_crash(self, items: Decoder) -> bytes:
        domain = self._running(items)
        assert items.uint32() == 2, "the action on a crash is meant"
        domain.on_crash = ON_CRASH[LifecycleAction(items.uint32())]
        return b""

    def _metadata(self, items: Decoder) -> bytes:
        domain = self._of(items)
        items.int32()
        uri = items.optional(lambda: items.text(100)) or ""
        if uri not in domain.metadata:
            text = "metadata not found: Requested metadata element is not present"
            raise RefusedError(ErrorCode.NO_DOMAIN_METADATA, text)
        return pack_text(domain.metadata[uri])

    def _set_metadata(self, items: Decoder) -> bytes:
        domain = self._of(items)
        items.int32()
        element, _key, uri = (items.optional(lambda: items.text(4096)) for _ in range(3))
        if element is None:
            domain.metadata.pop(uri or "", None)
        else:
            domain.metadata[uri or ""] = element
        return b""

    def _peek(self, items: Decoder) -> bytes:
        domain = self._running(items)
        (at,) = struct.unpack(">Q", items.fixed(8))
        return pack_opaque(domain.memory[at : at + items.uint32()])

    def _dump(self, items: Decoder) -> None:
        self._running(items)
        dump = Dump(fd=-1, kind="elf", memory=4096, detached=False, resumes=False)
        Path(items.text(4096)).write_bytes(b"".join(dump.chunks()))

    def _screenshot(self, items: Decoder) -> bytes:
        self._running(items)
        return pack_uint(1) + pack_text("image/png")

    def _job(self, items: Decoder) -> bytes:
        self._running(items)
        kind, operation = self.job
        typed = pack_text("operation") + pack_int(1) + pack_int(operation)
        return pack_int(kind) + (pack_uint(1) + typed if kind else pack_uint(0))

    def _no_job(self, items: Decoder) -> bytes:
        self._running(items)
        text = "Requested operation is not valid: no job is active on the domain"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text)


def pack_error(refused: RefusedError) -> bytes:
    """Return ``remote_error``."""
    origin, level = 10, 2
    head = struct.pack(">2i", refused.code, origin)
    nobody = pack_uint(0)
    texts = pack_optional_text("%s") + pack_optional_text(None) * 2
    return (
        head
        + pack_optional_text(str(refused))
        + pack_int(level)
        + nobody
        + texts
        + pack_int(-1) * 2
        + nobody
    )
