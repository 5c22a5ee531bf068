"""One QMP session. Only this file touches asyncio and qemu.qmp.

qemu.qmp runs on asyncio, panicd on trio; ``trio_asyncio`` joins them. Functions here are trio
flavoured unless their name ends in ``_aio``. A step from one to the other takes longer than a
command does. So qemu.qmp only opens and ends a session. In between, panicd writes commands and
reads lines on trio's side; from the first senseless line on, qemu.qmp reads again.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import trio

# trio-asyncio 0.16 derives from two classes that Python 3.14 made private or dropped
# ("What's New In Python 3.14"). panicd starts no process through asyncio: it needs the names only.
if not hasattr(asyncio.events, "BaseDefaultEventLoopPolicy"):
    _policy = vars(asyncio.events)["_BaseDefaultEventLoopPolicy"]
    setattr(asyncio.events, "BaseDefaultEventLoopPolicy", _policy)  # noqa: B010 - unknown to mypy
if not hasattr(asyncio, "AbstractChildWatcher"):
    setattr(asyncio, "AbstractChildWatcher", object)  # noqa: B010 - as above

import trio_asyncio
from qemu.qmp import QMPClient, QMPError
from qemu.qmp.message import Message
from qemu.qmp.models import ErrorResponse
from qemu.qmp.protocol import Runstate

from panicd.qemu.callbacks import Callbacks
from panicd.qemu.event_outlet import EventOutlet
from panicd.qemu.exchange import Command, Exchange, answers_to
from panicd.qemu.guard import Guard
from panicd.qemu.limits import after
from panicd.qemu.line_reader import Stream, streams
from panicd.qemu.monitor_error import (
    PRETTY,
    CommandError,
    MonitorError,
    NoReplyError,
    SessionLostError,
    SilentError,
    UncertainError,
    UnreachableError,
)
from panicd.qemu.monitor_error import cause as _cause
from panicd.qemu.other_end import hide_senders
from panicd.qemu.pace import Pace
from panicd.qemu.pending import Question
from panicd.qemu.tokens import LENGTH, Tokens, short
from panicd.rules.capability import Version
from panicd.rules.foreign_json import is_too_nested
from panicd.rules.qapi import MAX_TEXT, parse_event, parse_version

__all__ = [
    "Command",
    "CommandError",
    "Monitor",
    "MonitorError",
    "NoReplyError",
    "SessionLostError",
    "SilentError",
    "UncertainError",
    "UnreachableError",
    "event_loop",
    "open_monitor",
    "pulse",
]

# QEMU reads commands byte by byte, a byte in 3 us (QEMU ``monitor/monitor.c``,
# ``monitor_can_read``): so they have no spaces, and short ids.
_TOKENS: Final = Tokens(short)
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))
_JSON_AT: Final = json.JSONDecoder().raw_decode
_BLANKS: Final = b" \t\r\n"  # around JSON (RFC 8259, 2)
AT_ONCE: Final = 32  # commands that are sent together, at most
_PLACES: Final = {str(place): place for place in range(AT_ONCE)}

UNREAD: Final = 1 << 16  # bytes of commands that a QEMU may leave unread; panicd sends few
NO_FD: Final = -1
READ_LIMIT: Final = 1 << 20  # bytes of a line; QEMU's longest answer to panicd has 4 KiB

# Exceptions of qemu.qmp 0.0.6 when the other end talks nonsense: not only QMPError. Its own
# AssertionErrors come from bad data during the negotiation.
_NONSENSE: Final = (QMPError, EOFError, OSError, ValueError, RecursionError, AssertionError)


class _Client(QMPClient):
    """qemu.qmp's client; hands over messages at once, and its end to an event buffer."""

    def __init__(self, buffer: EventOutlet, sock: socket.socket) -> None:
        super().__init__(readbuflen=READ_LIMIT)
        self.pace = Pace()
        self.stream = Stream(sock, READ_LIMIT, self.pace)
        self.answered_by: int | None = None
        self._buffer = buffer
        self._negotiation = ""  # its answer's id, which nobody can guess
        self.begins_pretty = False  # its greeting goes over many lines
        self._is_handed_over = False  # lines go to ``_take_line``
        self._read_at = 0.0  # the last line; 0.0: none yet
        self._sent: dict[str, Question] = {}  # by what the answers' ids begin with
        self._alone: Question | None = None  # QEMU has not yet taken its descriptor
        self._held: list[tuple[Sequence[Command], Question, int]] = []  # until it has

    def send(self, commands: Sequence[Command], answers: Question, fd: int = NO_FD) -> None:
        """Send commands; each answer goes to its place in ``answers``.

        A command that takes a descriptor is sent alone: later commands wait for its answer. QEMU's
        monitor reads in one thread, and takes the descriptor in another. QEMU 10.0.13 was seen to
        crash when both happened at once (``tcp_chr_recv``).
        """
        if self._alone is not None:
            self._held.append((commands, answers, fd))
            return
        if self.runstate is not Runstate.RUNNING:
            for index, (name, _) in enumerate(commands):
                answers.put(index, SessionLostError(f"{name}: not sent, the session has ended"))
            return
        # An id that nobody can guess: so no answer was written before the question was read.
        token = _TOKENS.next()
        messages = []
        for index, (name, arguments) in enumerate(commands):
            with_arguments = f',"arguments":{_COMPACT.encode(arguments)}' if arguments else ""
            messages.append(f'{{"execute":"{name}","id":"{token}{index}"{with_arguments}}}')
        self._sent[token] = answers
        answers.sent(token, self.forget)
        self.pace.hurried = True  # the answers come behind all panics that are not yet read
        data = "".join(messages).encode()
        try:
            if fd == NO_FD:
                self.stream.send(data)
            else:
                self.stream.send_fd(fd, data)
                self._alone = answers
        except OSError as error:
            if fd == NO_FD:
                self.abort()
            else:
                lost = f"{commands[0][0]}: could not hand over the file: {error}"
                answers.put(0, SessionLostError(lost))
        if len(self.stream.unsent) > UNREAD:
            self.abort()

    def forget(self, question: Question) -> None:
        """Wait no more for the answers to commands."""
        self._sent.pop(question.token, None)
        self.pace.hurried = bool(self._sent)
        if self._alone is not None and self._alone.is_over:
            self._send_held()

    def _send_held(self) -> None:
        """Send the commands that waited for QEMU to take a descriptor."""
        self._alone, held, self._held = None, self._held, []
        for commands, answers, fd in held:
            if not answers.is_over:
                self.send(commands, answers, fd)

    def _session_guard(self, emsg: str) -> Guard:  # type: ignore[override]  # no generator
        return Guard(partial(super()._session_guard, emsg))

    @classmethod
    def make_execute_msg(cls, cmd: str, arguments: object = None, oob: bool = False) -> Message:
        """Return a command that is not in writing yet: it gets its id first."""
        execute = "exec-oob" if oob else "execute"
        return Message({execute: cmd, "arguments": arguments or {}}, eager=False)

    async def _do_connect(self, *_: object) -> None:
        """Take the socket, which is connected: trio reads and writes it."""
        self._set_state(Runstate.CONNECTING)

    def _do_send(self, msg: Message) -> None:
        self.stream.send(bytes(msg))

    async def _bh_recv_message(self) -> None:
        if not self._is_handed_over:
            self._is_handed_over = True
            hide_senders(self.stream.sock)
            refused = asyncio.get_running_loop().create_future()
            self.stream.hand_over(self._take_line, partial(_tell, refused))
            await refused  # the refused line, and the rest, are left to qemu.qmp
        await super()._bh_recv_message()

    def _take_line(self, line: bytes) -> bool:
        if is_too_nested(line):
            return False
        try:
            text = line.strip(_BLANKS).decode()
            message, end = _JSON_AT(text, 0)
        except ValueError:
            return False
        if end != len(text):
            return False
        return isinstance(message, dict) and self._hear(message)

    def _hear(self, message: Mapping[str, object]) -> bool:
        """Take a message; return whether it was an event or an answer."""
        if "event" in message:
            event = parse_event(message)
            if event is not None:
                self._buffer.put(event)
            return True
        sent = message.get("id")
        if sent is None:
            return False
        if not isinstance(sent, str):
            self.abort()  # qemu.qmp would look it up, and may fail to hash it
            return True
        # Drop an answer that nobody awaits any more, as the QMP specification says.
        question, index = self._sent.get(sent[:LENGTH]), _PLACES.get(sent[LENGTH:], AT_ONCE)
        if question is not None and index < len(question.commands):
            try:
                question.put(index, _answer(message))
            except (KeyError, TypeError) as error:
                nonsense = f"{question.commands[index]}: the answer makes no sense: {_cause(error)}"
                question.put(index, SessionLostError(nonsense))
                self.abort()
        return True

    async def _readline(self) -> bytes:
        while (line := self.stream.fetch()) is None:
            readable = asyncio.get_running_loop().create_future()
            self.stream.tell_readable(partial(_tell, readable))
            await readable
        if not line:
            raise EOFError
        if is_too_nested(line):
            raise ValueError("what it says is nested too deeply")
        if not self._read_at:
            self.begins_pretty = line.strip() == b"{"
        self._read_at = time.perf_counter()
        return line

    async def _on_message(self, msg: Message) -> None:
        if self.runstate is not Runstate.RUNNING or not self._hear(msg):
            await super()._on_message(msg)
        pause = self.pace.pause(self._read_at, time.perf_counter())
        if pause is not None:
            await asyncio.sleep(pause)

    def _cb_inbound(self, msg: Message) -> Message:
        if self._negotiation and msg.get("id") == self._negotiation:
            self.answered_by = self.stream.sender
        return msg  # the inherited hook formats every message for a debug log that nobody reads

    def _cb_outbound(self, msg: Message) -> Message:
        # Only ``qmp_capabilities``; ``send`` sends all else.
        msg["id"] = self._negotiation = _TOKENS.next()
        return msg

    def _set_state(self, state: Runstate) -> None:
        super()._set_state(state)
        if state is Runstate.DISCONNECTING:
            self.stream.close()
            self._buffer.close()
            for question in list(self._sent.values()):
                for index, name in enumerate(question.commands):
                    lost = f"{name}: the session ended before an answer came"
                    question.put(index, SessionLostError(lost))
            self._send_held()

    def abort(self) -> None:
        """Drop the connection without waiting for unsent output, which may never go."""
        with suppress(OSError):  # it was closed, or not connected
            self.stream.sock.shutdown(socket.SHUT_RDWR)  # wakes the reader

    @property
    def version(self) -> Version:
        """QEMU's version, from the greeting."""
        if self.greeting is None:
            raise ValueError("no greeting")
        return parse_version(self.greeting.QMP.version["qemu"])

    @property
    def package(self) -> str:
        """The distribution's name for its QEMU, from the greeting (QAPI ``VersionInfo``)."""
        package = self.greeting.QMP.version.get("package") if self.greeting is not None else None
        return package[:MAX_TEXT] if isinstance(package, str) else ""


