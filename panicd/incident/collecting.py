"""Takes the evidence of one domain's panic, and dumps its guest's memory."""

from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import trio

from panicd import __version__
from panicd.dumps.coredump import FinishedDump
from panicd.dumps.directory import retire
from panicd.evidence.bundle import (
    Bundle,
    begin_bundle,
    by_libvirt,
    by_monitor,
    collect,
    take_view,
)
from panicd.evidence.qemu_view import QemuView
from panicd.host.logs import get_logger
from panicd.incident.domains import Domain
from panicd.incident.dumping import dump_by_libvirt, dump_in_turn
from panicd.incident.records import plan_view
from panicd.incident.services import Services, bundle_directory
from panicd.libvirt.domain_monitor import DomainMonitor
from panicd.qemu.dump_error import DumpByOther, DumpError
from panicd.qemu.monitor import Monitor
from panicd.qemu.session import Session
from panicd.qemu.threads import in_thread
from panicd.rules.consoles import console_files
from panicd.rules.incident import Incident, Opened
from panicd.rules.last_words import LastWords
from panicd.rules.machine.effects import Collect
from panicd.rules.payload import describe
from panicd.rules.plan import Dump, Plan, Quit, SystemReset
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

    def take(
        self, session: Session, effect: Collect, go_on: Callable[[LastWords], None]
    ) -> Coroutine[Any, Any, None] | None:
        """Take evidence within the step's time.

        Args:
            session: the VM.
            effect: the machine's.
            go_on: is called once, with the guest's last words, as soon as the plan may go on.

        Returns:
            The rest of it, for a task; None: it needs none.
        """
        evidence, follows = self._policy.evidence, effect.follows
        writer = self._services.bundle_writer
        by_other, no_log = self._reader(session)
        pid = session.peer.pid if session.process_known else 0
        directory = bundle_directory(self._services.config(), self._incident.id)
        bundle = begin_bundle(session, directory, no_log)
        consoles = evidence.consoles if evidence is not None else ()
        # They say nothing of a process that has ended.
        host = partial(writer.host.of, pid) if isinstance(follows, Quit) else None
        files = consoles or host or console_files(bundle.arguments or ())
        keep = partial(writer.write_soon, bundle, self._facts(effect), pid, self._written())
        monitor, budget = session.monitor, effect.step.timeout
        is_next = isinstance(follows, SystemReset) and not follows.by_libvirt
        only_view = isinstance(monitor, Monitor) and no_log and not files
        if is_next and only_view and writer.has_room:
            self._take_view(session, budget, bundle, keep, partial(go_on, bundle.words))
            return None
        if isinstance(monitor, DomainMonitor):
            items = by_libvirt(monitor.client, monitor.domain, is_wanted=not no_log)
        else:
            items = by_monitor(self._services.timers, budget, by_other, is_wanted=not no_log)

        async def take() -> None:
            limit = trio.current_time() + budget
            await collect(session, bundle, consoles=consoles, budget=budget, host=host, items=items)
            words = bundle.words
            may_go_on = follows is not None and writer.has_room
            keep()
            if not may_go_on:
                with trio.move_on_at(limit):
                    await writer.written(directory)
            go_on(words)

        return take()

    def _take_view(
        self,
        session: Session,
        budget: float,
        bundle: Bundle,
        keep: Callable[[], None],
        go_on: Callable[[], None],
    ) -> None:
        """Take only QEMU's view of its guest, without a task.

        ``system_reset`` need not wait for QEMU's answers, as QEMU carries out commands in their
        order. (With ``quit`` some answers might never leave QEMU.)
        """
        writer = self._services.bundle_writer
        writer.expect()

        def done() -> None:
            take_view(bundle, view)
            writer.expect_no_more()
            keep()

        view = QemuView(session, self._services.timers, asked=go_on, done=done)
        view.begin(budget)

    def _facts(self, effect: Collect) -> Callable[[], dict[str, object]]:
        return partial(_facts, self._incident.opened, effect.plan)

    def _written(self) -> Callable[[str], None]:
        """Return what is called when a bundle is written, or is not."""
        services, domain, policy = self._services, self._domain, self._policy
        chronicle, incident = domain.chronicle, self._incident
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
        if session.capability.has_vmcoreinfo is False:
            return None, "the VM has no vmcoreinfo device"
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
