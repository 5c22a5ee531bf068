"""A fake QEMU: a monitor on a real unix socket before a model of a machine.

Light enough for thousands in one process, and to be told what goes wrong, when::

    async with FakeQemu(socket_dir / "vm.qmp").running() as fake:
        lost = fake.swallow("cont")           # what goes wrong: see RecordedMonitor
        fake.panic()                          # what happens to the guest
        await fake.wait_command("system_reset")
        assert fake.changing_commands == ["set-action", "system_reset"]

tests/contract holds it to a real QEMU in everything that panicd relies on. Its limit: it has no
process of its own. The peer's credentials (SO_PEERCRED, SO_PEERPIDFD) are those of the test's
process, so what goes by process id is for a real QEMU: a SIGKILL would reach pytest.
"""

from __future__ import annotations

import json
import math
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Self

import trio

from tests.parts.background import background
from tests.parts.dump_files import Dump
from tests.parts.machine import CommandError, Machine
from tests.parts.nobody import acting_as
from tests.parts.profile import QEMU_7_2, Profile, RunState
from tests.parts.proxy import listen, receive_with_fds
from tests.parts.recorded import CutError, RecordedMonitor
from tests.parts.wire import JsonSplitter, Message, encode

FOR_EVER = math.inf


class FakeQemu(RecordedMonitor):
    """One fake QEMU, alive while in :meth:`running`; many in one nursery: ``start(fake.run)``.

    Attributes:
        socket: Where it listens; with ``dial`` nobody does.
        machine: The machine, for a look at its state; ``fake.machine.state = …`` puts it into one.
        sessions: How many clients have been greeted.
        exited: Set when QEMU has ended.
    """

    def __init__(
        self,
        path: Path,
        *,
        profile: Profile = QEMU_7_2,
        name: str = "vm",
        uuid: str | None = None,
        devices: Sequence[str] = ("pvpanic",),
        builtin_port: int = 0x505,
        memory: int = 64 * 1024,
        state: RunState = RunState.RUNNING,
        panic_action: str = "shutdown",
        reboot_action: str = "reset",
        shutdown_action: str = "poweroff",
        firmware: bool = False,
        greeting: bytes | None = None,
        dial: Path | None = None,
        reconnect: float = 1.0,
        uid: int | None = None,
    ) -> None:
        """Describe a QEMU, which :meth:`run` brings to life.

        Args:
            path: Where its monitor listens.
            profile: Which QEMU it is.
            name: The VM's name, ``-name``; empty: none was given.
            uuid: ``-uuid``; None: none was given.
            devices: A ``-device`` each.
            builtin_port: ``-global pvpanic.ioport``, for a builtin panic device.
            memory: Guest memory in bytes.
            state: The run state that it begins with.
            panic_action: ``-action panic=``; QEMU's default is shutdown.
            reboot_action: ``-action reboot=``; shutdown is ``-no-reboot``.
            shutdown_action: ``-action shutdown=``; pause is ``-no-shutdown``.
            firmware: Its firmware resets the machine once more after a reset, as SeaBIOS does.
            greeting: Sent in place of the greeting; empty: nothing is.
            dial: Dial in to this listening socket instead of listening.
            reconnect: Seconds between two tries to dial in.
            uid: The user who listens or dials in, where that is another (as root only).
        """
        super().__init__()
        self.socket = path
        self.sessions = 0
        self.exited = trio.Event()
        self.machine = Machine(
            profile=profile,
            emit=self._emit,
            name=name,
            uuid=uuid,
            devices=devices,
            builtin_port=builtin_port,
            memory=memory,
            state=state,
            panic_action=panic_action,
            reboot_action=reboot_action,
            shutdown_action=shutdown_action,
        )
        self._firmware = firmware
        self._has_booted = state is not RunState.PRELAUNCH
        self.machine.must_boot = not self._has_booted
        self._greeting = greeting
        self._dial = dial
        self._reconnect = reconnect
        self._uid = uid
        self._boot_panics = 0.0
        self._resume_panics = 0.0
        self._panics_before_reply = False
        self._dumps_held: trio.Event | None = None
        self._stubborn = False
        self._listener: trio.socket.SocketType | None = None
        self._session: _Session | None = None
        self._nursery: trio.Nursery

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run it; it listens when this is entered."""
        async with background() as nursery:
            await nursery.start(self.run)
            yield self

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve one client after the other, until QEMU ends or this is cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                if self._dial is None:
                    self._listener = listen(self.socket, self._uid)
                self._nursery.start_soon(self._serve)
                task_status.started()
                await self.exited.wait()
                self._nursery.cancel_scope.cancel()
        finally:
            self.stop_listening()
            self.machine.close()

    # -- what happens to the guest

    def panic(self, info: Message | None = None, *, hold_stop: bool = False) -> None:
        """The guest panics.

        Args:
            info: The event's ``info``: text that a guest chose.
            hold_stop: Leave the machine between the event and QEMU's own stop, until
                :meth:`finish_stop`. A ``cont`` that comes meanwhile freezes it.
        """
        self.machine.panic(info, hold_stop=hold_stop)
        self._settle()

    def finish_stop(self) -> None:
        """QEMU makes the stop that was held."""
        self.machine.finish_stop()

    def panic_at_boot(self, times: float = FOR_EVER, *, before_reply: bool = False) -> None:
        """The guest will panic at its next boots.

        Args:
            times: How many boots in a row.
            before_reply: So quickly that the event comes before the reply to ``cont``.
        """
        self._boot_panics = times
        self._panics_before_reply = before_reply

    def panic_when_resumed(self, times: float = FOR_EVER, *, before_reply: bool = False) -> None:
        """The guest will panic again as soon as a ``cont`` resumes it.

        Args:
            times: How many times.
            before_reply: So quickly that the event comes before the reply to ``cont``.
        """
        self._resume_panics = times
        self._panics_before_reply = before_reply

    def crashload(self) -> None:
        """The guest's kdump kernel takes over."""
        self.machine.crashload()

    def guest_reset(self) -> None:
        """The guest resets itself."""
        self.machine.reset("guest-reset", guest=True)
        self._settle()

    def pvshutdown(self) -> None:
        """The guest shuts itself down by the panic device."""
        self.machine.pvshutdown()
        self._settle()

    def guest_shutdown(self) -> None:
        """The guest powers itself off."""
        self.machine.shut_down("guest-shutdown", guest=True)
        self._settle()

    # -- what happens to QEMU

    def exit(self) -> None:
        """QEMU ends silently and leaves its socket's file, as after SIGKILL."""
        self.exited.set()

    def stop_listening(self) -> None:
        """Refuse further clients."""
        if self._listener is not None:
            self._listener.close()

    def close_session(self) -> None:
        """Cut the present client off; QEMU lives on, and serves the next."""
        if self._session is not None:
            self._session.close()

    async def foreign(self, command: str, arguments: Message | None = None) -> Any:
        """Carry a command out as if it came over another monitor; it is not recorded.

        Raises:
            CommandError: QEMU refused it.
        """
        answer = self.machine.execute(command, arguments or {})
        await self._after(command)
        self._settle()
        return answer

    def emit(self, event: str, data: Message | None = None) -> None:
        """Send any event."""
        self._emit(event, data)

    def send_raw(self, data: bytes) -> None:
        """Send any bytes to the present client."""
        if self._session is not None:
            self._session.send(data)

    @property
    def unsent(self) -> int:
        """The bytes that the present client has not let it send."""
        return self._session.unsent if self._session is not None else 0

    def hold_dumps(self, *, stubborn: bool = False) -> None:
        """Hold all dumps until :meth:`release_dumps`, or until nobody reads them.

        A dump that is not detached keeps QEMU from answering anybody meanwhile.

        Args:
            stubborn: Even if nobody reads it: QEMU hangs in its storage.
        """
        self._dumps_held, self._stubborn = trio.Event(), stubborn

    def release_dumps(self) -> None:
        """Let dumps continue."""
        if self._dumps_held is not None:
            self._dumps_held.set()
            self._dumps_held = None

    # -- serving

    async def _serve(self) -> None:
        while True:
            if self._dial is not None:
                sock = await self._dial_in(self._dial)
            else:
                sock = await self._accept()
            with sock:
                self._session = _Session(sock)
                self.sessions += 1
                try:
                    await self._serve_session(self._session)
                finally:
                    self._session = None
                    self.machine.drop_received_fds()
            if self._dial is not None:
                await trio.sleep(self._reconnect)

    async def _accept(self) -> trio.socket.SocketType:
        assert self._listener is not None, "it dials in"
        try:
            sock, _address = await self._listener.accept()
        except trio.ClosedResourceError:  # stop_listening
            await trio.sleep_forever()
        return sock

    async def _dial_in(self, path: Path) -> trio.socket.SocketType:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with acting_as(self._uid):
                    sock.connect(bytes(path))
            except (ConnectionRefusedError, FileNotFoundError):
                sock.close()
                await trio.sleep(self._reconnect)
            else:
                return trio.socket.from_stdlib_socket(sock)

    async def _serve_session(self, session: _Session) -> None:
        with session.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.send_unsent)
                session.send(self._greeting_bytes())
                with suppress(CutError, ConnectionResetError):
                    await self._read_commands(session)
                nursery.cancel_scope.cancel()

    def _greeting_bytes(self) -> bytes:
        if self._greeting is not None:
            return self._greeting
        capabilities = ["oob"] if self.machine.profile.out_of_band else []
        version = self.machine.query_version({})
        return encode({"QMP": {"version": version, "capabilities": capabilities}})

    async def _read_commands(self, session: _Session) -> None:
        splitter = JsonSplitter()
        while True:
            data, fds = await receive_with_fds(session.socket)
            if not data:
                return
            self.machine.received_fds += fds
            for text in splitter.feed(data):
                await self._answer(session, text)

    async def _answer(self, session: _Session, text: bytes) -> None:
        try:
            call = _parse(text)
        except CommandError as error:
            session.send(encode(_error_reply({}, error)))
            return
        fault = self.record(call)
        if fault is not None and not await fault.before():
            session.send(encode({"error": fault.payload} | _id_of(call)))
            return
        late = self.machine.profile.replies_before_reset and call["execute"] in (
            "system_reset",
            "quit",
        )
        with session.events_held() if late else nullcontext():
            reply = encode(await self._carry_out(session, call))
            if fault is None:
                session.send(reply)
        if fault is None:
            self._settle()
        else:
            self._settle()
            session.send(await fault.after(reply))
        if call["execute"] == "cont" and not self._panics_before_reply:
            self._panic_again()

    async def _carry_out(self, session: _Session, call: Message) -> Message:
        command = call["execute"]
        try:
            if command == "qmp_capabilities":
                session.negotiate()
                return {"return": {}} | _id_of(call)
            session.require_negotiated()
            answer = self.machine.execute(command, call.get("arguments", {}))
        except CommandError as error:
            return _error_reply(call, error)
        failure = await self._after(command)
        if failure is not None:
            return _error_reply(call, CommandError(failure))
        return {"return": answer} | _id_of(call)

    async def _after(self, command: str) -> str | None:
        """Do the part of a command that takes time; return its error, if it failed."""
        if command == "cont" and self._panics_before_reply:
            self._boot()
            self._panic_again()
        if command != "dump-guest-memory":
            return None
        dump = self.machine.dump
        assert dump is not None, "dump-guest-memory began none"
        if dump.detached:
            self._nursery.start_soon(self._write_dump, dump)
            return None
        errors: list[str | None] = []
        written = trio.Event()

        async def write() -> None:
            errors.append(await self._write_dump(dump))
            written.set()

        self._nursery.start_soon(write)  # to its end, whatever happens to the connection
        await written.wait()
        return errors[0]

    async def _write_dump(self, dump: Dump) -> str | None:
        with os.fdopen(dump.fd, "wb", buffering=0) as file:
            if self._dumps_held is not None and self._stubborn:
                await self._dumps_held.wait()
            elif self._dumps_held is not None:
                await _held(self._dumps_held, dump.fd)
            error = await trio.to_thread.run_sync(_write_chunks, dump, file, abandon_on_cancel=True)
        self.machine.finish_dump(error)
        return error

    def _settle(self) -> None:
        """Do what follows from the machine's new state: it boots, or QEMU ends."""
        self._boot()
        if self.machine.exit_status is not None and not self.exited.is_set():
            if self._dial is None:
                self.socket.unlink(missing_ok=True)
            self.exited.set()

    def _boot(self) -> None:
        """Boot a machine that was reset, or never ran, and now runs."""
        if not self.machine.must_boot or self.machine.state is not RunState.RUNNING:
            return
        self.machine.must_boot = False
        if self._firmware and self._has_booted:
            self.machine.firmware_reset()
        self._has_booted = True
        if self._boot_panics > 0:
            self._boot_panics -= 1
            self.machine.panic()

    def _panic_again(self) -> None:
        """Panic again after a resume, if the test said so."""
        if self._resume_panics > 0 and self.machine.state is RunState.RUNNING:
            self._resume_panics -= 1
            self.machine.panic()

    # -- events and ends

    def _emit(self, event: str, data: Message | None) -> None:
        if self._session is None or not self._session.negotiated:
            return  # nobody listens; events are never sent later
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        message: Message = {
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
            "event": event,
        }
        if data is not None:
            message["data"] = data
        self._session.send_event(encode(message))


