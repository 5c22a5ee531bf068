"""Makes and keeps the connections to monitors: those that panicd dials, and those that dial in."""

import errno
import glob
import math
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import trio

from panicd.fleet.backoff import Backoff
from panicd.fleet.discovery import (
    Appeared,
    Change,
    Discovery,
    PassedOver,
    Readable,
    Unreadable,
    Vanished,
)
from panicd.fleet.libvirt_domains import LibvirtDomains
from panicd.fleet.pacer import Pacer
from panicd.fleet.supervision import SpareError, note_absence, supervise
from panicd.fleet.unidentified import TELL_EVERY, UnidentifiedConnections
from panicd.fleet.watches import mount_changes
from panicd.host.listening import keep_listening
from panicd.host.logs import get_logger
from panicd.incident.adoption import end_hung_qemu
from panicd.incident.domains import Domain
from panicd.incident.driver import Driver
from panicd.incident.services import Services
from panicd.journal.journal import JournalError
from panicd.libvirt.own_monitor import LibvirtsOwnError, leave_libvirts_own
from panicd.qemu.monitor import MonitorError, SilentError, open_monitor
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer, uid_of
from panicd.qemu.session import ANSWER_TIMEOUT, Session
from panicd.qemu.socket_table import SocketTable
from panicd.rules.command_line import parse_command_line
from panicd.rules.libvirt import tells_of_own_monitor
from panicd.rules.socket_path import path_problem

GREETING_TIMEOUT: Final = 5.0  # seconds; QEMU greets within a millisecond unless it is taken
LASTING: Final = 10.0  # seconds of a session, after which its loss counts as a first failure
ACCEPT_AGAIN: Final = 0.1  # seconds
RELOADED_AT_ONCE: Final = 32  # domains; each takes some 50 µs, in which nobody gets a response
BACKLOG: Final = 4096  # connections; the kernel lowers it to net.core.somaxconn
LOOK_EVERY: Final = 5.0  # seconds; a QEMU that ends removes its socket some milliseconds before
LOST: Final = "the socket is gone, so panicd can't connect again when the connection ends"
LOST_NAMED: Final = 3  # paths


@dataclass(slots=True)
class _Dialled:
    """A path that is dialled for as long as it exists."""

    present: bool = True
    retry: trio.Event = field(default_factory=trio.Event)

    def is_gone(self) -> bool:
        return not self.present

    def nudge(self, *, present: bool) -> None:
        self.present = present
        self.retry.set()


