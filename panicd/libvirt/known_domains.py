"""What libvirt says of the domains that it runs, in memory, and what it is told to do with them.

Nothing here stands between a panic and its decision. A domain is asked about when its monitor is
connected, and again by a slow timer; a libvirt that does not answer is waited for once, briefly,
and after that by the timer alone. While it is silent, what was known last holds.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from panicd.host.logs import get_logger
from panicd.libvirt.virsh import (
    LibvirtError,
    LibvirtRefusedError,
    LibvirtSilentError,
    virsh,
    virsh_events,
)
from panicd.qemu.process_identity import ProcessIdentity
from panicd.rules.identity import parse_uuid
from panicd.rules.libvirt import LibvirtDomain, parse_domains, pid_file
from panicd.rules.settings import LibvirtSettings

KNOWN_WITHIN: Final = 2.0  # seconds that a newly connected domain waits for its policy
ALIVE_WITHIN: Final = 2.0  # seconds; virsh was seen to take 0.02
REFRESH_EVERY: Final = 60.0  # seconds
RETRY_EVERY: Final = 5.0  # seconds, while libvirt does not answer
LISTED_EVERY: Final = 0.5  # seconds at least between two looks for monitors
AT_ONCE: Final = 16  # virsh processes, while many domains panic
BATCH: Final = 50  # domains that one virsh asks about
BATCH_WITHIN: Final = 30.0  # seconds
JOB_WAIT: Final = 35.0
"""Seconds that a command may take. libvirt itself waits up to 30 for a domain's other job to end,
and then carries it out though nobody waits for it any more: so it isn't given up before that."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked about one monitor: which domain its QEMU claims to be, and its process."""

    uuid: str
    process: ProcessIdentity | None


class LibvirtAwayError(LibvirtError):
    """It does not answer, or does not know the domain; it was told nothing."""