class _Session:
    """One client's connection."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock
        self.scope = trio.CancelScope()
        self.negotiated = False
        self._held_events: list[bytes] | None = None
        self._unsent = bytearray()
        self._more_unsent = trio.lowlevel.ParkingLot()

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    def negotiate(self) -> None:
        if self.negotiated:
            raise CommandError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        self.negotiated = True

    def require_negotiated(self) -> None:
        if not self.negotiated:
            raise CommandError(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )

    def close(self) -> None:
        self.scope.cancel()

    @contextmanager
    def events_held(self) -> Iterator[None]:
        """Keep back events until this ends."""
        self._held_events = []
        yield
        events, self._held_events = self._held_events, None
        for event in events:
            self.send(event)

    def send_event(self, data: bytes) -> None:
        if self._held_events is None:
            self.send(data)
        else:
            self._held_events.append(data)

    def send(self, data: bytes) -> None:
        """Send immediately what the kernel takes, and keep the rest, as QEMU does."""
        self._unsent += data
        self._send_some()
        if self._unsent:
            self._more_unsent.unpark_all()

    async def send_unsent(self) -> None:
        while True:
            if self._unsent:
                await trio.lowlevel.wait_writable(self.socket)
                self._send_some()
            else:
                await self._more_unsent.park()

    def _send_some(self) -> None:
        while self._unsent:
            try:
                sent = os.write(self.socket.fileno(), self._unsent)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()  # the client is gone; reading will find that too
                return
            del self._unsent[:sent]


async def _held(released: trio.Event, fd: int) -> None:
    """Wait until a dump is released, or nobody reads the pipe that it goes to (POLLERR)."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_released, released, nursery.cancel_scope)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            # Nothing can be read from a writing end: it wakes up when the reading end is closed.
            await trio.lowlevel.wait_readable(fd)
            nursery.cancel_scope.cancel()


async def _until_released(released: trio.Event, scope: trio.CancelScope) -> None:
    await released.wait()
    scope.cancel()


def _write_chunks(dump: Dump, file: FileIO) -> str | None:
    """Write a dump, waiting where the file does; returns what went wrong."""
    try:
        for chunk in dump.chunks():
            unwritten = memoryview(chunk)
            while unwritten:
                unwritten = unwritten[file.write(unwritten) :]
    except OSError as error:
        return f"dump: failed to save memory: {error.strerror}"
    return None


def _parse(text: bytes) -> Message:
    try:
        call = json.loads(text)
    except ValueError as error:
        raise CommandError("JSON parse error, expecting value") from error
    if not isinstance(call, dict):
        raise CommandError("QMP input must be a JSON object")
    for member in call:
        if member not in ("execute", "arguments", "id"):
            raise CommandError(f"QMP input member '{member}' is unexpected")
    if not isinstance(call.get("execute"), str):
        raise CommandError("QMP input lacks member 'execute'")
    return call


def _id_of(call: Message) -> Message:
    return {"id": call["id"]} if "id" in call else {}


def _error_reply(call: Message, error: CommandError) -> Message:
    return {"error": {"class": error.error_class, "desc": error.desc}} | _id_of(call)
