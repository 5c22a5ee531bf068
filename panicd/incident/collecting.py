"""Takes the evidence of one domain's panic, and dumps its guest's memory."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Final

import trio

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
from panicd.rules.incident import Incident, Opened
from panicd.rules.last_words import LastWords
from panicd.rules.machine.effects import Collect
from panicd.rules.payload import describe
from panicd.rules.plan import Dump, Plan, Quit
from panicd.rules.settings import Policy

EVIDENCE: Final = "evidence"
"""What has a problem while bundles can't be written."""


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

    async def take(self, session: Session, effect: Collect) -> LastWords:
        """Take evidence within the step's time; return the guest's last words.

        It is in memory then, and on the disk only if no command follows that it would hold up.
        """
        incident, evidence = self._incident, self._policy.evidence
        writer, follows = self._services.bundle_writer, effect.follows
        limit = trio.current_time() + effect.step.timeout
        by_other, no_log = self._reader(session)
        pid = session.peer.pid if session.process_known else 0
        bundle = await collect(
            session,
            bundle_directory(self._services.config(), incident.id),
            consoles=evidence.consoles if evidence is not None else (),
            budget=effect.step.timeout,
            # They say nothing of a process that has ended.
            host=partial(writer.host.of, pid) if isinstance(follows, Quit) else None,
            by_other=by_other,
            no_log=no_log,
            items=_items_by_libvirt(session, is_wanted=not no_log),
        )
        words = bundle.words
        may_go_on = follows is not None and writer.has_room
        writer.write_soon(
            bundle, partial(_facts, incident.opened, effect.plan), pid, self._written(incident)
        )
        if not may_go_on:
            with trio.move_on_at(limit):
                await writer.written(bundle.directory)
        return words

    def _written(self, incident: Incident) -> Callable[[str], None]:
        """Return what is called when a bundle is written, or is not."""
        services, domain, policy = self._services, self._domain, self._policy
        chronicle = domain.chronicle
        assert chronicle is not None
        taken = partial(services.bundles.taken, domain.key, policy, incident.id)

        def written(problem: str) -> None:
            if problem:
                log = get_logger(domain=domain.name, incident=incident.id)
                log.error("the evidence could not be written", problem=problem)
                services.problems.begin(EVIDENCE, problem, bearable=True)
            else:
                services.problems.end(EVIDENCE)
            # The keeper reads the journal, and would miss an incident that is not yet there.
            chronicle.commit_soon(lambda _problem: taken())

        return written

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


def _facts(opened: Opened, plan: Plan) -> dict[str, object]:
    """Return what panicd knows of a panic, as values that JSON can hold."""
    return {
        **asdict(opened),
        "payload": asdict(describe(opened.information)),
        "decision": plan_view(plan),
        "panicd": __version__,
    }


def _items_by_libvirt(session: Session, *, is_wanted: bool) -> Stages | None:
    """Return libvirt's evidence of a domain; None if panicd has its own monitor."""
    monitor = session.monitor
    if isinstance(monitor, DomainMonitor):
        return by_libvirt(monitor.client, monitor.domain, is_wanted=is_wanted)
    return None
