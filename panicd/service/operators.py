"""Carries out what operators ask for, and records who asked and why.

Holds survive a restart of the daemon, because they are folded from the journal. They end by
themselves.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from panicd.fleet.connector import Connector
from panicd.fleet.plugging import PluggingError, plug_in, take_out
from panicd.host.logs import get_logger
from panicd.incident.domains import Domain
from panicd.incident.request import Request
from panicd.incident.services import Services
from panicd.journal.journal import JournalError
from panicd.rules.capability import Capability
from panicd.rules.incident import Acknowledged, IllegalTransitionError, Incident
from panicd.rules.on_crash import OnCrash
from panicd.rules.operation import Operation
from panicd.rules.panic_device import PanicDevice
from panicd.rules.plugging import Plugged
from panicd.service.control_client import RefusedError

PATIENCE: Final = 5.0  # seconds after which an operator is told that it takes longer


class Operators:
    """Carries out what operators ask for.

    Args:
        services: what it uses.
        connector: knows the driver of each domain.
    """

    def __init__(self, services: Services, connector: Connector) -> None:
        self._services = services
        self._connector = connector
        self._changed = trio.Event()

    async def run(self) -> None:
        """Begin holds, and end them when their time is over, until cancelled."""
        while True:
            now = self._services.keeping.clock()
            end = self._services.holds.next_end(now)
            with trio.move_on_after(math.inf if end is None else max(0.0, end - now)):
                await self._changed.wait()
            self._changed = trio.Event()
            await self._connector.reload()

    def look_anew(self) -> None:
        """Have every domain look up its policy and holds again, soon."""
        self._changed.set()

    async def hold(self, operation: Operation) -> None:
        """Suspend automation for a domain or the host, or end that.

        Raises:
            RefusedError: it can't be recorded.
        """
        await self._record(operation)
        self._services.holds.add(operation)
        await self._connector.reload()  # what was foreseen ends before this is answered
        self.look_anew()

    async def act(
        self, domain: Domain, operation: Operation, action: OnCrash | None, about: str = ""
    ) -> tuple[bool, Incident | None]:
        """Act on a domain's panicked guest.

        Args:
            domain: the domain.
            operation: who asks, and why.
            action: what to do; None: let the guest run as it is.
            about: the id of the incident that is meant; empty: the open one.

        Returns:
            Whether it is done; if not, it is still under way. Also its incident, as it stands
            then; None if there was none, and the request is still to be refused for that.

        Raises:
            RefusedError: the domain's state has changed meanwhile, or it can't be done.
        """
        driver = self._connector.driver_of(domain)
        if driver is None:
            raise RefusedError("not-connected", f"{domain.name}: {domain.problem}")
        await self._record(operation)
        request, chronicle = Request(operation, action), domain.chronicle
        if about and (chronicle is None or chronicle.incident.id != about):
            raise RefusedError("overtaken", f"{domain.name}: incident {about} has ended")
        driver.ask(request)
        with trio.move_on_after(PATIENCE):
            await request.done.wait()
        if request.refused:
            raise RefusedError("overtaken", f"{domain.name}: {request.refused}")
        return request.done.is_set(), chronicle.incident if chronicle else None

    async def arm(self, domain: Domain, operation: Operation) -> Plugged:
        """Give a domain's VM a panic device while it runs; see ``rules.plugging``.

        Raises:
            RefusedError: it has one, or can't get one.
        """
        capability = self._capability(domain)
        if capability.panic_device is not PanicDevice.NONE and not capability.plugged:
            types = ", ".join(capability.device_types)
            raise RefusedError("has-device", f"{domain.name} has a panic device: {types}")
        with self._plugging(domain):
            await self._record(operation)
            found = await plug_in(self._services.libvirt, domain)
        get_logger().warning(
            "a panic device was plugged in: the VM can't be migrated or saved while it is there",
            domain=domain.name,
            argument=found.argument,
            taken_by_guest=found.is_taken,
        )
        return found

    async def disarm(self, domain: Domain, operation: Operation) -> None:
        """Remove that device again.

        Raises:
            RefusedError: there is none, or it stays.
        """
        if not self._capability(domain).plugged:
            message = f"{domain.name} has no panic device from `panicd arm`"
            raise RefusedError("no-device", message)
        with self._plugging(domain):
            await self._record(operation)
            await take_out(self._services.libvirt, domain)
        get_logger().info("the plugged-in panic device was removed", domain=domain.name)

    def _capability(self, domain: Domain) -> Capability:
        if domain.session is None:
            raise RefusedError("not-connected", f"{domain.name}: {domain.problem}")
        return domain.session.capability

    @contextmanager
    def _plugging(self, domain: Domain) -> Iterator[None]:
        """Refuse if nothing may change a VM; afterwards have the change taken in."""
        if self._services.dry_run:
            raise RefusedError("dry-run", "this is a dry run, which changes nothing")
        if domain.chronicle is not None:
            incident = domain.chronicle.incident.id
            raise RefusedError("overtaken", f"{domain.name}: incident {incident} goes on")
        try:
            yield
        except PluggingError as error:
            raise RefusedError("not-done", f"{domain.name}: {error}") from error
        finally:
            driver = self._connector.driver_of(domain)
            if driver is not None:
                driver.reload()

    async def acknowledge(self, incident_id: str, operation: Operation) -> str:
        """Acknowledge an incident, whether it is open or not.

        Returns:
            The name of its domain.

        Raises:
            RefusedError: there is no such incident, or it can't be recorded.
        """
        services = self._services
        for domain in services.fleet.domains.values():
            if domain.chronicle is not None and domain.chronicle.incident.id == incident_id:
                await self.act(domain, operation, None)
                return domain.name
        entry = Acknowledged(operation.at, operation.uid, operation.why, operation.user)
        journal = services.keeping.journal
        try:
            for chronicle in services.waiting.parked:
                if chronicle.incident.id == incident_id:
                    chronicle.note(entry)
                    await chronicle.commit()
                    return chronicle.incident.opened.domain
            incident = await trio.to_thread.run_sync(journal.incident, incident_id)
            if incident is None:
                raise RefusedError("no-such-incident", f"no incident is called {incident_id!r}")
            await journal.append(incident_id, entry)
        except (JournalError, IllegalTransitionError) as error:  # removed at this moment
            raise RefusedError("journal", str(error)) from error
        return incident.opened.domain

    async def _record(self, operation: Operation) -> None:
        try:
            await self._services.keeping.journal.append_operation(operation)
        except JournalError as error:
            raise RefusedError("journal", str(error)) from error
        get_logger().info(
            "operator asked",
            domain=operation.domain,
            uid=operation.uid,
            user=operation.user,
            what=f"{operation.kind} {operation.detail}".strip(),
            why=operation.why,
            until=operation.until,
        )
