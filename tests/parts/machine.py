"""The fake QEMU's inside: one machine, its run state, and what each command does to it.

It is modelled on what real QEMUs were seen to do; tests/contract compares it with a real QEMU. The
texts of errors are those of 7.2. Nothing here waits, or reads or writes files other than those that
commands name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parts import qom
from tests.parts.dump_files import DUMP_FORMATS, PNG, PPM, Dump
from tests.parts.profile import Profile, RunState
from tests.parts.wire import Message

_UNSET_UUID = "00000000-0000-0000-0000-000000000000"

_ACTIONS = {
    "panic": ("pause", "shutdown", "exit-failure", "none"),
    "reboot": ("reset", "shutdown"),
    "shutdown": ("poweroff", "pause"),
    "watchdog": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}
"""``set-action``'s arguments and their values, QAPI run-state.json."""

_DUMP_IN_PROGRESS = "There is a dump in process, please wait."

_PVSHUTDOWN = 4
"""The bit of the device's ``events`` that stands for GUEST_PVSHUTDOWN."""

_JOBS_SINCE = (3, 0, 0)

_ABORTED = -6
"""The exit status of a process that called abort()."""


class CommandError(Exception):
    """A command's error, as QEMU answers it."""

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class


@dataclass
class Machine:
    """One machine.

    Attributes:
        profile: Which QEMU this is.
        emit: Called with every event's name and data, in order.
        name: As ``-name``; empty: none was given.
        uuid: As ``-uuid``; None: none was given.
        devices: As ``-device``, one each.
        machine_type: The QOM type of ``/machine``.
        objects: As ``-object``, the type of each.
        builtin_port: The I/O port of the builtin panic device, where there is one.
        memory: Guest memory in bytes.
        state: The run state.
        panic_action: ``set-action``'s and ``-action``'s panic.
        reboot_action: The same for reboot (``-no-reboot``: shutdown).
        shutdown_action: The same for shutdown (``-no-shutdown``: pause).
        exit_status: QEMU's exit status, once it has ended.
        vcpu_frozen: Says 'running' and does not run: a ``cont`` came between a panic and its STOP.
        must_boot: Was reset or never ran, and boots as soon as it runs.
        dump: The dump in progress.
        received_fds: File descriptors that came over the monitor and that no command took yet.
        fdset: Those of the only fd set there is.
        dumps: Bytes of guest memory that a dump holds, if not all of ``memory``.
        draw: Writes a picture of the screen to one of those.
        jobs: The status of each job, by its id.
        migration: The status of the last migration; empty: there was none.
        tells_of_migrations: The migration capability ``events``.
    """

    profile: Profile
    emit: Callable[[str, Message | None], None]
    name: str = "vm"
    uuid: str | None = None
    devices: Sequence[str] = ("pvpanic",)
    machine_type: str = "pc-i440fx-7.2-machine"
    objects: Sequence[str] = ()
    builtin_port: int = qom.PORT
    memory: int = 64 * 1024
    state: RunState = RunState.RUNNING
    panic_action: str = "shutdown"
    reboot_action: str = "reset"
    shutdown_action: str = "poweroff"
    exit_status: int | None = None
    vcpu_frozen: bool = False
    must_boot: bool = False
    dump: Dump | None = None
    received_fds: list[int] = field(default_factory=list)
    fdset: list[int] = field(default_factory=list)
    dumps: int | None = None
    draw: Callable[[int, bytes], object] = os.write
    jobs: dict[str, str] = field(default_factory=dict)
    migration: str = ""
    tells_of_migrations: bool = False
    _last_dump: Message = field(
        default_factory=lambda: {"status": "none", "completed": 0, "total": 0}
    )
    _stop_pending: bool = False
    _fds: dict[str, int] = field(default_factory=dict)

    # -- what happens to a machine

    def panic(self, info: Message | None = None, *, hold_stop: bool = False) -> None:
        """The guest panics (QEMU, ``qemu_system_guest_panicked``).

        Args:
            info: The event's ``info``, as s390 and Hyper-V guests give it.
            hold_stop: Leave the machine between the event and QEMU's own stop, until
                :meth:`finish_stop`.
        """
        if not self.profile.exits_on_panic or self._pauses_on_panic():
            self._emit_panic("GUEST_PANICKED", "pause", info)
            if hold_stop:
                self._stop_pending = self.state is RunState.RUNNING
            else:
                self.stop(RunState.GUEST_PANICKED)
        elif self.panic_action == "none":
            self._emit_panic("GUEST_PANICKED", "run", info)
        else:
            if self.profile.announces_end_twice:
                self._emit_panic("GUEST_PANICKED", "pause", info)
            self._emit_panic("GUEST_PANICKED", "poweroff", info)
            self.shut_down("guest-panic", guest=True)

    def finish_stop(self) -> None:
        """QEMU makes the stop that ``panic(hold_stop=True)`` left pending."""
        if self._stop_pending:
            self._stop_pending = False
            self.stop(RunState.GUEST_PANICKED)

    def crashload(self) -> None:
        """The guest says that its kdump kernel takes over."""
        if self.profile.crashloaded:
            self._emit_panic("GUEST_CRASHLOADED", "run", None)

    def pvshutdown(self) -> None:
        """The guest shuts itself down by the panic device, which versions with that bit know."""
        if (self.profile.pvpanic_events or 0) & _PVSHUTDOWN:
            self.emit("GUEST_PVSHUTDOWN", None)
            self.shut_down("guest-shutdown", guest=True)

    def reset(self, reason: str, *, guest: bool) -> None:
        """Reset the machine, or what ``reboot_action`` makes of it."""
        if self.reboot_action == "shutdown":
            self.shut_down(reason, guest=guest)
            return
        if self.state is RunState.SAVE_VM:
            self.exit_status = _ABORTED  # invalid runstate transition: 'save-vm' -> 'prelaunch'
            return
        self._emit_reset(reason, guest=guest)
        self.must_boot = True
        self.vcpu_frozen = False
        if self.state is RunState.GUEST_PANICKED:
            self.state = self.profile.panicked_after_reset
        elif (
            self.state not in (RunState.RUNNING, RunState.INMIGRATE)
            and self.profile.panicked_after_reset is RunState.PRELAUNCH
        ):
            self.state = RunState.PRELAUNCH

    def firmware_reset(self) -> None:
        """The reset that a firmware makes when it finds that it has run before."""
        self._emit_reset("guest-reset", guest=True)

    def shut_down(self, reason: str, *, guest: bool) -> None:
        """Shut the machine down: QEMU ends, unless ``shutdown_action`` is pause."""
        details = {"guest": guest, "reason": reason}
        self.emit("SHUTDOWN", details if self.profile.event_details else None)
        if self.shutdown_action == "pause":
            self.stop(RunState.SHUTDOWN)
        else:
            panicked = reason == "guest-panic"
            self.exit_status = int(panicked and self.panic_action == "exit-failure")

    def stop(self, state: RunState) -> None:
        """Stop the machine; one that does not run stays as it is."""
        if self.state is RunState.RUNNING:
            self.state = state
            self.emit("STOP", None)

    # -- QEMU's own work

    def begin_job(self, number: str) -> None:
        """A block job begins, and goes on for ever."""
        for status in ("created", "running"):
            self._set_job(number, status)

    def end_job(self, number: str) -> None:
        """A block job is cancelled."""
        for status in ("aborting", "concluded", "null"):
            self._set_job(number, status)

    def begin_migration(self) -> None:
        """A migration begins, and goes on for ever."""
        for status in ("setup", "active"):
            self._set_migration(status)

    def end_migration(self) -> None:
        """A migration is cancelled."""
        for status in ("cancelling", "cancelled"):
            self._set_migration(status)

    def suspend(self) -> None:
        """The guest sleeps (ACPI S3); the model lets it run."""
        self.emit("SUSPEND", None)

    # -- dumps, in three steps: begin (the command), write (by whoever may wait), finish

    def finish_dump(self, error: str | None) -> None:
        """The dump in progress is written, or failed with ``error``."""
        assert self.dump is not None, "no dump is in progress"
        dump, self.dump = self.dump, None
        self._last_dump["status"] = "failed" if error else "completed"
        if error is None:
            self._last_dump["completed"] = self._last_dump["total"]
        if self.profile.detached_dump:
            data: Message = {"result": dict(self._last_dump)}
            if error:
                data["error"] = error
            self.emit("DUMP_COMPLETED", data)
        if dump.resumes:
            self._run()

    # -- commands

    def execute(self, name: str, arguments: Message) -> Any:
        """Carry out a command.

        Args:
            name: The command.
            arguments: Its arguments.

        Returns:
            What it returns. After ``dump-guest-memory``, :attr:`dump` has to be written.

        Raises:
            CommandError: It failed.
        """
        command = self.commands().get(name)
        if command is None:
            raise CommandError(f"The command {name} has not been found", "CommandNotFound")
        for required in command.required:
            if required not in arguments:
                raise CommandError(f"Parameter '{required}' is missing")
        for given in arguments:
            if given not in (*command.required, *command.optional):
                raise CommandError(f"Parameter '{given}' is unexpected")
        return command.run(self, arguments)

    def commands(self) -> dict[str, Command]:
        """The commands that this machine's version knows."""
        known = {
            name: command for name, command in _COMMANDS.items() if command.known(self.profile)
        }
        return known | {"dump-guest-memory": _dump_command(self.profile)}

    def drop_received_fds(self) -> None:
        """Close the file descriptors that no command took: their connection has ended."""
        while self.received_fds:
            os.close(self.received_fds.pop())

    def close(self) -> None:
        """Close the file descriptors that are still held."""
        self.drop_received_fds()
        self._remove_fd({})
        while self._fds:
            os.close(self._fds.popitem()[1])

    # -- commands that change something

    def _cont(self, _arguments: Message) -> Message:
        needs_reset = [RunState.SHUTDOWN, RunState.INTERNAL_ERROR]
        if not self.profile.cont_resumes_panicked:
            needs_reset.append(RunState.GUEST_PANICKED)
        if self.state in needs_reset:
            raise CommandError("Resetting the Virtual Machine is required")
        if self.dump is not None:
            raise CommandError(_DUMP_IN_PROGRESS)
        if self._stop_pending:
            self._stop_pending = False
            self.vcpu_frozen = True
            self.emit("STOP", None)
            self.emit("RESUME", None)
        elif self.state is RunState.INMIGRATE:
            pass  # it will run once the migration has come in
        elif self.state is not RunState.RUNNING:
            self._run()
        return {}

    def _stop(self, _arguments: Message) -> Message:
        self.stop(RunState.PAUSED)
        self._stop_pending = False  # it was for a machine that runs
        if self.vcpu_frozen:
            self.vcpu_frozen = False  # the next cont really resumes it
        return {}

    def _system_reset(self, _arguments: Message) -> Message:
        self.reset("host-qmp-system-reset", guest=False)
        return {}

    def _system_powerdown(self, _arguments: Message) -> Message:
        self.emit("POWERDOWN", None)
        return {}

    def _quit(self, _arguments: Message) -> Message:
        self.shutdown_action = "poweroff"
        self.shut_down("host-qmp-quit", guest=False)
        return {}

    def _set_action(self, arguments: Message) -> Message:
        for what, action in arguments.items():
            if action not in _ACTIONS[what]:
                raise CommandError(f"Parameter '{what}' does not accept value '{action}'")
        self.panic_action = arguments.get("panic", self.panic_action)
        self.reboot_action = arguments.get("reboot", self.reboot_action)
        self.shutdown_action = arguments.get("shutdown", self.shutdown_action)
        return {}

    def _migrate_set_capabilities(self, arguments: Message) -> Message:
        if self.migration in ("setup", "active", "cancelling"):
            raise CommandError("There's a migration process in progress")
        for each in arguments["capabilities"]:
            if each["capability"] == "events":
                self.tells_of_migrations = each["state"]
        return {}

    def _getfd(self, arguments: Message) -> Message:
        if not self.received_fds:
            raise CommandError("No file descriptor supplied via SCM_RIGHTS")
        name = arguments["fdname"]
        if name[:1].isdigit():
            raise CommandError("Parameter 'fdname' expects a name not starting with a digit")
        replaced = self._fds.pop(name, None)
        if replaced is not None:
            os.close(replaced)
        self._fds[name] = self.received_fds.pop(0)
        return {}

    def _closefd(self, arguments: Message) -> Message:
        name = arguments["fdname"]
        if name not in self._fds:
            raise CommandError(f"File descriptor named '{name}' not found")
        os.close(self._fds.pop(name))
        return {}

    def _dump_guest_memory(self, arguments: Message) -> Message:
        if self.dump is not None:
            raise CommandError(_DUMP_IN_PROGRESS)
        kind = arguments.get("format", "elf")
        memory = self._dumped_memory(arguments, kind)
        fd = self._dump_fd(arguments["protocol"])
        resumes = self.state is RunState.RUNNING
        self.stop(RunState.SAVE_VM)
        self.dump = Dump(fd, kind, memory, bool(arguments.get("detach")), resumes)
        self._last_dump = {"status": "active", "completed": 0, "total": memory}
        return {}

    def _dumped_memory(self, arguments: Message, kind: str) -> int:
        if kind not in DUMP_FORMATS:
            raise CommandError(f"Parameter 'format' does not accept value '{kind}'")
        if "begin" in arguments and "length" not in arguments:
            raise CommandError("Parameter 'length' is missing")
        if "length" in arguments and "begin" not in arguments:
            raise CommandError("Parameter 'begin' is missing")
        if kind != "elf" and ("begin" in arguments or arguments["paging"]):
            raise CommandError("kdump-compressed format doesn't support paging or filter")
        if kind not in (self.profile.dump_formats or ("elf",)):
            raise CommandError(f"{kind} is not available now")
        whole = self.memory if self.dumps is None else self.dumps
        return int(arguments.get("length", whole))

    def _dump_fd(self, protocol: str) -> int:
        scheme, _, where = protocol.partition(":")
        if scheme == "fd":
            if where not in self._fds:
                raise CommandError(f"File descriptor named '{where}' has not been found")
            return self._fds.pop(where)
        if scheme != "file":
            raise CommandError("Invalid parameter 'protocol'")
        try:
            return os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o400)
        except OSError as error:
            raise CommandError(f"Could not open '{where}': {error.strerror}") from error

    def _add_fd(self, _arguments: Message) -> Message:
        if not self.received_fds:
            raise CommandError("No file descriptor supplied via SCM_RIGHTS")
        self.fdset.append(self.received_fds.pop(0))
        return {"fdset-id": 0, "fd": self.fdset[-1]}

    def _remove_fd(self, _arguments: Message) -> Message:
        while self.fdset:
            os.close(self.fdset.pop())
        return {}

    def _screendump(self, arguments: Message) -> Message:
        image = PNG if arguments.get("format") == "png" else PPM
        filename = arguments["filename"]
        try:
            if filename.startswith("/proc/self/fd/"):
                self.draw(int(Path(filename).name), image)
            else:
                Path(filename).write_bytes(image)
        except OSError as error:
            raise CommandError(f"failed to open file '{filename}': {error.strerror}") from error
        return {}

    # -- commands that ask

    def _query_status(self, _arguments: Message) -> Message:
        status = {"status": str(self.state), "running": self.state is RunState.RUNNING}
        return status | ({"singlestep": False} if self.profile.singlestep else {})

    def _query_name(self, _arguments: Message) -> Message:
        return {"name": self.name} if self.name else {}

    def _query_uuid(self, _arguments: Message) -> Message:
        return {"UUID": self.uuid or _UNSET_UUID}

    def query_version(self, _arguments: Message) -> Message:
        """``query-version``, and what the greeting says of it."""
        major, minor, micro = self.profile.version
        return {
            "qemu": {"major": major, "minor": minor, "micro": micro},
            "package": self.profile.package,
        }

    def _query_commands(self, _arguments: Message) -> list[Message]:
        return [{"name": name} for name in self.commands()]

    def _query_dump(self, _arguments: Message) -> Message:
        return self.query_dump()

    def query_dump(self) -> Message:
        """How far a dump is."""
        return dict(self._last_dump)

    def _query_dump_capability(self, _arguments: Message) -> Message:
        return {"formats": list(self.profile.dump_formats)}

    def _query_memory_size_summary(self, _arguments: Message) -> Message:
        return {"base-memory": self.memory}

    def _query_migrate(self, _arguments: Message) -> Message:
        status = "completed" if self.state is RunState.POSTMIGRATE else self.migration
        return {"status": status} if status else {}

    def _query_jobs(self, _arguments: Message) -> list[Message]:
        progress: Message = {"current-progress": 0, "total-progress": 1, "type": "backup"}
        return [{"id": each, "status": status} | progress for each, status in self.jobs.items()]

    def _query_block_jobs(self, _arguments: Message) -> list[Message]:
        return [
            {"device": each, "status": status, "type": "backup", "ready": False}
            for each, status in self.jobs.items()
        ]

    def _query_qmp_schema(self, _arguments: Message) -> list[Message]:
        """Commands with their arguments; all types are said to be ``str``."""
        schema: list[Message] = []
        for name, command in self.commands().items():
            schema += [
                {
                    "name": name,
                    "meta-type": "command",
                    "arg-type": f"{name}-arg",
                    "ret-type": "any",
                    "allow-oob": False,
                },
                {
                    "name": f"{name}-arg",
                    "meta-type": "object",
                    "members": [
                        *({"name": member, "type": "str"} for member in command.required),
                        *(
                            {"name": member, "type": "str", "default": None}
                            for member in command.optional
                        ),
                    ],
                },
            ]
        return schema

    def _qom_list(self, arguments: Message) -> list[Message]:
        return qom.listed(self._qom_node(arguments["path"]))

    def _qom_get(self, arguments: Message) -> Any:
        node = self._qom_node(arguments["path"])
        name = arguments["property"]
        if name not in node:
            raise CommandError(f"Property '{node['type']}.{name}' not found")
        return node[name]

    def _qom_node(self, path: str) -> Message:
        node = qom.find(self._qom_tree(), path)
        if node is None:
            raise CommandError(f"Device '{path}' not found", "DeviceNotFound")
        return node

    def _qom_tree(self) -> Message:
        return qom.tree(
            self.profile, self.machine_type, self.devices, self.objects, self.builtin_port
        )

    def _mtree(self) -> str:
        """The I/O ports as ``info mtree`` prints them: by two up to 1.7, by four since."""
        old = self.profile.version < (2, 0, 0)
        regions = [
            (0, 0xFFFF, "io"),
            *((port, port, "pvpanic") for port in qom.ports(self._qom_tree())),
        ]
        regions += [(0, 7, "dma-chan"), (8, 0xF, "dma-cont")]
        lines = ["I/O" if old else "address-space: I/O"]
        for first, last, name in regions:
            indent = 2 * (name != "io") + 2 * (not old)
            access = "RW" if old else "i/o"
            lines.append(f"{'':{indent}}{first:016x}-{last:016x} (prio 0, {access}): {name}")
        return "\r\n".join([*lines, ""])

    def _human_monitor_command(self, arguments: Message) -> str:
        command = arguments["command-line"]
        if command in ("info registers", "info registers -a"):
            return "\r\nCPU#0\r\nEAX=00000000 EBX=00000000 ECX=00000000 EDX=00000505\r\n"
        if command == "info mtree":
            return self._mtree()
        return f"unknown command: '{command.split(maxsplit=1)[0]}'\r\n"

    # -- inside

    def _pauses_on_panic(self) -> bool:
        return self.panic_action == "pause" or (
            self.panic_action == "shutdown" and self.shutdown_action == "pause"
        )

    def _run(self) -> None:
        self.state = RunState.RUNNING
        self.emit("RESUME", None)

    def _set_job(self, number: str, status: str) -> None:
        if status == "null":
            del self.jobs[number]
        else:
            self.jobs[number] = status
        if self.profile.version >= _JOBS_SINCE:
            self.emit("JOB_STATUS_CHANGE", {"id": number, "status": status})

    def _set_migration(self, status: str) -> None:
        self.migration = status
        if self.tells_of_migrations:
            self.emit("MIGRATION", {"status": status})

    def _emit_panic(self, event: str, action: str, info: Message | None) -> None:
        self.emit(event, {"action": action} | ({} if info is None else {"info": info}))

    def _emit_reset(self, reason: str, *, guest: bool) -> None:
        details = {"guest": guest, "reason": reason}
        self.emit("RESET", details if self.profile.event_details else None)