class Libvirt:
    """The libvirt of this host, if one is configured.

    Args:
        settings: returns what is configured; None: no libvirt.
        dry_run: nothing is changed.

    Attributes:
        problem: why libvirt does not answer; empty where it does, or was not asked.
        on_change: called when a domain is not as it was known.
        on_problem: called with ``problem`` when that has changed.
    """

    def __init__(self, settings: Callable[[], LibvirtSettings | None], *, dry_run: bool) -> None:
        self._settings = settings
        self._dry_run = dry_run
        self._monitors: dict[str, _Asked] = {}  # by path, and so are these:
        self._domains: dict[str, LibvirtDomain] = {}
        self._known_of: dict[str, _Asked] = {}
        self._now = trio.Event()
        self._turns = trio.CapacityLimiter(AT_ONCE)
        self.problem = ""
        self.on_change: Callable[[], None] = lambda: None
        self.on_problem: Callable[[str], None] = lambda _problem: None

    def known(self, monitor: str) -> LibvirtDomain | None:
        """Return the domain whose monitor this is; None where libvirt is not known to run it.

        Args:
            monitor: the path that was dialled.
        """
        return self._domains.get(monitor) if self._settings() is not None else None

    async def learn(self, uuid: str, monitor: str, process: str) -> None:
        """Ask about a domain that was just connected, and wait for the answer, but briefly.

        The UUID says no more than whom to ask about: any QEMU can claim another one's. The domain
        is the one at the other end only where its own XML names this monitor, and where the process
        there is the one that libvirt started, as far as both are known.

        Args:
            uuid: as its QEMU says; empty where nothing tells that libvirt runs it.
            monitor: the path that was dialled.
            process: at the other end (``ProcessIdentity``); empty where it is not known.
        """
        settings = self._settings()
        asked = _Asked(parse_uuid(uuid), ProcessIdentity.parse(process))
        if self._known_of.get(monitor) != asked:
            self._domains.pop(monitor, None)  # that was of another QEMU, at the same path
        if settings is None or not asked.uuid:
            return
        self._monitors[monitor] = asked
        if self.problem:
            return
        try:
            with trio.fail_after(KNOWN_WITHIN):
                await self._ask(settings, [monitor], KNOWN_WITHIN)
        except trio.TooSlowError:
            self._note_problem(f"libvirt did not answer within {KNOWN_WITHIN:g} s")

    def forget(self, monitor: str) -> None:
        """Ask no more about a domain; what is known of it holds until the timer's next turn."""
        self._monitors.pop(monitor, None)

    def refresh_soon(self) -> None:
        """Ask about every domain anew, now and not by the timer."""
        self._now.set()

    async def run(self) -> None:
        """Keep what is known up to date, until cancelled."""
        while True:
            with trio.move_on_after(RETRY_EVERY if self.problem else REFRESH_EVERY):
                await self._now.wait()
            self._now = trio.Event()
            await self._refresh()

    async def watch_monitors(self, found: Callable[[set[str]], None]) -> None:
        """Tell the paths of the running domains' monitors, one each, again and again.

        A domain that starts is seen at once, by libvirt's event, or else by the timer.

        Args:
            found: is told the paths, all of them, each time.
        """
        heard = trio.Event()

        def wake() -> None:
            heard.set()

        async def hear() -> None:
            while True:
                settings = self._settings()
                if settings is not None:
                    await virsh_events(settings.uri, wake)
                await trio.sleep(RETRY_EVERY)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            while True:
                heard = trio.Event()
                paths = await self._list_monitors()
                if paths is not None:
                    found(paths)
                await trio.sleep(LISTED_EVERY)
                with trio.move_on_after(RETRY_EVERY if paths is None else REFRESH_EVERY):
                    await heard.wait()

    async def _list_monitors(self) -> set[str] | None:
        settings = self._settings()
        if settings is None:
            return set()
        try:
            listed = await virsh(settings.uri, ["list", "--uuid"], BATCH_WITHIN)
            uuids = [line for line in listed.split() if parse_uuid(line)]
            domains: list[LibvirtDomain] = []
            for first in range(0, len(uuids), BATCH):
                domains += await self._describe(
                    settings, uuids[first : first + BATCH], BATCH_WITHIN
                )
        except LibvirtError as error:
            self._note_problem(str(error))
            return None
        return {domain.monitors[0] for domain in domains if domain.monitors}

    async def act(self, domain: LibvirtDomain, verb: str, timeout: float = JOB_WAIT) -> None:
        """Have libvirt do something with a domain, at once.

        The domain goes by its number, which is new at each start: a command that is carried out
        late can't meet the domain's next QEMU.

        Args:
            domain: which.
            verb: a command of virsh(1) that takes nothing but the domain.
            timeout: seconds.

        Raises:
            LibvirtAwayError: it was told nothing, for it does not answer.
            LibvirtSilentError: it was told, and did not say how it went.
            LibvirtRefusedError: it said no.
        """
        settings = self._settings()
        if settings is None:
            raise LibvirtAwayError("no libvirt is configured")
        number = str(domain.id)
        async with self._turns:
            await self._await_panic_seen(settings, number, waits=verb != "destroy")
        async with self._turns:
            await virsh(settings.uri, [verb, number], timeout)

    async def _await_panic_seen(
        self, settings: LibvirtSettings, number: str, *, waits: bool
    ) -> bool:
        """See that libvirt answers, and has taken in that the guest has panicked.

        It does so in a thread of its own; one that comes late says 'crashed' for good, though the
        guest was reset and runs.

        Returns:
            Whether it has, or is not waited for; it is given ``ALIVE_WITHIN``.

        Raises:
            LibvirtAwayError: it does not answer.
        """
        if self.problem:
            raise LibvirtAwayError(self.problem)
        deadline = trio.current_time() + ALIVE_WITHIN
        is_seen = False
        try:
            while not is_seen and trio.current_time() < deadline:  # each look is a process
                state = await virsh(settings.uri, ["domstate", number], ALIVE_WITHIN)
                is_seen = not waits or state.strip() != "running"
        except LibvirtSilentError as error:
            self._note_problem(str(error))  # the next command isn't kept waiting
            self.refresh_soon()
            raise LibvirtAwayError(str(error)) from error
        except LibvirtRefusedError as error:
            raise LibvirtAwayError(str(error)) from error
        return is_seen

    async def dump(self, domain: LibvirtDomain, path: Path, kind: str, timeout: float) -> None:
        """Have libvirt write a domain's memory to a path.

        Not of a domain that libvirt takes for running: it would resume it afterwards.

        Args:
            domain: which.
            path: of a file or of a FIFO.
            kind: QAPI ``DumpGuestMemoryFormat``.
            timeout: seconds; then the dump is given up.

        Raises:
            LibvirtError: it did not, or not in time.
        """
        settings = self._settings()
        if settings is None:
            raise LibvirtAwayError("no libvirt is configured")
        number, complete = str(domain.id), False
        if not await self._await_panic_seen(settings, number, waits=True):
            raise LibvirtAwayError("libvirt has not seen that the guest is stopped")
        command = ["dump", number, os.fspath(path), "--memory-only", "--format", kind]
        try:
            await virsh(settings.uri, command, timeout)
            complete = True
        finally:
            if not complete:
                with trio.CancelScope(shield=True):
                    await self._give_up_job(settings, number)

    async def _give_up_job(self, settings: LibvirtSettings, number: str) -> None:
        try:
            await virsh(settings.uri, ["domjobabort", number], ALIVE_WITHIN)
        except LibvirtError as error:  # there may be none any more
            get_logger().debug("no job was given up", libvirt=str(error))

    async def _refresh(self) -> None:
        settings = self._settings()
        for monitor in set(self._known_of) - set(self._monitors):
            self._domains.pop(monitor, None)
            del self._known_of[monitor]
        before, monitors = dict(self._domains), list(self._monitors)
        if settings is not None:
            if self.problem and not monitors:  # whether it answers again
                await self._ask(settings, [], BATCH_WITHIN)
            for first in range(0, len(monitors), BATCH):
                await self._ask(settings, monitors[first : first + BATCH], BATCH_WITHIN)
        if self._domains != before:
            self.on_change()

    async def _ask(self, settings: LibvirtSettings, monitors: list[str], timeout: float) -> None:
        asked = {path: self._monitors[path] for path in monitors if path in self._monitors}
        uuids = dict.fromkeys(one.uuid for one in asked.values())  # several may claim one
        try:
            described = await self._describe(settings, list(uuids), timeout)
        except LibvirtError as error:
            self._note_problem(str(error))
            return
        self._note_problem("")
        found = {domain.uuid: domain for domain in described}
        for monitor, one in asked.items():
            domain = found.get(one.uuid)
            if self._monitors.get(monitor, one) != one:
                continue  # another QEMU's by now, which is asked about itself
            self._known_of[monitor] = one
            if domain is not None and _is_its_monitor(domain, monitor, one, settings):
                self._domains[monitor] = await self._take_over(settings, domain)
            else:
                self._domains.pop(monitor, None)

    async def _describe(
        self, settings: LibvirtSettings, uuids: list[str], timeout: float
    ) -> list[LibvirtDomain]:
        # 'uri' succeeds wherever there is a libvirt, though the domain before it may have ended.
        question = "; ".join([*(f"dumpxml {uuid}" for uuid in uuids), "uri"])
        return parse_domains(await virsh(settings.uri, [question], timeout))

    async def _take_over(self, settings: LibvirtSettings, domain: LibvirtDomain) -> LibvirtDomain:
        """Have libvirt preserve the domain when it panics, if that is wanted."""
        if not domain.takeover or self._dry_run or not settings.take_over:
            return domain
        log = get_logger(domain=domain.name)
        try:
            for command in domain.takeover:
                await virsh(settings.uri, list(command), ALIVE_WITHIN)
        except LibvirtError as error:
            log.warning("libvirt goes on acting on this domain's panics", problem=str(error))
            return domain
        log.info("libvirt leaves this domain's panics to panicd", on_crash=domain.on_crash)
        return domain.taken_over()

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.on_problem(problem)


def names_monitor(monitors: Iterable[str], monitor: str) -> bool:
    """Tell whether one of a domain's monitors is this path, symbolic links followed."""
    path = os.path.realpath(monitor)
    return path in {os.path.realpath(named) for named in monitors}


def _is_its_monitor(
    domain: LibvirtDomain, monitor: str, asked: _Asked, settings: LibvirtSettings
) -> bool:
    if not names_monitor(domain.monitors, monitor):
        return False
    if asked.process is None:
        return True
    try:
        place = pid_file(settings.uri, domain.name, os.environ)
        pid = int(Path(place).read_text(encoding="ascii"))
    except (OSError, ValueError):  # another user's, or no libvirt of this host's
        return True
    if pid != asked.process.pid:
        get_logger(monitor=monitor).warning(
            "not treated as libvirt's", domain=domain.name, reason="another process answers there"
        )
    return pid == asked.process.pid