class Monitor(Exchange):
    """An open QMP session, made by ``open_monitor``.

    Attributes:
        events: QEMU's events.
        version: QEMU's version, from its greeting.
        package: the distribution's name for it, from the greeting; empty for upstream's QEMU.
        pace: limits the processor time for reading this monitor.
    """

    def __init__(self, client: _Client, events: EventOutlet, version: Version) -> None:
        self._client = client
        self.events = events
        self.version = version
        self.package = client.package
        self.pace = client.pace

    @property
    def answered_by(self) -> int | None:
        """The number of the process that answered the negotiation; None where it is not known.

        The number is known after ``other_end.show_senders``.
        """
        return self._client.answered_by

    def ask(
        self,
        commands: Sequence[Command],
        done: Callable[[list[object]], None],
        *,
        timeout: float,
    ) -> Question:
        """Send several commands at once, and pass their answers on."""
        question = Question([name for name, _ in commands], timeout, done)
        self._client.send(commands, question)
        return question

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, object], fd: int, *, timeout: float
    ) -> object:
        """Have QEMU carry out a command that takes a file descriptor; QEMU gets a copy.

        Raises:
            CommandError: QEMU refused.
            UncertainError: the session ended, or no answer came.
        """
        (answer,) = await self.execute_all_with_fd([(command, arguments)], fd, timeout=timeout)
        if isinstance(answer, MonitorError):
            raise answer
        return answer

    async def execute_all_with_fd(
        self, commands: Sequence[Command], fd: int, *, timeout: float
    ) -> list[object]:
        """Send several commands; the first takes a file descriptor; see ``execute_with_fd``.

        Returns:
            For each command its answer or its ``MonitorError``; if the first fails, only for it.
        """
        first, *others = commands
        (answer,) = await answers_to(partial(self.ask_with_fd, first, fd, timeout=timeout), timeout)
        if isinstance(answer, MonitorError) or not others:
            return [answer]
        return [answer, *await self.execute_all(others, timeout=timeout)]

    def ask_with_fd(
        self, command: Command, fd: int, done: Callable[[list[object]], None], *, timeout: float
    ) -> Question:
        """Send a command that takes a copy of a descriptor, and pass its answer on; see ``ask``.

        The descriptor must stay open until ``done`` is called.
        """
        question = Question([command[0]], timeout, done)
        self._client.send([command], question, fd)
        return question

    async def send_fd(self, fd: int, name: str, *, timeout: float) -> None:
        """Give QEMU a copy of a file descriptor under a name (``getfd``)."""
        await self.execute_with_fd("getfd", {"fdname": name}, fd, timeout=timeout)

    def abort(self) -> None:
        """End the session at once."""
        self._client.abort()