@dataclass(frozen=True)
class Command:
    """One command: its arguments, what runs it, and which versions know it."""

    run: Callable[[Machine, Message], Any]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    known: Callable[[Profile], bool] = lambda _: True


_COMMANDS = {
    "cont": Command(Machine._cont),
    "stop": Command(Machine._stop),
    "system_reset": Command(Machine._system_reset),
    "system_powerdown": Command(Machine._system_powerdown),
    "quit": Command(Machine._quit),
    "set-action": Command(
        Machine._set_action, optional=tuple(_ACTIONS), known=lambda profile: profile.set_action
    ),
    "add-fd": Command(Machine._add_fd, (), ("fdset-id", "opaque")),
    "remove-fd": Command(Machine._remove_fd, ("fdset-id",), ("fd",)),
    "getfd": Command(Machine._getfd, ("fdname",)),
    "closefd": Command(Machine._closefd, ("fdname",)),
    "query-dump": Command(Machine._query_dump, known=lambda profile: profile.detached_dump),
    "query-dump-guest-memory-capability": Command(
        Machine._query_dump_capability, known=lambda profile: bool(profile.dump_formats)
    ),
    "screendump": Command(Machine._screendump, ("filename",), ("device", "head", "format")),
    "human-monitor-command": Command(
        Machine._human_monitor_command, ("command-line",), ("cpu-index",)
    ),
    "qom-list": Command(Machine._qom_list, ("path",)),
    "qom-get": Command(Machine._qom_get, ("path", "property")),
    "query-commands": Command(Machine._query_commands),
    "query-memory-size-summary": Command(
        Machine._query_memory_size_summary, known=lambda profile: profile.version >= (2, 11, 0)
    ),
    "query-migrate": Command(Machine._query_migrate),
    "query-block-jobs": Command(Machine._query_block_jobs),
    "query-jobs": Command(
        Machine._query_jobs, known=lambda profile: profile.version >= _JOBS_SINCE
    ),
    "migrate-set-capabilities": Command(Machine._migrate_set_capabilities, ("capabilities",)),
    "query-name": Command(Machine._query_name),
    "query-qmp-schema": Command(Machine._query_qmp_schema, known=lambda profile: profile.schema),
    "query-status": Command(Machine._query_status),
    "query-uuid": Command(Machine._query_uuid),
    "query-version": Command(Machine.query_version),
}


def _dump_command(profile: Profile) -> Command:
    optional = ["begin", "length"]
    if profile.dump_formats:
        optional.append("format")
    if profile.detached_dump:
        optional.append("detach")
    return Command(Machine._dump_guest_memory, ("paging", "protocol"), tuple(optional))
