"""panicd's connections to one libvirt: one for events and quick questions, few for all else.

A call waits in line until there is room for it. Until then libvirt knows nothing of the call.
A QEMU that hangs holds up the calls for its own domain alone: at most ``OF_ONE_DOMAIN`` calls for
one domain are under way. Calls that end a domain do not count, and always have room.

panicd passes on events in order, in the turn of the loop in which it reads them. It says nothing
more to a silent libvirtd. It keeps the connections for half a minute, so that no event is lost when
libvirtd wakes up.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, TypeVar, cast

import trio

from panicd.host.logs import get_logger
from panicd.host.timers import Timer, Timers
from panicd.libvirt import introduction, requests
from panicd.libvirt.connection import UNDER_WAY_MOST, Awaited, Call, Connection, Credentials
from panicd.libvirt.errors import (
    LibvirtAwayError,
    LibvirtError,
    LibvirtNoRoomError,
    LibvirtRefusedError,
    LibvirtSilentError,
)
from panicd.libvirt.protocol import Event, EventId
from panicd.libvirt.requests import Lane, Request
from panicd.rules.libvirt_place import Place, find_place

T = TypeVar("T")

LINES_MOST: Final = 6
"""Connections for calls that take their time. libvirtd has 20 workers for all of its clients
(``max_workers``), and 5 more for 'high' calls."""
JOBS_MOST: Final = UNDER_WAY_MOST - 1  # of a connection; the rest is for urgent calls
OF_ONE_DOMAIN: Final = 2  # jobs
IN_LINE_MOST: Final = 1 << 14  # calls: one for each domain that libvirt itself can list
OPENED_WITHIN: Final = 5.0  # seconds that libvirtd may take to let panicd in
AGAIN_AFTER: Final = 0.1  # seconds, and twice as long each time
AGAIN_AFTER_MOST: Final = 5.0
NO_ROOM: Final = "there is no room for it"
WAKES_UP_WITHIN: Final = 30.0  # seconds of silence after which panicd drops a connection


class Standing(StrEnum):
    """How a libvirt stands."""

    AWAY = "away"  # there is no connection
    UP = "up"
    SILENT = "silent"  # it takes calls, and says nothing


class Asked:
    """A question to libvirt.

    Attributes:
        request: the question.
        done: gets the answer, or a ``LibvirtError``; None: nobody waits any more.
        take: gets the stream's bytes, if there is a stream.
        timer: goes off when the answer is late.
        line: the connection that the question was sent on; None: it waits in line.
        call: the question's call on that connection.
    """

    __slots__ = ("call", "done", "line", "request", "take", "timer")

    def __init__(
        self,
        request: Request[object],
        done: Callable[[object], None],
        take: Callable[[bytes], None] | None,
    ) -> None:
        self.request = request
        self.done: Callable[[object], None] | None = done
        self.take = take
        self.timer: Timer | None = None
        self.line: Connection | None = None
        self.call: Call | None = None

    def finish(self, answer: object) -> None:
        """Pass on the answer, if anybody waits for it."""
        done = self.done
        self.give_up()
        if done is not None:
            done(answer)

    def give_up(self) -> None:
        """Pass on nothing any more; libvirt may still carry out a request that was sent."""
        if self.done is not None:
            self.done = None
            if self.timer is not None:
                self.timer.cancel()
            if self.line is not None and self.call is not None and self.take is not None:
                self.line.give_up(self.call)


class Client:
    """A libvirt, and the connections to it that ``run`` keeps.

    Args:
        uri: the libvirt's: ``qemu:///system`` or ``qemu:///session``.
        heard: gets each event.
        changed: gets the standing when it or ``problem`` has changed. After ``UP`` no event is
            missed.
        qemu_events: the QEMU events to pass on, by their QAPI names.
        environment: panicd's own.

    Attributes:
        standing: see ``Standing``.
        problem: why the standing is not ``UP``; empty if it is.
        generation: grows with each connection: events between two connections may be missed.
        tells_qemu_events: libvirt passes on ``qemu_events``; it may not do so for everybody.
        peer: the process at the other end; None without a connection.

    Raises:
        UnusableUriError: no libvirt can be reached by this URI.
    """

    def __init__(
        self,
        uri: str,
        *,
        heard: Callable[[Event], None],
        changed: Callable[[Standing], None],
        qemu_events: tuple[str, ...] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._place = find_place(uri, environment)
        self._heard = heard
        self._changed = changed
        self._qemu_events = qemu_events
        self._timers = Timers()
        self._nursery: trio.Nursery
        self._events: Connection | None = None
        self._have_ended = trio.Event()  # the connection for events
        self._lines: list[Connection] = []
        self._opens_line = False
        self._waiting: dict[Lane, deque[Asked]] = {lane: deque() for lane in Lane}
        self._of_domain: dict[str, int] = {}  # jobs under way, by UUID
        self.standing = Standing.AWAY
        self.problem = "it was not yet connected to"
        self.generation = 0
        self.tells_qemu_events = False

    @property
    def peer(self) -> Credentials | None:
        """Who listens at the other end."""
        return self._events.peer if self._events is not None else None

    def ask(
        self,
        request: Request[T],
        done: Callable[[T | LibvirtError], None],
        *,
        timeout: float,
        take: Callable[[bytes], None] | None = None,
        may_wait: bool = True,
    ) -> Asked:
        """Ask something at once, or as soon as there is room.

        Args:
            request: the question.
            done: gets, once, the answer or why there is none; perhaps before this returns.
            timeout: seconds, those in line included.
            take: gets the bytes of the stream that the request starts, before ``done``.
            may_wait: wait in line for room; else the request fails without room. A caller that asks
                in the turn in which it gets an answer has the answered call's room.
        """
        asked = Asked(request, cast("Callable[[object], None]", done), take)
        if self.standing is not Standing.UP:
            asked.finish(LibvirtAwayError(f"{request.name}: {self.problem}"))
            return asked
        queue = self._waiting[request.lane]
        if len(queue) >= IN_LINE_MOST:
            asked.finish(LibvirtAwayError(f"{request.name}: too much is asked of libvirt"))
            return asked
        asked.timer = self._timers.after(timeout, partial(self._is_late, asked, timeout))
        if self._sent(asked, self._room(request.lane)):
            return asked
        if may_wait:
            queue.append(asked)
            self._open_line()
        else:
            asked.finish(LibvirtNoRoomError(f"{request.name}: {NO_ROOM}"))
        return asked

    def ask_together(
        self, questions: Sequence[tuple[Request[Any], Callable[[Any], None]]], *, timeout: float
    ) -> None:
        """Ask a few things now: in one go if they have room, so that libvirtd wakes up once.

        Args:
            questions: each with what gets its answer, or why there is none.
            timeout: seconds.
        """
        line = self._room(Lane.URGENT)
        if line is None or line.under_way + len(questions) > UNDER_WAY_MOST:
            for request, done in questions:
                self.ask(request, done, timeout=timeout, may_wait=False)
            return
        many = [Asked(request, done, None) for request, done in questions]
        with line.together():
            for asked in many:
                if not self._sent(asked, line):
                    asked.finish(LibvirtNoRoomError(f"{asked.request.name}: {NO_ROOM}"))

        def are_late() -> None:
            for asked in many:
                self._is_late(asked, timeout)

        self._timers.after(timeout, are_late)

    async def call(
        self,
        request: Request[T],
        *,
        timeout: float,
        take: Callable[[bytes], None] | None = None,
    ) -> T:
        """Ask something, and wait for the answer; see ``ask``.

        Raises:
            LibvirtError: there is no answer.
        """
        awaited = Awaited()
        asked = self.ask(request, awaited.tell, timeout=timeout, take=take)
        try:
            return cast("T", await awaited.get())
        finally:
            asked.give_up()

    def abort(self) -> None:
        """End all connections at once; ``run`` makes them again."""
        if self._events is not None:
            self._events.abort("panicd has ended the connection")

    async def run(self) -> None:
        """Keep the connections, and make them again, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._timers.run)
            pause = AGAIN_AFTER
            while True:
                before = self.generation
                await self._be_connected()
                pause = AGAIN_AFTER if self.generation > before else pause
                await trio.sleep(pause)
                pause = min(2 * pause, AGAIN_AFTER_MOST)

    # Calls.

    def _sent(self, asked: Asked, line: Connection | None) -> bool:
        """Send a call on a connection with room for it, if nothing is in its way."""
        request = asked.request
        under_way = self._of_domain.get(request.domain, 0)
        if line is None or (request.lane is Lane.JOB and under_way >= OF_ONE_DOMAIN):
            return False
        asked.line = line
        if request.lane is Lane.JOB:
            self._of_domain[request.domain] = under_way + 1
        asked.call = line.call(request, partial(self._is_through, asked), asked.take)
        return True

    def _room(self, lane: Lane) -> Connection | None:
        """Return the connection that has most room; None if none has any."""
        if self.standing is not Standing.UP:
            return None
        lines = self._lines if lane is not Lane.QUERY else [self._events]
        most = JOBS_MOST if lane is Lane.JOB else UNDER_WAY_MOST
        free = (line for line in lines if line and line.under_way < most and line.answers)
        return min(free, key=lambda line: line.under_way, default=None)

    def _is_through(self, asked: Asked, answer: object) -> None:
        """Pass on a call's answer; calls that follow from it go before those in line."""
        if asked.request.lane is Lane.JOB:
            left = self._of_domain.pop(asked.request.domain) - 1
            if left:
                self._of_domain[asked.request.domain] = left
        asked.finish(answer)
        self._send_waiting()

    def _is_late(self, asked: Asked, timeout: float) -> None:
        name = asked.request.name
        if asked.line is None:
            asked.finish(LibvirtAwayError(f"{name}: not its turn within {timeout:g} s"))
        else:
            asked.finish(LibvirtSilentError(f"{name}: no answer within {timeout:g} s"))

    def _send_waiting(self) -> None:
        for lane, queue in self._waiting.items():
            held_up = []  # by their own domain
            while queue and self._room(lane):
                asked = queue.popleft()
                if asked.done is not None and not self._sent(asked, self._room(lane)):
                    held_up.append(asked)
            queue.extendleft(reversed(held_up))
        self._open_line()

    # Connections.

    async def _be_connected(self) -> None:
        """Connect, and wait for the connection's end; say why it ended or could not be made."""
        async with trio.open_nursery() as self._nursery:
            try:
                await self._connect()
                await self._have_ended.wait()
            except LibvirtSilentError as error:
                self._stand(Standing.SILENT, str(error))
            except LibvirtError as error:
                self._stand(Standing.AWAY, str(error))
            self._nursery.cancel_scope.cancel()

    async def _connect(self) -> None:
        """Make the first connections.

        Raises:
            LibvirtError: the connections can't be made.
        """
        self._have_ended = trio.Event()
        self.tells_qemu_events = False
        events = await self._open(self._look_at_events)
        for event in EventId:
            await events.execute(introduction.listen(event), timeout=OPENED_WITHIN)
        if self._qemu_events:
            asked = introduction.listen_to_qemu(self._qemu_events)
            try:
                await events.execute(asked, timeout=OPENED_WITHIN)
            except LibvirtRefusedError as error:
                get_logger().warning("libvirt tells nothing of QEMU's events", problem=str(error))
            else:
                self.tells_qemu_events = True
        self._lines = [await self._open(self._look_at_lines)]
        self._events = events
        self.generation += 1
        self._look_at_events()

    async def _open(self, changed: Callable[[], None]) -> Connection:
        """Make one connection.

        Raises:
            LibvirtError: the connection can't be made.
        """
        connection = Connection(_connect_socket(self._place), self._heard, changed)
        self._nursery.start_soon(connection.run)
        try:
            await _introduce(connection, self._place.driver)
        except LibvirtError:
            connection.abort("libvirtd did not let panicd in")
            raise
        return connection

    def _look_at_events(self) -> None:
        """Set libvirt's standing by its connection for events."""
        events = self._events
        if events is None:
            return  # it is not yet in use
        if events.has_ended:
            self._events = None
            self._have_ended.set()
            self._stand(Standing.AWAY, events.problem)
            self._turn_away()
            lines, self._lines = self._lines, []
            for line in lines:
                line.abort(events.problem)
        elif events.is_silent:
            self._stand(Standing.SILENT, "libvirtd does not answer")
            self._timers.after(WAKES_UP_WITHIN, partial(self._end_if_silent, events))
        else:
            self._stand(Standing.UP, "")
            self._send_waiting()

    def _end_if_silent(self, events: Connection) -> None:
        if events.is_silent:
            events.abort(f"libvirtd has not answered for {WAKES_UP_WITHIN:g} s")

    def _look_at_lines(self) -> None:
        self._lines = [line for line in self._lines if not line.has_ended]
        self._send_waiting()

    def _open_line(self) -> None:
        """Make one more connection, if calls wait for one."""
        waits = any(
            self._waiting[lane] and self._room(lane) is None for lane in (Lane.URGENT, Lane.JOB)
        )
        may = self.standing is Standing.UP and len(self._lines) < LINES_MOST
        if waits and may and not self._opens_line:
            self._opens_line = True
            self._nursery.start_soon(self._add_line)

    async def _add_line(self) -> None:
        try:
            self._lines.append(await self._open(self._look_at_lines))
        except LibvirtError as error:
            get_logger().debug("no further connection to libvirt", problem=str(error))
            await trio.sleep(AGAIN_AFTER_MOST)
        finally:
            self._opens_line = False
        self._send_waiting()

    def _turn_away(self) -> None:
        """Fail all calls in line: libvirt was told nothing of them."""
        for queue in self._waiting.values():
            while queue:
                asked = queue.popleft()
                asked.finish(LibvirtAwayError(f"{asked.request.name}: {self.problem}"))

    def _stand(self, standing: Standing, problem: str) -> None:
        if (standing, problem) != (self.standing, self.problem):
            self.standing, self.problem = standing, problem
            self._changed(standing)


def _connect_socket(place: Place) -> socket.socket:
    """Connect to the first socket that somebody listens on.

    Raises:
        LibvirtAwayError: nobody listens on any of them.
    """
    problems = []
    for path in place.sockets:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
        except OSError as error:  # BlockingIOError: more wait there than it takes
            problems.append(f"{path}: {error.strerror or error}")
        else:
            return sock
    raise LibvirtAwayError(f"no libvirtd answers: {', '.join(problems)}")


async def _introduce(connection: Connection, driver: str) -> None:
    """Have libvirtd let panicd in, and open QEMU's driver.

    Raises:
        LibvirtError: libvirtd does not.
    """
    ways = await connection.execute(introduction.list_auth(), timeout=OPENED_WITHIN)
    if requests.AUTH_POLKIT in ways:
        await connection.execute(introduction.ask_polkit(), timeout=OPENED_WITHIN)
    elif requests.AUTH_NONE not in ways:
        raise LibvirtAwayError("libvirtd asks for a password (auth_unix_rw): panicd has none")
    await connection.execute(introduction.start_keepalive(), timeout=OPENED_WITHIN)
    await connection.execute(introduction.open_driver(driver), timeout=OPENED_WITHIN)
