"""One domain's dump in its turn, by libvirt if it runs the domain; counts the results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from panicd.dumps.coredump import FinishedDump, dump_guest_memory
from panicd.dumps.queue import DumpQueue, DumpTurn
from panicd.dumps.standby import DumpHost
from panicd.host.logs import get_logger
from panicd.host.metrics import Metrics
from panicd.incident.domains import Domain
from panicd.libvirt import beside
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.libvirt.errors import LibvirtAwayError, LibvirtError, LibvirtSilentError
from panicd.libvirt.known_domains import Libvirt
from panicd.libvirt.memory import PeekReader, dumper
from panicd.libvirt.protocol import DomainRef
from panicd.qemu.dump_error import DumpByOther, DumpError, DumpFailure
from panicd.qemu.guest_memory import GuestReader
from panicd.qemu.monitor import SessionLostError, UncertainError
from panicd.qemu.session import Session
from panicd.rules.incident import Incident
from panicd.rules.machine.vm import Stand
from panicd.rules.settings import CoredumpSettings, DumpFormat

BY_LIBVIRT: Final = "libvirt runs this VM, and its 9.0 dies of foreign dumps"


async def dump_in_turn(
    session: Session,
    settings: CoredumpSettings,
    domain: Domain,
    incident: Incident,
    kind: DumpFormat,
    *,
    queue: DumpQueue,
    libvirt: Libvirt,
    metrics: Metrics,
    give_way: Callable[[], None],
) -> FinishedDump:
    """Write the memory of a stopped guest to a file, in its turn.

    Args:
        session: the VM.
        settings: directory and limits. ``timeout`` limits the waiting, and again the dump.
        domain: shows the dump's progress.
        incident: the dump's incident.
        kind: the format.
        queue: the host's dumps.
        libvirt: of the host.
        metrics: of the host.
        give_way: called repeatedly, in other threads; may wait a moment.

    Raises:
        DumpError: the dump failed, or was not tried.
        UncertainError: the session ended, or QEMU said nothing.
    """
    metrics.coredumps.inc()
    try:
        by_other = dump_by_libvirt(session, libvirt)
        with queue.turn(session.nudge, kind, session.peer.uid) as turn:
            domain.dump = turn
            if not turn.has_come:
                get_logger(domain=domain.name, incident=incident.id).info(
                    "dump waits for its turn", ahead=turn.ahead
                )
            await _await_turn(session, turn, settings.timeout)
            with metrics.coredumps_in_progress.track_inprogress():
                dump = await dump_guest_memory(
                    session,
                    settings,
                    incident.opened.domain,
                    incident.id,
                    kind,
                    progress=turn.progress,
                    by_other=by_other,
                    reader=_peek_reader(session, libvirt),
                    host=DumpHost(give_way, queue.standby),
                )
    except DumpError as error:
        metrics.coredump_failures.labels(reason=error.failure).inc()
        raise
    except UncertainError:
        metrics.coredump_failures.labels(reason=DumpFailure.LOST).inc()
        raise
    except OSError as error:  # such as no file descriptor left
        failed = DumpError.of(error)
        metrics.coredump_failures.labels(reason=failed.failure).inc()
        raise failed from error
    finally:
        domain.dump = None
    metrics.coredump_bytes.inc(dump.size)
    if dump.selection is not None:
        get_logger(domain=domain.name, incident=incident.id).info(
            "memory dumped",
            path=str(dump.path),
            size=dump.size,
            level=dump.selection.level,
            pages_left_out=dict(dump.selection.left_out),
            reason=dump.selection.reason,
        )
    return dump


def dump_by_libvirt(session: Session, libvirt: Libvirt) -> DumpByOther | None:
    """Return libvirt's dump of a VM that it runs; None: libvirt does not run it.

    Raises:
        DumpError: libvirt runs the VM, and panicd can't ask it.
    """
    domain, monitor = session.capability.libvirt, session.monitor
    if isinstance(monitor, DomainMonitor):
        return dumper(monitor.client, monitor.domain)
    if domain is None:
        if session.by_libvirt:
            problem = libvirt.problem or "it is not one that libvirt.uri and its XML tell of"
            raise DumpError(DumpFailure.LIBVIRT, f"{BY_LIBVIRT}; {problem}")
        return None

    def known() -> Stand:
        return session.vm.stand

    async def dump(path: Path, kind: str, timeout: float) -> None:
        try:
            await beside.dump(libvirt.client, domain, path, kind, known=known, timeout=timeout)
        except LibvirtSilentError as error:
            raise DumpError(DumpFailure.TIMEOUT, str(error)) from error
        except LibvirtError as error:
            raise DumpError(DumpFailure.REFUSED, str(error)) from error

    return dump


def _peek_reader(session: Session, libvirt: Libvirt) -> Callable[[float], GuestReader] | None:
    """Return a reader of the memory of libvirt's VM; None: libvirt does not run it.

    Raises:
        DumpError: libvirt runs the VM, and panicd can't ask it.
    """
    domain, monitor = session.capability.libvirt, session.monitor
    if isinstance(monitor, DomainMonitor):
        return partial(PeekReader, monitor.client, monitor.domain)
    if domain is None:
        return None
    try:
        return partial(PeekReader, libvirt.client, DomainRef(domain.name, domain.uuid, domain.id))
    except LibvirtAwayError as error:
        raise DumpError(DumpFailure.LIBVIRT, str(error)) from error


async def _await_turn(session: Session, turn: DumpTurn, timeout: float) -> None:
    """Take the domain's events until its turn comes.

    Raises:
        DumpError: the turn did not come in time, or the guest is no longer the one to dump.
        SessionLostError: the session ended.
    """
    let_go = session.vm.times_let_go

    def overtaken() -> bool:
        return session.vm.times_let_go > let_go

    await session.observe(lambda: turn.has_come or overtaken(), timeout)
    if session.ended:
        raise SessionLostError("the session ended before the dump's turn came")
    if overtaken():
        why = "the guest was reset or resumed before the dump's turn came"
        raise DumpError(DumpFailure.OVERTAKEN, why)
    if not turn.has_come:
        raise DumpError(DumpFailure.NO_TURN, f"its turn did not come in {timeout:g} s")
