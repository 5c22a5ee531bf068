"""One connection to a libvirtd, on trio.

One task reads it, one writes what the socket would not take at once. A call is a plain function
call that returns as soon as the request is sent. The answer comes by a callback, in the turn of the
loop in which it is read. No call has a task, and nothing here waits for an answer.

libvirtd serves five calls of a connection at a time, the one that it is reading included
(``max_client_requests``, libvirtd.conf). It reads nothing more until one is done, not even a
keepalive. So at most ``UNDER_WAY_MOST`` calls are under way. A call that nobody waits for any more
still counts until libvirtd answers it.
"""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import trio

from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtError,
    LibvirtLostError,
    LibvirtSilentError,
)
from panicd.libvirt.protocol import Event, read_error, read_event
from panicd.libvirt.requests import Request
from panicd.libvirt.wire import (
    KEEPALIVE_PROGRAM,
    PING,
    PONG,
    Incoming,
    Kind,
    Message,
    Status,
)
from panicd.libvirt.xdr import Decoder, XdrError

T = TypeVar("T")

UNDER_WAY_MOST: Final = 4
CHUNK: Final = 1 << 18  # bytes received at once
UNREAD_MOST: Final = 1 << 20  # bytes that a libvirtd may leave unread; calls are few and small
QUIET: Final = 2.0
"""Seconds without a word after which panicd asks libvirtd whether it is there. After as many again
libvirtd is silent. It was seen to answer in 0.1 ms, by a thread that waits for no QEMU."""
_SERIAL_MOST: Final = (1 << 32) - 1
_CREDENTIALS: Final = struct.Struct("3i")


class Call:
    """A call that was sent.

    Args:
        request: the question.
        done: gets, once, the answer or a ``LibvirtError``, when libvirtd is through with the call.
        take: gets the bytes of the stream, if the call starts one.

    Attributes:
        answer: what ``done`` gets when libvirtd is through with the call.
        is_answered: the answer has come; the call's stream may end before or after it.
        is_at_end: the stream has ended.
        is_unwanted: ``take`` gets nothing more of the stream.
    """

    __slots__ = ("answer", "done", "is_answered", "is_at_end", "is_unwanted", "request", "take")

    def __init__(
        self,
        request: Request[object],
        done: Callable[[object], None],
        take: Callable[[bytes], None] | None,
    ) -> None:
        self.request = request
        self.done = done
        self.take = take
        self.is_answered = False
        self.is_at_end = take is None
        self.is_unwanted = False
        self.answer: object = None


class Awaited:
    """An answer that a task waits for."""

    def __init__(self) -> None:
        self._is_there = trio.Event()
        self._answer: object = None

    def tell(self, answer: object) -> None:
        """Pass on the answer, or a ``LibvirtError``."""
        self._answer = answer
        self._is_there.set()

    async def get(self) -> object:
        """Wait for the answer.

        Raises:
            LibvirtError: it came in place of an answer.
        """
        await self._is_there.wait()
        if isinstance(self._answer, LibvirtError):
            raise self._answer
        return self._answer


@dataclass(frozen=True, slots=True)
class Credentials:
    """The process that listens at the other end, by the kernel's word (SO_PEERCRED, unix(7)).

    Attributes:
        pid: its number: systemd's, if systemd listens for libvirtd.
        uid: its user.
    """

    pid: int
    uid: int


