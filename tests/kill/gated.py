"""The daemon, with a gate before and after everything that it makes durable or does to a VM.

At a gate the whole daemon stands still and asks the test (``gate.Gate``, on the socket ``gate``
beside the configuration) to go on. There it can be killed, and it is known to the instruction what
it had done by then. The gates are put around the daemon's own functions; nothing else differs.

``cases.GatedDaemon`` starts it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import Signals
from unittest.mock import patch

import panicd.incident.errands
import panicd.service.daemon
from panicd.cli import main
from panicd.dumps import writer as dump_writer
from panicd.dumps.directory import give_name
from panicd.incident.relaunch import run_relaunch
from panicd.journal.intents import Intents
from panicd.journal.journal import Journal
from panicd.libvirt.connection import Call, Connection
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.libvirt.protocol import Procedure
from panicd.libvirt.requests import Request
from panicd.qemu import monitor
from panicd.qemu.exchange import Exchange
from panicd.qemu.pending import Question
from panicd.qemu.process import Peer
from panicd.rules.incident import AnyEntry, StepBegun, StepEnded, StepResult
from panicd.rules.operation import Operation
from panicd.rules.plan import RunRelaunch

SOCKET = "gate"
BY_LIBVIRT: dict[int, str] = {
    Procedure.DOMAIN_RESET: "system_reset",
    Procedure.DOMAIN_RESUME: "cont",
    Procedure.DOMAIN_SUSPEND: "stop",
    Procedure.DOMAIN_DESTROY_FLAGS: "quit",
    Procedure.DOMAIN_CORE_DUMP_WITH_FORMAT: "dump-guest-memory",
}
"""What libvirt is called for, by what a QMP monitor is told in its place."""

Done = Callable[[BaseException | None], None]


class Gates:
    """The daemon's side of its gates: one question at a time, from whichever thread."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._lock = threading.Lock()

    def stop_at(self, point: str) -> None:
        """Stand still until the test says to go on."""
        with self._lock:
            self._socket.sendall(f"{point}\n".encode())
            if not self._socket.recv(1):
                raise ConnectionError("the test has gone away")


def _install(gates: Gates, stack: ExitStack) -> None:
    stop_at = gates.stop_at
    append_soon, append_operation = Journal.append_soon, Journal.append_operation
    send, call = monitor._Client.send, Connection.call
    take = Intents.take
    send_signal = Peer.send_signal

    def gated_append_soon(
        self: Journal, incident_id: str, entries: Sequence[AnyEntry], done: Done
    ) -> None:
        what = "+".join(map(_name_of, entries))

        def written(error: BaseException | None) -> None:
            stop_at(f"after commit {what}")
            done(error)

        stop_at(f"before commit {what}")
        append_soon(self, incident_id, entries, written)

    def gated_take(self: Intents, incident_id: str, entries: Sequence[str]) -> bool:
        stop_at("before intent")
        is_taken = take(self, incident_id, entries)
        stop_at("after intent")
        return is_taken

    async def gated_append_operation(self: Journal, operation: Operation) -> None:
        stop_at(f"before commit {operation.kind}")
        await append_operation(self, operation)
        stop_at(f"after commit {operation.kind}")

    def gate_ask(kind: type[Exchange]) -> None:
        ask = kind.ask

        def gated_ask(
            self: Exchange,
            commands: Sequence[monitor.Command],
            done: Callable[[list[object]], None],
            *,
            timeout: float,
        ) -> Question:
            what = "+".join(name for name, _ in commands)

            def answered(answers: list[object]) -> None:
                stop_at(f"answered {what}")
                done(answers)

            stop_at(f"before {what}")
            return ask(self, commands, answered, timeout=timeout)

        stack.enter_context(patch.object(kind, "ask", gated_ask))

    def gated_call(
        self: Connection,
        request: Request[object],
        done: Callable[[object], None],
        take: Callable[[bytes], None] | None = None,
    ) -> Call:
        sent = call(self, request, done, take)
        if request.procedure in BY_LIBVIRT:
            stop_at(f"sent {BY_LIBVIRT[request.procedure]}")
        return sent

    def gated_send(
        self: monitor._Client,
        commands: Sequence[monitor.Command],
        answers: Question,
        fd: int = monitor.NO_FD,
    ) -> None:
        send(self, commands, answers, fd)
        for name, _ in commands:
            stop_at(f"sent {name}")

    def gated_signal(self: Peer, number: Signals) -> bool:
        stop_at(f"before {number.name}")
        sent = send_signal(self, number)
        stop_at(f"sent {number.name}")
        return sent

    async def gated_relaunch(
        step: RunRelaunch, environment: dict[str, str], process: str
    ) -> StepResult:
        stop_at("before relaunch")
        result = await run_relaunch(step, environment, process)
        stop_at("answered relaunch")
        return result

    def gated_give_name(path: Path) -> None:
        stop_at("before dump-named")
        give_name(path)
        stop_at("after dump-named")

    for owner, name, gated in (
        (Journal, "append_soon", gated_append_soon),
        (Journal, "append_operation", gated_append_operation),
        (Intents, "take", gated_take),
        (monitor._Client, "send", gated_send),
        (Connection, "call", gated_call),
        (Peer, "send_signal", gated_signal),
        (panicd.incident.errands, "run_relaunch", gated_relaunch),
        (dump_writer, "give_name", gated_give_name),
    ):
        stack.enter_context(patch.object(owner, name, gated))
    for kind in (monitor.Monitor, DomainMonitor):
        gate_ask(kind)


def _name_of(entry: AnyEntry) -> str:
    match entry:
        case StepBegun(index=index) | StepEnded(index=index):
            return f"{entry.kind}:{index}"
        case _:
            return entry.kind


def run(arguments: list[str]) -> None:
    """Run ``panicd`` with these arguments, and gates; it ends the process."""
    configuration = Path(arguments[arguments.index("--config") + 1])
    with ExitStack() as stack:
        _install(Gates(configuration.with_name(SOCKET)), stack)
        main(arguments)