@asynccontextmanager
async def event_loop() -> AsyncIterator[None]:
    """Run the asyncio loop that every monitor needs around it.

    From Python 3.14 on, a task runs only in the loop that asyncio knows to be running in its
    thread. A loop tells asyncio by a function that trio-asyncio 0.16 does not call.
    """
    outer = asyncio._get_running_loop()  # noqa: SLF001 - for those who write loops
    try:
        async with streams(), trio_asyncio.open_loop() as loop:
            asyncio._set_running_loop(loop)  # noqa: SLF001 - as above
            handle = partial(_handle, loop)
            loop.call_soon = Callbacks(handle, loop.call_soon).call_soon
            yield
    finally:  # not before the loop has ended: its last tasks run until then
        asyncio._set_running_loop(outer)  # noqa: SLF001 - as above


def _handle(
    loop: asyncio.AbstractEventLoop, call: Callable[..., object], of: Sequence[object], context: Any
) -> asyncio.Handle:
    return asyncio.Handle(call, of, loop, context)


async def pulse() -> None:
    """Return when the asyncio loop has made a turn."""
    await trio_asyncio.aio_as_trio(asyncio.sleep)(0)


@asynccontextmanager
async def open_monitor(sock: socket.socket, *, timeout: float) -> AsyncIterator[Monitor]:
    """Open a QMP session on a connected socket, and end it on leaving.

    Events are received from the first moment on. Must run inside ``event_loop()``.

    Args:
        sock: connected and non-blocking; from now on the session owns it, and closes it.
        timeout: seconds for the greeting and the negotiation. QEMU serves one client at a time, and
            sends a second client no greeting while the first stays.

    Raises:
        SilentError: no greeting, or no answer to the negotiation, came in time.
        UnreachableError: the other end sent nonsense, or the connection ended.
    """
    events = EventOutlet()
    client = _Client(events, sock)
    try:
        version = await _connect(client, sock, timeout)
        yield Monitor(client, events, version)
    finally:
        client.abort()
        with trio.CancelScope(shield=True):
            await trio_asyncio.aio_as_trio(_disconnect_aio)(client)
        sock.close()