class Connector:
    """Connects monitors, and gives each to a supervisor.

    Args:
        services: what drivers use.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._drivers: dict[str, Driver] = {}
        self._unidentified = UnidentifiedConnections()
        self._sockets = SocketTable()
        self._discoveries: set[Discovery] = set()
        self._pacer = Pacer()
        self._none_left_at = -math.inf  # no descriptor, for a connection
        self.by_libvirt = LibvirtDomains(services, self._drivers)

    def driver_of(self, domain: Domain) -> Driver | None:
        """Return the driver of a domain; None while it is not connected."""
        return self._drivers.get(domain.address)

    async def reload(self) -> None:
        """Have every domain look up its policy and holds again, a few in each turn."""
        for number, driver in enumerate(list(self._drivers.values()), 1):
            driver.reload()
            if number % RELOADED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def dial(
        self, pattern: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a connection to every socket that matches a pattern, while the socket exists.

        Args:
            pattern: one that has no ``pattern_problem``.
            task_status: started when it is watched.
        """
        paths: dict[Path, _Dialled] = {}
        vanished = trio.lowlevel.ParkingLot()
        with Discovery(pattern) as changes:
            self._discoveries.add(changes)
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._see_lost, pattern, paths, vanished)
                    async for change in changes:
                        self._take_change(pattern, change, paths, nursery)
                        if isinstance(change, Vanished):
                            vanished.unpark_all()
            finally:
                self._discoveries.discard(changes)
                self._services.problems.end_all(pattern)

    def _take_change(
        self, pattern: str, change: Change, paths: dict[Path, _Dialled], nursery: trio.Nursery
    ) -> None:
        problems = self._services.problems
        match change:
            case Appeared(path=path) if path in paths:
                paths[path].nudge(present=True)
            case Appeared(path=path):
                paths[path] = _Dialled()
                nursery.start_soon(self._keep, path, paths)
            case Vanished(path=path) if path in paths:
                paths[path].nudge(present=False)
            case Vanished(path=path):
                problems.forget(pattern, str(path))
            case Unreadable(path=path, reason=reason):
                problems.begin(pattern, f"monitors may go unseen: {reason}", str(path))
            case Readable(path=path):
                problems.end(pattern, str(path))
            case PassedOver(path=path, reason=reason):
                problems.pass_over(pattern, str(path), reason)

    async def _see_lost(
        self, pattern: str, paths: dict[Path, _Dialled], vanished: trio.lowlevel.ParkingLot
    ) -> None:
        """Report the connected monitors whose sockets are gone, for as long as there are any."""
        while True:
            await vanished.park()
            lost = [""]
            while lost:
                await trio.sleep(LOOK_EVERY)
                lost = [str(path) for path, dialled in paths.items() if dialled.is_gone()]
                self._services.problems.tell(pattern, _lost(lost))

    async def see_mounts(self) -> None:
        """Have everything looked at again after each mount, until cancelled."""
        try:
            async for _ in mount_changes():
                for discovery in self._discoveries:
                    discovery.look_again()
        except OSError as error:
            get_logger().warning("mounts may be missed", reason=str(error))

    async def dial_found(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Dial the monitors that libvirt's domains were given, whatever their names are."""
        services = self._services
        dials: dict[str, trio.CancelScope] = {}

        async def dial(path: str, scope: trio.CancelScope) -> None:
            with scope:
                await self.dial(glob.escape(path))

        def found(paths: set[str]) -> None:
            # A domain that is still connected may be about to start anew.
            for path in set(dials) - paths - set(services.fleet.domains):
                dials.pop(path).cancel()
            for path in paths - set(dials):
                dials[path] = trio.CancelScope()
                nursery.start_soon(dial, path, dials[path])

        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                found(services.libvirt.monitors)
                await services.libvirt.changes()

    async def listen(
        self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take the connections of QEMUs that dial in.

        Raises:
            OSError: the socket can't be made.
        """
        listener = _listen(path)
        where, problems = f"listening socket {path}", self._services.problems
        tell = partial(problems.tell, where)

        async with trio.open_nursery() as connections:
            numbers = count(1)

            async def take(listener: trio.socket.SocketType) -> None:
                while True:
                    accepted = await self._accept(listener)
                    sock = socket.socket(fileno=accepted.detach())
                    connections.start_soon(self._take, sock, f"{path}#{next(numbers)}")

            task_status.started()
            try:
                await keep_listening(path, listener, partial(_listen, path), take, tell)
            finally:
                problems.end(where)

    async def _accept(self, listener: trio.socket.SocketType) -> trio.socket.SocketType:
        """Take the next connection; wait if there is no descriptor left for it (accept(2))."""
        while True:
            try:
                accepted, _ = await listener.accept()
            except OSError as error:
                if error.errno not in _NOTHING_LEFT:
                    raise
                now = trio.current_time()
                if now - self._none_left_at > TELL_EVERY:
                    get_logger().error("connections have to wait", reason=error.strerror)
                self._none_left_at = now
                await trio.sleep(ACCEPT_AGAIN)
            else:
                return accepted

    async def _keep(self, path: Path, paths: dict[Path, _Dialled]) -> None:
        """Dial one path again and again until it is gone."""
        services, dialled, backoff = self._services, paths[path], Backoff()
        while str(path) in services.fleet.domains:  # another pattern has found it too
            await services.fleet.left.park()
        if dialled.is_gone():
            del paths[path]
            return
        domain = services.fleet.add(str(path), path.stem, services.keeping.clock())
        try:
            while not dialled.is_gone():
                dialled.retry = trio.Event()
                started = trio.current_time()
                may_again = await self._try(domain, partial(connect, path))
                if trio.current_time() - started > LASTING:
                    backoff.reset()
                with trio.move_on_after(backoff.next() if may_again else math.inf):
                    await dialled.retry.wait()
                    backoff.reset()
            get_logger(monitor=domain.address, domain=domain.name).info("monitor is gone")
        finally:
            services.fleet.remove(domain.address)
            del paths[path]

    async def _take(self, sock: socket.socket, address: str) -> None:
        """Keep one VM that dialled in, until its connection ends."""
        services = self._services
        domain = services.fleet.add(
            address, Path(address).name, services.keeping.clock(), dials_in=True
        )

        async def accepted() -> socket.socket:
            return sock

        try:
            with self._unidentified.admitted(address, uid_of(sock)):
                await self._try(domain, accepted)
        finally:
            services.fleet.remove(address)
            sock.close()

    async def _try(self, domain: Domain, connect: Callable[[], Awaitable[socket.socket]]) -> bool:
        """Keep a domain for one connection; log why there is none, or why it ended.

        Returns:
            Whether it may be tried again without another socket in its place.
        """
        may_again = True
        await self._pacer.begin()
        mute, spare_of = False, ""
        try:
            problem = await self._look_after(domain, await connect())
        except SilentError as error:
            problem, mute = await self._why_silent(domain, str(error), greeted=error.greeted)
        except SpareError as error:
            problem, spare_of = str(error), error.name
        except MonitorError as error:
            problem = str(error)
            may_again = not isinstance(error, LibvirtsOwnError)
        except BlockingIOError as error:  # its queue of waiting clients is full
            problem, mute = await self._why_silent(domain, str(error.strerror))
        except OSError as error:
            problem = error.strerror or str(error)
        except JournalError as error:
            problem = f"the journal can't be written: {error}"
        domain.mute, domain.spare_of = mute, spare_of
        is_new = note_absence(domain, problem, self._services.keeping.clock())
        if is_new and (domain.address not in self._unidentified or self._unidentified.may_tell()):
            log = get_logger(monitor=domain.address, domain=domain.name)
            log.warning("monitor is not connected", reason=problem)
        return may_again

    async def _why_silent(
        self, domain: Domain, said: str, *, greeted: bool = False
    ) -> tuple[str, bool]:
        """Return as ``SocketTable.why_silent`` does."""
        if domain.address in self._unidentified:
            return f"the VM that dialled in says nothing: {said}", False
        return await self._sockets.why_silent(domain.address, said, greeted=greeted)

    async def _look_after(self, domain: Domain, sock: socket.socket) -> str:
        """Keep a domain until its session ends, and return why it ended."""
        with closing(sock), Peer.of(sock) as peer:
            await peer.learn_command_line()
            arguments = peer.command_line() or ()
            if not domain.dials_in and tells_of_own_monitor(arguments):
                leave_libvirts_own(Path(domain.address), arguments)
            try:
                return await self._open(domain, sock, peer)
            except SilentError:
                await end_hung_qemu(self._services, peer)
                raise

    async def _open(self, domain: Domain, sock: socket.socket, peer: Peer) -> str:
        services = self._services
        async with open_monitor(sock, timeout=GREETING_TIMEOUT) as monitor:
            peer.confirm(monitor.answered_by)
            is_qemu = peer.is_qemu()
            arguments = peer.command_line() if is_qemu else None
            command_line = parse_command_line(arguments) if arguments else None
            answers = await probe(
                monitor, command_line, timeout=ANSWER_TIMEOUT, arm=not services.dry_run
            )
            session = Session.from_probe(monitor, peer, answers, is_qemu=is_qemu)
            self._unidentified.known(domain.address)
            return await supervise(self._services, self._drivers, domain, session)


async def connect(path: Path) -> socket.socket:
    """Return a socket connected to a monitor.

    Raises:
        OSError: it can't be; EAGAIN if its queue of waiting clients is full (unix(7)).
        LibvirtsOwnError: it must not be.
    """
    await trio.lowlevel.checkpoint()
    leave_libvirts_own(path)
    if problem := path_problem(path):
        raise OSError(errno.ENAMETOOLONG, problem)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, _WHY.get(error.errno or 0, error.strerror)) from error
    return sock


def _lost(paths: list[str]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - LOST_NAMED} more" if len(paths) > LOST_NAMED else ""
    return f"{LOST}: {', '.join(paths[:LOST_NAMED])}{more}"


_NOTHING_LEFT: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_WHY: Final = {
    errno.EAGAIN: "other clients are waiting for this monitor already",
    errno.ECONNREFUSED: "nobody listens on this socket",
}


def _listen(path: Path) -> trio.socket.SocketType:
    """Listen on a socket of panicd's, and replace one that nobody listens on any more.

    Raises:
        OSError: it can't be made, or another process listens there.
    """
    if problem := path_problem(path):
        raise OSError(errno.ENAMETOOLONG, problem, os.fspath(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe_socket:
        if probe_socket.connect_ex(os.fspath(path)) in {0, errno.EAGAIN}:
            raise OSError(errno.EADDRINUSE, "somebody listens there already", os.fspath(path))
    path.unlink(missing_ok=True)
    with ExitStack() as on_failure:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        on_failure.callback(listener.close)
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        on_failure.callback(path.unlink, missing_ok=True)
        path.chmod(0o660)
        listener.listen(BACKLOG)
        on_failure.pop_all()
    return trio.socket.from_stdlib_socket(listener)
