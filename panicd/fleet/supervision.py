"""A connected domain, reached in either way: identified, and given to its driver."""

from typing import Final

import trio

from panicd.host.logs import get_logger
from panicd.incident.domains import CONNECTING, Domain
from panicd.incident.driver import Driver
from panicd.incident.services import Services
from panicd.qemu.monitor import UnreachableError
from panicd.qemu.session import Session

TWIN_LEAVES: Final = 5.0  # seconds; panicd needs one or two to find out why a session ended
TOLD_AT_MOST: Final = 5  # reasons in a row for one absence; the status has the latest


class SpareError(UnreachableError):
    """It is a second connection to a VM that panicd is already connected to.

    Attributes:
        name: that domain's.
    """

    def __init__(self, twin: Domain) -> None:
        super().__init__(f"a second monitor of {twin.name}; panicd uses {twin.address}")
        self.name = twin.name


async def supervise(
    services: Services, drivers: dict[str, Driver], domain: Domain, session: Session
) -> str:
    """Give a connected domain to a driver until its session ends, and return why it ended.

    Args:
        services: what the driver uses.
        drivers: by the domain's address, while there is one.
        domain: the domain.
        session: its connection.

    Raises:
        SpareError: another connection to it has a driver.
        MonitorError: it does not say how it stands.
        JournalError: an entry that must come before can't be written.
    """
    try:
        await _identify(services, domain, session)
        driver = drivers[domain.address] = Driver(services, domain, session.peer)
        return await driver.look_after(session)
    finally:
        drivers.pop(domain.address, None)
        services.libvirt.forget(domain.address)


async def _identify(services: Services, domain: Domain, session: Session) -> None:
    """Note who a connected domain is, and say that it is connected."""
    await _wait_for_twin(services, domain, session)
    services.fleet.identify(domain, session)
    # For what 0.1.0 left: it went by the shown name, and for a nameless VM by its socket.
    services.keeping.counters.go_on_from(domain.key, domain.uuid or domain.claim.name)
    if not domain.dials_in and not session.capability.by_api:
        uuid = domain.uuid if session.by_libvirt else ""
        await services.libvirt.learn(uuid, domain.address, session.process)
    if domain.attempts or domain.problem != CONNECTING:
        services.metrics.monitor_reconnects.inc()
    domain.since, domain.problem, domain.attempts = services.keeping.clock(), "", 0
    get_logger(monitor=domain.address, domain=domain.name).info(
        "domain connected",
        uuid=domain.uuid,
        qemu=session.capability.version_text,
        run_state=session.run_state,
        armed=session.capability.armed,
        panic_device=session.capability.panic_device,
    )


async def _wait_for_twin(services: Services, domain: Domain, session: Session) -> None:
    """Wait until no other driver has this VM, so that nothing is done to it twice.

    A QEMU that dials in again may be faster than the end of its last connection.

    Raises:
        SpareError: another driver keeps it.
        MonitorError: it did not say in time how it stands.
    """
    fleet = services.fleet
    if fleet.twin(domain, session) is None:
        return
    with trio.move_on_after(TWIN_LEAVES):
        while fleet.twin(domain, session) is not None:
            await fleet.left.park()
    if twin := fleet.twin(domain, session):
        raise SpareError(twin)
    await session.query_status()


def note_absence(domain: Domain, problem: str, now: float) -> bool:
    """Note why there is no connection, or why it ended; return whether to log it.

    A domain that stays away is logged once. One with ever new reasons is not logged for ever.
    """
    connected = not domain.problem
    domain.since = now if connected else domain.since
    domain.attempts = 1 if connected else domain.attempts + 1
    domain.told = 0 if connected else domain.told
    before, domain.problem = domain.problem, problem
    is_new = problem != before and domain.told < TOLD_AT_MOST
    domain.told += is_new
    return is_new