async def _connect(client: _Client, sock: socket.socket, timeout: float) -> Version:
    limit = after(timeout, client.abort)
    try:
        await trio_asyncio.current_loop.get().run_aio_coroutine(client.connect(sock))
        version = client.version
    except (*_NONSENSE, KeyError, TypeError) as error:
        if limit.call is None:  # the time is over
            raise SilentError.after(timeout, greeted=client.greeting is not None) from None
        reason = PRETTY if client.begins_pretty else _cause(error)
        raise UnreachableError(f"no QMP session: {reason}") from error
    finally:
        limit.cancel()
    return version


async def _disconnect_aio(client: _Client) -> None:
    if client.runstate is Runstate.IDLE:
        return
    try:
        await client.disconnect()
    except _NONSENSE as error:
        logging.getLogger(__name__).debug("session ended with: %s", error)
        # Its frames form a cycle with it, which keeps the whole session until Python collects it.
        error.__traceback__ = None


def _tell(awaited: asyncio.Future[None], bug: BaseException | None = None) -> None:
    """End the wait for something that may not be awaited any more."""
    if awaited.done():
        return
    if bug is None:
        awaited.set_result(None)
    else:
        awaited.set_exception(bug)


def _answer(message: Mapping[str, object]) -> object:
    """Return the answer in a message: the returned value, or the error.

    Raises:
        KeyError: the message has no answer.
        TypeError: the answer is malformed.
    """
    if "error" not in message:
        return message["return"]
    error = ErrorResponse(message).error
    return CommandError(error.class_, error.desc[:MAX_TEXT])