class Connection:
    """A connection; ``run`` keeps it going.

    Args:
        sock: connected and non-blocking; ``run`` closes it.
        heard: gets each event.
        changed: called when ``is_silent`` or ``has_ended`` has changed.

    Attributes:
        is_silent: panicd asked libvirtd whether it is there, and libvirtd said nothing.
        has_ended: nothing can be sent any more.
        problem: why it ended.
        peer: who listens at the other end.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[Event], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._sock = sock
        self._heard = heard
        self._changed = changed
        self._incoming = Incoming()
        self._calls: dict[int, Call] = {}
        self._serial = 0
        self._unwritten = bytearray()
        self._has_unwritten = trio.Event()
        self._gathers = False  # messages, to write them at once
        self._broken = ""  # why nothing can be written any more
        self._quiet = 0  # turns of ``QUIET`` without a word
        self._reading = trio.CancelScope()
        self.is_silent = False
        self.has_ended = False
        self.problem = ""
        said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(said)
        self.peer = Credentials(pid, uid)

    @property
    def answers(self) -> bool:
        """Whether libvirtd is likely to answer a request that is sent now."""
        return not (self.has_ended or self.is_silent or self._broken)

    @property
    def under_way(self) -> int:
        """How many calls libvirtd has not answered yet."""
        return len(self._calls)

    def call(
        self,
        request: Request[object],
        done: Callable[[object], None],
        take: Callable[[bytes], None] | None = None,
    ) -> Call:
        """Send a call; the caller keeps at most ``UNDER_WAY_MOST`` calls under way.

        Args:
            request: the question.
            done: gets, once, the answer or a ``LibvirtError``; perhaps before this returns.
            take: gets the bytes of the stream that the call starts, before ``done``.
        """
        call = Call(request, done, take)
        if self.has_ended or self._broken:
            done(LibvirtAwayError(f"{request.name}: {self.problem or self._broken}"))
            return call
        self._serial = self._serial % _SERIAL_MOST + 1
        self._calls[self._serial] = call
        message = Message(
            request.program,
            request.procedure,
            Kind.CALL,
            self._serial,
            Status.OK,
            request.arguments,
        )
        self._send(message)
        return call

    async def execute(self, request: Request[T], *, timeout: float) -> T:
        """Send a call, and wait for its answer.

        Raises:
            LibvirtError: there is no answer, or not in time.
        """
        awaited = Awaited()
        self.call(request, awaited.tell)
        with trio.move_on_after(timeout):
            return cast("T", await awaited.get())
        raise LibvirtSilentError(f"{request.name}: no answer within {timeout:g} s")

    def give_up(self, call: Call) -> None:
        """Pass on nothing more of the stream that a call starts."""
        call.is_unwanted = True
        for serial, each in self._calls.items():
            if each is call and call.is_answered:
                self._send_piece(call, serial, Status.ERROR)
                break

    def abort(self, problem: str) -> None:
        """End the connection at once."""
        if not self.has_ended:
            self.has_ended, self.problem = True, problem
            self._reading.cancel()
            calls, self._calls = self._calls, {}
            self._changed()
            for call in calls.values():
                call.done(LibvirtLostError(f"{call.request.name}: {problem}"))

    async def run(self) -> None:
        """Read and write until the connection ends, or this is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                with self._reading:
                    await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.abort("the connection was given up")
            self._sock.close()

    # Reading.

    async def _read(self) -> None:
        while True:
            with trio.move_on_after(QUIET) as waited:
                await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(CHUNK)
            except BlockingIOError:
                if self._broken:
                    self.abort(self._broken)
                    return
                if waited.cancelled_caught:
                    self._note_quiet()
                continue
            except OSError as error:
                self.abort(f"the connection ended: {error.strerror}")
                return
            if not data:
                self.abort("libvirtd has ended the connection")
                return
            self._note_word()
            try:
                for message in self._incoming.take(data):
                    self._take(message)
                    if self.has_ended:
                        return
            except XdrError as error:
                self.abort(f"libvirtd makes no sense: {error}")

    def _take(self, message: Message) -> None:
        if message.program == KEEPALIVE_PROGRAM:
            if message.procedure == PING:
                self._send(Message(KEEPALIVE_PROGRAM, PONG, Kind.EVENT, 0, Status.OK))
        elif message.kind == Kind.EVENT:
            event = read_event(message)
            if event is not None:
                self._heard(event)
        elif message.kind == Kind.REPLY:
            self._take_reply(message)
        elif message.kind == Kind.STREAM:
            self._take_piece(message)
        else:
            raise XdrError(f"a message of kind {message.kind}")

    def _take_reply(self, message: Message) -> None:
        call = self._calls.get(message.serial)
        if call is None or call.is_answered or call.request.procedure != message.procedure:
            raise XdrError("an answer to what was not asked")
        if message.status == Status.ERROR:
            self._end(message.serial, read_error(message.payload))
        elif message.status == Status.OK:
            items = Decoder(message.payload)
            answer = call.request.read(items)
            items.end()
            call.is_answered = True
            if call.answer is None:  # the stream has not failed before
                call.answer = answer
            if call.is_at_end:
                self._end(message.serial, call.answer)
            elif call.is_unwanted:
                self._send_piece(call, message.serial, Status.ERROR)
        else:
            raise XdrError("an answer that is to be continued")

    def _take_piece(self, message: Message) -> None:
        """Take a piece of a stream; an empty piece is the stream's end, which both sides confirm.

        libvirtd may send a piece before the answer of the call that has started the stream.
        """
        call = self._calls.get(message.serial)
        if call is None or call.take is None or call.is_at_end:
            raise XdrError("a piece of what was not asked for")
        if message.status != Status.CONTINUE:
            if message.status == Status.ERROR:
                call.answer = read_error(message.payload)
            call.is_at_end = True
            if call.is_answered:
                self._end(message.serial, call.answer)
        elif not call.is_unwanted:
            if message.payload:
                call.take(message.payload)
            else:
                self._send_piece(call, message.serial, Status.OK)

    def _send_piece(self, call: Call, serial: int, status: Status) -> None:
        """Tell libvirtd that a stream is at its end (OK), or unwanted (ERROR)."""
        request = call.request
        self._send(Message(request.program, request.procedure, Kind.STREAM, serial, status))

    def _end(self, serial: int, answer: object) -> None:
        self._calls.pop(serial).done(answer)

    # Whether it is there.

    def _note_quiet(self) -> None:
        """Note that libvirtd said nothing while panicd was awake and would have heard it."""
        self._quiet += 1
        self._send(Message(KEEPALIVE_PROGRAM, PING, Kind.EVENT, 0, Status.OK))
        if self._quiet > 1 and not self.is_silent:
            self.is_silent = True
            self._changed()

    def _note_word(self) -> None:
        self._quiet = 0
        if self.is_silent:
            self.is_silent = False
            self._changed()

    # Writing.

    def _send(self, message: Message) -> None:
        if self._broken:
            return
        self._unwritten += message.pack()
        if not (self._gathers or self._has_unwritten.is_set()):
            self._write_some()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all messages of this block at once."""
        before, self._gathers = self._gathers, True
        try:
            yield
        finally:
            self._gathers = before
            if self._unwritten and not (before or self.has_ended or self._has_unwritten.is_set()):
                self._write_some()

    def _write_some(self) -> None:
        """Write what the socket takes at once, and the rest when it takes more.

        A connection that takes nothing more is read to its end: libvirtd may have sent events
        before it went away.
        """
        try:
            del self._unwritten[: self._sock.send(self._unwritten)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken = f"the connection ended: {error.strerror}"
        if len(self._unwritten) > UNREAD_MOST:
            self._broken = "libvirtd reads nothing"
        if self._broken:
            self._unwritten.clear()
        if self._unwritten:
            self._has_unwritten.set()
        else:
            self._has_unwritten = trio.Event()

    async def _write(self) -> None:
        while True:
            await self._has_unwritten.wait()
            await trio.lowlevel.wait_writable(self._sock)
            self._write_some()
