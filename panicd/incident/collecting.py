"""Takes the evidence of one domain's panic, and dumps its guest's memory."""

from dataclasses import asdict, replace
from functools import partial

from panicd import __version__
from panicd.dumps.coredump import FinishedDump
from panicd.dumps.directory import retire
from panicd.evidence.bundle import Stages, by_libvirt, collect
from panicd.host.logs import get_logger
from panicd.incident.domains import Domain
from panicd.incident.dumping import dump_by_libvirt, dump_in_turn
from panicd.incident.records import plan_view
from panicd.incident.services import Services, bundle_directory
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.qemu.dump_error import DumpByOther, DumpError
from panicd.qemu.session import Session
from panicd.qemu.threads import in_thread
from panicd.rules.incident import Incident
from panicd.rules.last_words import LastWords
from panicd.rules.payload import describe
from panicd.rules.plan import Collect, Dump
from panicd.rules.settings import Policy


class EvidenceKeeper:
    """Takes the evidence of a connected domain's open incident.

    Args:
        services: shared by all domains.
        domain: has a policy and an open incident whenever evidence is taken.
    """

    def __init__(self, services: Services, domain: Domain) -> None:
        self._services = services
        self._domain = domain

    @property
    def _policy(self) -> Policy:
        assert self._domain.policy is not None
        return self._domain.policy

    @property
    def _incident(self) -> Incident:
        assert self._domain.chronicle is not None
        return self._domain.chronicle.incident

    async def take(self, session: Session, step: Collect) -> LastWords:
        """Take evidence within the step's time; return the guest's last words."""
        incident, evidence = self._incident, self._policy.evidence
        chronicle = self._domain.chronicle
        assert chronicle is not None
        by_other, no_log = self._reader(session)
        bundle = await collect(
            session,
            bundle_directory(self._services.config(), incident.id),
            consoles=evidence.consoles if evidence is not None else (),
            facts=partial(_facts, incident),
            budget=step.timeout,
            by_other=by_other,
            no_log=no_log,
            items=_items_by_libvirt(session, is_wanted=not no_log),
        )
        # The keeper reads the journal, and would miss an incident that is not yet there.
        taken = partial(self._services.bundles.taken, self._domain.key, self._policy, incident.id)
        chronicle.commit_soon(lambda _problem: taken())
        return bundle.words

    def _reader(self, session: Session) -> tuple[DumpByOther | None, str]:
        """Return libvirt's dump for the kernel log, if any, and why no dump is possible."""
        domain = session.capability.libvirt
        if domain is not None and not domain.has_vmcoreinfo:
            return None, "the domain has no <vmcoreinfo/> among its <features>"
        try:
            return dump_by_libvirt(session, self._services.libvirt), ""
        except DumpError as error:
            return None, str(error)

    async def dump(self, session: Session, step: Dump) -> FinishedDump:
        """Write the guest's memory to a file in its turn, and retire older dumps.

        Raises:
            DumpError: the dump could not be written; nothing of it remains.
        """
        log = get_logger(domain=self._domain.name)
        dump = await dump_in_turn(
            session,
            replace(self._policy.coredump, timeout=step.timeout),
            self._domain,
            self._incident,
            step.format,
            queue=self._services.dumps,
            libvirt=self._services.libvirt,
            metrics=self._services.metrics,
            give_way=self._services.priority.give_way,
        )
        try:
            retired = await in_thread(partial(retire, self._policy.coredump, dump.path))
        except OSError as error:
            log.warning("old dumps could not be removed", problem=str(error))
        else:
            if retired:
                log.info("old dumps removed", paths=[str(path) for path in retired])
        return dump


def _facts(incident: Incident) -> dict[str, object]:
    """Return what panicd knows of a panic, as values that JSON can hold."""
    return {
        **asdict(incident.opened),
        "payload": asdict(describe(incident.opened.information)),
        "decision": plan_view(incident.plan) if incident.plan is not None else None,
        "panicd": __version__,
    }


def _items_by_libvirt(session: Session, *, is_wanted: bool) -> Stages | None:
    """Return libvirt's evidence of a domain; None if panicd has its own monitor."""
    monitor = session.monitor
    if isinstance(monitor, DomainMonitor):
        return by_libvirt(monitor.client, monitor.domain, is_wanted=is_wanted)
    return None
